"""Child processes: they end with their parent; data workers leave signals to it."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from typing import TypeVar

from vit_jax.errors import WorkerLost


def mark_flags_as_parsed() -> None:
    """Grain's workers read absl flags, which may not have been parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def protect(index: int, count: int) -> None:
    """A worker ends with its parent, and leaves signals to it (the parent saves on SIGTERM)."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent(parent: int = 0) -> None:
    """Ends this process with its parent: by the kernel on Linux, by a thread elsewhere.

    Args:
      parent: its process id, to detect a parent that has already ended; 0: the current parent.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    death_signal = 1  # PR_SET_PDEATHSIG
    if prctl is not None:
        prctl(death_signal, signal.SIGKILL)
    if parent and os.getppid() != parent:
        sys.exit(f"Process {parent}, which started this one, has ended.")
    if prctl is None:

        def watch(parent: int) -> None:
            while os.getppid() == parent:
                time.sleep(1.0)
            os._exit(1)

        threading.Thread(target=watch, args=(os.getppid(),), daemon=True, name="parent").start()


T = TypeVar("T")
#: Seconds between looks at the workers while there is no batch; less than one needs to start.
LOOK_EVERY = 0.2
#: Seconds for Grain to report a dead worker, with the error that it died of.
GRACE = 3.0


#: The beginning of the names that Grain gives to its processes.
NAME = "grain-process-prefetch"


class Watched:
    """The data workers of one pipeline: Grain's processes that start while it is read.

    Grain reports a dead worker within a second, unless it died in the middle of a message: then the
    reader waits for the rest for ever. Other child processes are left alone.

    Args:
      count: number of workers; 0: none, the pipeline has threads only.
    """

    def __init__(self, count: int = 0) -> None:
        self.count = count
        self.before = set(multiprocessing.active_children())
        self.seen = set[multiprocessing.process.BaseProcess]()
        self.closed = threading.Event()
        if count:
            threading.Thread(target=self.see_them_start, daemon=True, name="workers").start()

    def see_them_start(self) -> None:
        """Looks for new workers: the list of children lacks those that died before a look."""
        while len(self.seen) < self.count and not self.closed.wait(LOOK_EVERY):
            self.look()

    def next_item(self, items: queue.Queue[T], seconds: float) -> T:
        """The next of `items`.

        Raises:
          WorkerLost: a worker has died, or there is none for so many seconds; all are ended then.
        """
        left, failed = seconds, None
        while left > 0:
            with contextlib.suppress(queue.Empty):
                item = items.get(timeout=min(LOOK_EVERY, left))
                self.look()
                return item
            left -= LOOK_EVERY  # not by the clock, which continues while this process is stopped
            if failed is None and (failed := self.look()) is not None:
                left = min(left, GRACE)
        self.end()  # closing would wait for a stopped one
        if failed is not None:
            raise WorkerLost(
                f"A data worker died (exit code {failed}); run the same command again."
            )
        if not self.count:
            raise WorkerLost(
                f"No batch for {seconds:.0f} s: the storage does not respond. Run the same command "
                "again."
            )
        raise WorkerLost(
            f"No batch for {seconds:.0f} s: a data worker hangs or the storage does not "
            "respond. Run the same command again; config.data.num_workers=0 avoids workers."
        )

    def look(self) -> int | None:
        """The exit code of a worker that has failed, negative for a signal; None: none has."""
        if len(self.seen) < self.count:
            new = set(multiprocessing.active_children()) - self.before
            self.seen |= {child for child in new if child.name.startswith(NAME)}
        return next((child.exitcode for child in list(self.seen) if child.exitcode), None)

    def end(self) -> None:
        """Kills the workers, stopped ones included."""
        self.closed.set()
        self.look()
        for worker in list(self.seen):
            worker.kill()
