"""`WORKDIR/report.html` during a run, from its first log line on, at negligible cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax.errors import first_line
from vit_jax.pages import image_strips, report
from vit_jax.runtime.distributed import say
from vit_jax.training.loop import Event
from vit_jax.training.state import TrainState

#: Minimum time between two pages: seconds, and a multiple of a page's own time (1% at most).
SECONDS, TIMES = 10.0, 100.0


def fed(workdir: Path, class_names: Sequence[str], batch: Mapping[str, np.ndarray]) -> None:
    """Stores the first images of a run for its page, if there are none yet; by process 0.

    batch: of this host. A failure to write does not end the run; images that are not grey or RGB
      are not shown.
    """
    channels = batch["image"].shape[-1]
    if jax.process_index() or channels not in (1, 3) or (workdir / image_strips.FED).exists():
        return
    labels = batch["label"][: image_strips.ACROSS * image_strips.DOWN]
    sets = [np.flatnonzero(row == 1) for row in labels] if labels.ndim == 2 else labels[:, None]
    known = range(len(class_names))
    words = [
        " and ".join(class_names[int(k)] for k in row if k in known) or "no label" for row in sets
    ]
    try:
        colours = np.repeat(batch["image"], 3 // channels, axis=-1)
        image_strips.write_fed(colours, ", ".join(words), workdir)
    except Exception as error:
        say(f"{image_strips.FED} is not written ({first_line(error)})")


def page(workdir: Path, due: Callable[[int], bool]) -> Event:
    """Rewrites the page after a log line if enough time has passed; by process 0.

    A failure is reported once and does not end the run.
    """
    after = 0.0  # depends on the clock, below

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        nonlocal after
        begun = time.monotonic()
        if jax.process_index() or begun < after:
            return
        try:
            report.write_report(workdir)
        except Exception as error:  # no failure may end the run
            say(f"report.html is not written during training ({first_line(error)})")
            after = float("inf")
            return
        now = time.monotonic()
        after = now + max(SECONDS, TIMES * (now - begun))

    return Event(due, act)
