"""How far the loop runs ahead of the devices, and how fast it goes."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Generator
from typing import Any

import jax

from vit_jax.runtime import host_memory, profiling


def steps_ahead() -> int:
    """Steps that the loop asks for before the oldest is done.

    On a CPU none, since every step that it is asked for takes its memory at once.
    """
    return 0 if jax.default_backend() == "cpu" else 2


def temporary_bytes(compiled: Any) -> int:
    """What a step takes on one device while it runs; 0 if the backend does not say."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


class Pace:
    """Keeps the loop no more than `preflight.steps_ahead()` ahead of the devices.

    On a CPU that keeps freed pages also close to the bytes that the run is expected to hold.
    """

    def __init__(self, train_step: Any, expected_memory: int | None) -> None:
        self.ahead = steps_ahead()
        self.results: collections.deque = collections.deque()
        self.limit: int | None = None
        if expected_memory and host_memory.freed_pages_are_kept():
            self.limit = int(1.1 * expected_memory)
            self.temporaries = jax.local_device_count() * temporary_bytes(train_step)

    def begin(self) -> None:
        """Before a step."""
        if self.limit is not None:
            host_memory.make_room(self.temporaries)

    def keep(self, result: jax.Array) -> None:
        """Waits until no more than so many steps are under way; `result` is of the newest."""
        begin = time.perf_counter()
        self.results.append(result)
        if len(self.results) > self.ahead:
            self.results.popleft().block_until_ready()
        if not self.ahead:
            host_memory.let_go(time.perf_counter() - begin)
            if self.limit is not None:
                host_memory.stay_below(self.limit)

    def interrupted(self) -> None:
        """Something else took memory between two steps, or has given it back."""
        if self.limit is not None:
            host_memory.trim()


class Clock:
    """Images per second between two looks, and the share of that time without input.

    Evaluation does not count.
    """

    def __init__(self, batch_size: int, step: int):
        self.batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """The loop waits for a batch inside of this."""
        begin = time.perf_counter()
        with profiling.phase(profiling.WAIT_FOR_INPUT):
            yield
        self.waited += time.perf_counter() - begin

    def read(self, step: int) -> dict[str, float]:
        """`train/images_per_second` and `train/input_wait_percent` since the last look."""
        seconds = time.perf_counter() - self.time
        images, waited = (step - self.step) * self.batch_size, self.waited
        self.restart(step)
        return {
            "train/images_per_second": images / seconds,
            "train/input_wait_percent": 100 * waited / seconds,
        }
