"""Exceptions that a command turns into one line and an exit code, and "did you mean"."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

#: Exit codes. Launchers restart a run after PREEMPTED and ALONE, and after 134 and 137, which are
#: signals (launch/restart.py).
OK, FAILED, USAGE, PREEMPTED, ALONE = 0, 1, 2, 42, 75


#: Control characters that quoted names of files, keys and values may contain.
CONTROL = {i: repr(chr(i))[1:-1] for i in (*range(32), *range(127, 160), 0x2028, 0x2029)}


class OneLine(Exception):
    """A message on one line, whatever it quotes."""

    def __str__(self) -> str:
        return super().__str__().translate(CONTROL)


class UserError(OneLine, ValueError):
    """Bad input. The message is one line that says what is wrong, where, and what to do."""


class Diverged(UserError):
    """A run whose gradients or updates are no longer finite, or whose loss spikes."""


class WorkerLost(UserError):
    """A data worker died or hangs; a thread may wait for it for ever, also when Python ends."""


def one_line(error: BaseException) -> str:
    """The text of an error that ends a command."""
    if isinstance(error, UserError):
        return f"vit-jax: error: {error}"
    text = str(error).strip().split("\n")[0].translate(CONTROL)
    return f"vit-jax: error: {type(error).__name__}: {text} (--debug shows where it was raised)"


class UsageError(OneLine):
    """An invalid command line; the command exits with code 2."""


class Preempted(OneLine):
    """The run was asked to stop and has saved its state; the command exits with code 42."""


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the option closest to `name`, or `""` if none is close."""
    options = [str(option) for option in options]
    for option in options:  # lr for learning_rate, schedule.lr for schedule.learning_rate
        *section, last = option.split(".")
        initials = ".".join([*section, "".join(word[:1] for word in last.split("_"))])
        if "_" in last and initials == name:
            return f" Did you mean {option!r}?"
    folded = {option.casefold(): option for option in options}
    close = difflib.get_close_matches(str(name).casefold(), folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
