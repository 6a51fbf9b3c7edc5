"""TensorBoard's events, written without TensorFlow, torch or a thread.

tensorboardX's own SummaryWriter writes in a thread: when a disk is full that dies with a traceback,
and the next few values wait for it for ever. Its files are written here by who has the values.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

#: A flush waits for the disk: seconds between two of them.
FLUSH_EVERY = 1.0


class EventFile:
    """A new events file in `workdir`; of a run that goes on, what came later is hidden.

    Raises:
      OSError: of any call, the disk is full or cannot be written.
    """

    def __init__(self, workdir: Path, start_step: int):
        # It would import torch, where that is installed: 1.4 s and 140 MiB for nothing. Not needed
        # to read a record.
        with _without("torch"):
            from tensorboardX.proto import event_pb2, summary_pb2
            from tensorboardX.record_writer import RecordWriter
        self._events, self._summaries = event_pb2, summary_pb2
        self._flushed = 0.0
        resumed = any(workdir.glob("events.out.tfevents.*"))
        # With the whole second alone, a quick restart would overwrite the first file.
        name = f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{time.time_ns()}"
        self._file = RecordWriter(str(workdir / name))
        self._write(0, file_version="brain.Event:2")
        if resumed:
            begun = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(start_step + 1, session_log=begun)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Adds a point to the curve of every name."""
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
    """Inside of this, a module that nobody has imported so far is not there."""
    unknown = module not in sys.modules
    if unknown:
        sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if unknown:
            del sys.modules[module]
