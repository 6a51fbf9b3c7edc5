"""Checks images before a run, so that unreadable ones are reported before step 1."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from vit_jax.data.batches import read
from vit_jax.data.source import Source
from vit_jax.data.transforms import Transform
from vit_jax.errors import UserError


def unreadable(
    source: Source, transform: Transform, *, seconds: float, num_threads: int = 4
) -> tuple[list[str], int]:
    """(the error of each unreadable record, number of records checked).

    All records if they can be decoded within `seconds`, otherwise a random sample. Pixels in memory
    cannot be damaged and are not checked.

    Args:
      transform: an evaluation transform.
    """
    if not len(source):
        return [], 0
    try:
        if not isinstance(source[0]["image"], bytes):
            return [], 0
    except UserError:
        pass
    deadline = time.monotonic() + seconds

    def look(index: int) -> str | None:
        if time.monotonic() > deadline:
            return None
        try:
            read(source, int(index), transform)
        except UserError as error:
            return str(error)
        return ""

    few = len(source) <= 1_000_000  # a permutation of hundreds of millions is slow
    rng = np.random.default_rng(0)
    order = rng.permutation(len(source)) if few else rng.integers(len(source), size=1_000_000)
    found: dict[int, str] = {}
    with ThreadPoolExecutor(max(1, num_threads)) as threads:
        for start in range(0, len(order), 64):
            if time.monotonic() > deadline:
                break
            part = order[start : start + 64]
            for index, problem in zip(part, threads.map(look, part), strict=True):
                if problem is not None:
                    found[int(index)] = problem
    return [found[index] for index in sorted(found) if found[index]], len(found)
