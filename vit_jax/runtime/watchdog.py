"""Detects a hung training run.

JAX's heartbeats detect a process that dies or freezes, but not one that is alive and stuck (a hung
file system, a deadlocked collective); the others would wait for it for ever.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time

from vit_jax.errors import FAILED, PREEMPTED


class Watchdog:
    """A context that ends the process if `beat` is not called for `seconds`; 0: never.

    Time in which the whole process was stopped does not count.

    The stacks of all threads are printed. The exit code is 42 if a step was saved since the start,
    so that launchers restart the job, otherwise 1.
    """

    def __init__(self, seconds: float):
        self.seconds, self.beats, self.last = seconds, 0, time.monotonic()
        self.what = "starting"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watchdog:
        self.last = time.monotonic()
        if self.seconds:
            self._thread.start()
        return self

    def __exit__(self, *error) -> None:
        self._stop.set()
        if self.seconds:
            self._thread.join()

    def beat(self, what: str, *, progress: bool = False) -> None:
        """Signals life, and what was just done; `progress` means a saved step."""
        self.what, self.last = what, time.monotonic()
        self.beats += progress

    def on_batch(self, count: int) -> None:
        """`beat` after `count` examples of an evaluation."""
        self.beat(f"{count} examples of an evaluation")

    def _watch(self) -> None:
        interval, before = min(self.seconds / 4, 10.0), time.monotonic()
        while not self._stop.wait(interval):
            now = time.monotonic()
            if (stopped := now - before - interval) > interval:  # this thread did not run either
                self.last += stopped  # SIGSTOP, as of `scontrol suspend`, and SIGCONT
            before = now
            if (idle := now - self.last) < self.seconds:
                continue
            print(
                f"vit-jax: error: no progress for {idle:.0f} s after {self.what}: a process of the "
                "job, its storage or its network hangs. Stopping; the same command resumes from "
                "the last checkpoint. config.watchdog_seconds sets the limit.",
                file=sys.stderr,
                flush=True,
            )
            faulthandler.dump_traceback(all_threads=True)
            os._exit(PREEMPTED if self.beats else FAILED)
