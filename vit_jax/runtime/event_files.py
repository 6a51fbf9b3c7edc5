"""TensorBoard event files, written without TensorFlow, torch or a thread.

tensorboardX's SummaryWriter writes in a thread: when the disk is full the thread dies with a
traceback, and later writes block for ever. Here files are written in the caller's thread.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

#: Seconds between two flushes, which wait for the disk.
FLUSH_EVERY = 1.0


class EventFile:
    """A new event file in `workdir`; after a resume, later events of the old one are hidden.

    Raises:
      OSError: from any call, if the disk is full or cannot be written.
    """

    def __init__(self, workdir: Path, start_step: int):
        # It would import torch if installed: 1.4 s and 140 MiB, not needed here.
        with _without("torch"):
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter
        self._events, self._summaries = event_pb2, summary_pb2
        self._flushed = 0.0
        resumed = any(workdir.glob("events.out.tfevents.*"))
        # The name has whole seconds; a quick restart would overwrite the first file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = RecordWriter(str(workdir / name))
        self._write(0, file_version="brain.Event:2")
        if resumed:
            begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(start_step + 1, session_log=begun)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds one point to each curve."""
        of = self._summaries.Summary
        points = [of.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step, summary=of(value=points))
        if time.monotonic() > self._flushed + FLUSH_EVERY:
            self._file.flush()
            self._flushed = time.monotonic()

    def _write(self, step: int, **content: object) -> None:
        event = self._events.Event(wall_time=time.time(), step=step, **content)
        self._file.write(event.SerializeToString())

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def _without(module: str) -> Iterator[None]:
    """In this context, a module that is not yet imported appears to be missing."""
    unknown = module not in sys.modules
    if unknown:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if unknown:
            del sys.modules[module]
