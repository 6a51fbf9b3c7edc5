"""Changes what Orbax's background threads do when they cannot write a checkpoint."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable

import orbax.checkpoint as ocp


def silence_raised_errors() -> None:
    """Silences Orbax and TensorStore, which print each error up to a hundred times.

    `check` and `restore` raise the error.
    """
    before = sys.unraisablehook
    if getattr(before, "__name__", "") == "ignore_raised_errors":
        return

    def ignore_raised_errors(found: sys.UnraisableHookArgs) -> None:
        if not str(found.exc_value).startswith(("Event loop is closed", "Encountered error while")):
            before(found)

    sys.unraisablehook = ignore_raised_errors  # called by TensorStore's threads
    logging.getLogger("absl").addFilter(
        lambda record: record.levelno < logging.ERROR or "orbax" not in record.pathname
    )
    logging.getLogger("asyncio").addFilter(
        lambda record: "exception was never retrieved" not in record.getMessage()
    )


def barrier() -> Callable[..., None]:
    """Orbax's barrier, at which a process whose write has failed does not wait.

    After an error in its background thread Orbax waits for the other processes, which wait at an
    earlier barrier: for 20 minutes, without a message. This process ends instead, and so do they.
    """
    wait = ocp.multihost.get_barrier_sync_fn()

    def unless_failed(*, key: str, timeout_ms: int) -> None:
        in_background = threading.current_thread() is not threading.main_thread()
        if not (in_background and sys.exc_info()[1]):
            wait(key=key, timeout_ms=timeout_ms)

    return unless_failed
