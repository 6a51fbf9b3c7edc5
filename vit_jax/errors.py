"""Exceptions that a command turns into one line and an exit code, "did you mean", and "install"."""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable

#: Exit codes. Launchers restart a run after PREEMPTED and ALONE, and after 134 and 137, which are
#: signals (launch/restart.py).
OK, FAILED, USAGE, PREEMPTED, ALONE = 0, 1, 2, 42, 75


#: Control characters that quoted names of files, keys and values may contain.
CONTROL = {i: repr(chr(i))[1:-1] for i in (*range(32), *range(127, 160), 0x2028, 0x2029)}


def printable(text: object) -> str:
    """Text of others (names of classes, files, settings) for a terminal or a figure, on one line.

    Line breaks and control characters, which could rewrite what a terminal shows, are escaped.
    """
    return str(text).translate(CONTROL)


def counted(count: int, noun: str) -> str:
    """ "1 process", "2 processes", "3 runs"."""
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


class OneLine(Exception):
    """A message on one line, whatever it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class UserError(OneLine, ValueError):
    """Bad input. The message is one line that says what is wrong, where, and what to do."""


class Diverged(UserError):
    """A run whose gradients or updates are no longer finite, or whose loss spikes."""


class WorkerLost(UserError):
    """A data worker died or hangs; a thread may wait for it for ever, also when Python ends."""


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has none."""
    return str(error).strip().split("\n")[0] or type(error).__name__


def one_line(error: BaseException) -> str:
    """The text of an error that ends a command."""
    if isinstance(error, UserError):
        return f"vit-jax: error: {error}"
    text = f"{type(error).__name__}: {str(error).strip()}"
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}"
    text = printable(text.split("\n")[0])
    return f"vit-jax: error: {text} (--debug shows where it was raised)"


class UsageError(OneLine):
    """An invalid command line; the command exits with code 2."""


class Preempted(OneLine):
    """The run was asked to stop and has saved its state; the command exits with code 42."""


#: Optional packages, and the extra of setup.py that installs them.
EXTRA_OF = {
    "datasets": "hf", "huggingface_hub": "hf", "onnx": "onnx", "onnxruntime": "onnx",
    "openvino": "openvino", "pyarrow": "hf", "qwix": "int8", "tensorflow": "prepare",
    "timm": "peers", "torch": "peers", "transformers": "peers", "wandb": "wandb",
}  # fmt: skip


def need(what: str, *packages: str, otherwise: str = "") -> None:
    """Checks that optional packages are installed, without importing them: before slow work.

    Args:
      what: needs them, such as "--format=onnx".
      otherwise: what to do instead, such as ", or use .csv".

    Raises:
      UserError: names those that are missing, and the command that installs them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        extras = ",".join(dict.fromkeys(EXTRA_OF[name] for name in missing))
        raise UserError(
            f"{what} needs {' and '.join(missing)}: pip install 'vit_jax[{extras}]'{otherwise}."
        )


def nearest(name: str, options: Iterable[str]) -> str:
    """Returns `" Did you mean 'x'?"` for the option closest to `name`, or `""` if none is close.

    Unless one differs by a letter or so, those are closest that begin with `name`, or have a part
    that does: position.py is studies/position_embedding.py, not resolution.py.
    """
    options = [str(option) for option in options]
    for option in options:  # lr for learning_rate, schedule.lr for schedule.learning_rate
        *section, last = option.split(".")
        initials = ".".join([*section, "".join(word[:1] for word in last.split("_"))])
        if "_" in last and initials == name:
            return f" Did you mean {option!r}?"
    folded = {option.casefold(): option for option in options}
    typed = str(name).casefold()
    close = difflib.get_close_matches(typed, folded, n=1, cutoff=0.85)
    stem = typed.rpartition("/")[2].removesuffix(".py")
    if not close and len(stem) > 2:
        begins = re.compile(rf"(?<![^\W_]){re.escape(stem)}")
        close = difflib.get_close_matches(typed, filter(begins.search, folded), n=1, cutoff=0)
    close = close or difflib.get_close_matches(typed, folded, n=1, cutoff=0.5)
    return f" Did you mean {folded[close[0]]!r}?" if close else ""
