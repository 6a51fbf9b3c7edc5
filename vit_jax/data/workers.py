"""Child processes: they end with their parent; data workers leave signals to it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time


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


def end() -> None:
    """Kills this process's data workers, stopped ones included."""
    for worker in multiprocessing.active_children():
        worker.kill()
