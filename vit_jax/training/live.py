"""`WORKDIR/report.html` while a run goes on: from its first line on, never at the cost of speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import jax

from vit_jax.pages import report
from vit_jax.runtime.distributed import say
from vit_jax.training.loop import Event
from vit_jax.training.state import TrainState

#: Between two pages, at least: seconds, and times what a page takes, so that it is 1% at most.
SECONDS, TIMES = 10.0, 100.0


def page(workdir: Path, due: Callable[[int], bool]) -> Event:
    """The page, written anew after a line of the log where some time has passed; by process 0.

    A page that cannot be written is said once, and ends no run.
    """
    after = 0.0  # by the clock below

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        nonlocal after
        begun = time.monotonic()
        if jax.process_index() or begun < after:
            return
        try:
            report.write_report(workdir)
        except Exception as error:  # whatever it is, it is no reason to lose a run
            reason = str(error).strip().split("\n")[0]
            say(f"report.html is not written while training goes on ({reason})")
            after = float("inf")
            return
        now = time.monotonic()
        after = now + max(SECONDS, TIMES * (now - begun))

    return Event(due, act)
