"""Steps in flight, and throughput."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Generator, Iterator
from typing import TypeVar

import jax

from vit_jax.runtime import host_memory, profiling
from vit_jax.runtime.distributed import say
from vit_jax.runtime.watchdog import Watchdog

State = TypeVar("State")


def steps_ahead() -> int:
    """Maximum number of steps in flight beyond the current one.

    None on a CPU, where every dispatched step allocates its memory at once.
    """
    return 0 if jax.default_backend() == "cpu" else 2


def temporary_bytes(compiled: jax.stages.Compiled) -> int:
    """Bytes of temporaries of a step on one device; 0 if unknown."""
    analysis = compiled.memory_analysis()
    return 0 if analysis is None else analysis.temp_size_in_bytes


class Paced:
    """A compiled step with limited steps in flight: (state, batch) -> (state, metrics).

    At most `steps_ahead()` steps are in flight when the next begins. It also notifies the watchdog,
    profiles the configured steps, and on a CPU that retains freed pages keeps the process close to
    its expected memory (see host_memory.make_room).

    Args:
      start: the last step done.
      expected_memory: bytes, of the whole process; None: unknown.
    """

    def __init__(
        self,
        step: jax.stages.Compiled,
        start: int,
        *,
        expected_memory: int | None = None,
        profile: profiling.Profile | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self.step, self.number, self.ahead = step, start, steps_ahead()
        self.profile, self.watchdog = profile, watchdog
        self.in_flight: collections.deque = collections.deque()
        self.span = contextlib.ExitStack()  # of the traced step, until the next begins
        self.limit: int | None = None
        if expected_memory and host_memory.freed_pages_are_kept():
            self.limit = int(1.1 * expected_memory)
            self.temporaries = jax.local_device_count() * temporary_bytes(step)

    def __call__(
        self, state: State, batch: dict[str, jax.Array]
    ) -> tuple[State, dict[str, jax.Array]]:
        self.wait(self.ahead)
        self.end_span()
        self.number += 1
        if self.limit is not None:
            host_memory.make_room(self.temporaries)
        if self.profile is not None:
            self.span.enter_context(self.profile.begin(self.number))
        state, metrics = self.step(state, batch)
        self.in_flight.append(metrics)
        if self.watchdog is not None:
            self.watchdog.beat(f"step {self.number}")
        return state, metrics

    def wait(self, most: int = 0) -> None:
        """Waits until at most this many steps are in flight."""
        while len(self.in_flight) > most:
            begin = time.perf_counter()
            jax.block_until_ready(self.in_flight.popleft())
            if not self.ahead:
                host_memory.wait_for_free(time.perf_counter() - begin)
                if self.limit is not None:
                    host_memory.trim_above(self.limit)

    def end_span(self) -> None:
        """Ends the previous step, and the profile if that was its last step."""
        self.span.close()
        if self.profile is not None and self.profile.is_last(self.number):
            self.wait()
            say(f"profile of {self.profile.end()}: {self.profile.directory}")

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """A context for other work that needs memory.

        On a CPU it begins after the step in flight, and its freed memory is returned afterwards.
        """
        if not self.ahead:
            self.wait()
        yield
        self.trim()

    def trim(self) -> None:
        """Call after other work has freed memory, to return it to the system."""
        if self.limit is not None:
            host_memory.trim()

    def __enter__(self) -> Paced:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:  # otherwise steps in flight may never end
            self.wait()
            self.end_span()
        self.span.close()


class Clock:
    """Images per second since the last reading, and the input-bound fraction of that time.

    Evaluation does not count.
    """

    def __init__(self, batch_size: int, step: int):
        self.batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """A context around waiting for a batch."""
        begin = time.perf_counter()
        with profiling.phase(profiling.WAIT_FOR_INPUT):
            yield
        self.waited += time.perf_counter() - begin

    def read(self, step: int) -> dict[str, float]:
        """`train/images_per_second` and `train/input_wait_percent` since the last reading."""
        seconds = time.perf_counter() - self.time
        images, waited = (step - self.step) * self.batch_size, self.waited
        self.restart(step)
        return {
            "train/images_per_second": images / seconds,
            "train/input_wait_percent": 100 * waited / seconds,
        }
