"""Processes that decode: they outlive no parent, hear no signal of its own, and can be ended."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading


def mark_flags_as_parsed() -> None:
    """Grain's workers read absl flags, which nobody may have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def protect(index: int, count: int) -> None:
    """A worker outlives no parent, and leaves signals to it (the parent saves on SIGTERM)."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Ends this process when its parent is gone: the kernel does on Linux, a thread elsewhere."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    death_signal = 1  # PR_SET_PDEATHSIG
    parent = multiprocessing.parent_process()
    if prctl is not None:
        prctl(death_signal, signal.SIGKILL)
    elif parent is not None:

        def wait() -> None:
            parent.join()
            os._exit(1)

        threading.Thread(target=wait, daemon=True, name="parent").start()


def end() -> None:
    """Kills this process's data workers, also those that are stopped."""
    for worker in multiprocessing.active_children():
        worker.kill()
