"""A trace of some steps of a run, and a summary of who waits for whom.

The trace is JAX's own, in `WORKDIR/profile`, for Perfetto (ui.perfetto.dev opens the
`.trace.json.gz`) or TensorBoard. The names below annotate the loop's phases in it.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

from vit_jax.errors import UserError

STEP, WAIT_FOR_INPUT, TO_DEVICES = "train", "wait for input", "to devices"
#: The argument that events of compiled operations have, on every kind of device.
OPERATION = "hlo_op"
#: (begin, end) in integer nanoseconds, so that sums and differences are exact.
Interval = tuple[int, int]
Intervals = list[Interval]

phase = jax.profiler.TraceAnnotation


def check_steps(steps: Sequence[int], total: int) -> None:
    """Raises UserError unless `config.profile_steps` is empty or (first, last) of a run."""
    if not steps:
        return
    if not 1 <= steps[0] <= steps[1] <= total:
        raise UserError(
            f"config.profile_steps={steps} must be two steps of this run, 1 to {total}, in order."
        )


class Profile:
    """Traces the steps first..last of a loop into `directory`; without steps, does nothing."""

    def __init__(self, directory: Path, steps: Sequence[int]):
        self.directory, self.running = directory, False
        self.first, self.last = steps or (0, 0)

    def begin(self, step: int) -> jax.profiler.StepTraceAnnotation:
        """The context of a step; starts the trace at the first one."""
        if step == self.first:
            options = jax.profiler.ProfileOptions()
            options.python_tracer_level = 0  # traces of Python calls are large and slow
            jax.profiler.start_trace(str(self.directory), profiler_options=options)
            self.running = True
        return jax.profiler.StepTraceAnnotation(STEP, step_num=step)

    def is_last(self, step: int) -> bool:
        """Whether a trace is being taken, which ends with this step."""
        return self.running and step >= self.last

    def end(self) -> Facts:
        """Ends the trace when the last step's results are ready; returns its summary."""
        self.close()
        return facts(self.directory)

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


class Facts(NamedTuple):
    """Summary of the steps of a trace; times in ms, shares in percent of the whole time."""

    steps: int
    milliseconds: float
    computed_percent: float  # from the first to the last operation of each program
    input_wait_percent: float
    to_devices_percent: float
    overlapped_percent: float  # of the transfer time, while devices compute

    def __str__(self) -> str:
        return (
            f"{self.steps} steps of {self.milliseconds:.3g} ms: devices computed "
            f"{self.computed_percent:.0f}% of the time, the loop waited for input "
            f"{self.input_wait_percent:.2g}%, transfers took {self.to_devices_percent:.2g}%, "
            f"{self.overlapped_percent:.0f}% of that overlapped with computation"
        )


def facts(directory: Path) -> Facts:
    """Reads the newest trace below `directory`.

    Raises:
      UserError: there is no trace, or no training step in it.
    """
    files = sorted(Path(directory).rglob("*.trace.json.gz"))
    if not files:
        raise UserError(f"There is no trace in {directory}.")
    events = json.loads(gzip.decompress(files[-1].read_bytes()))["traceEvents"]
    spans = [event for event in events if event.get("ph") == "X"]
    steps = _named(spans, STEP)
    if not steps:
        raise UserError(f"The trace in {files[-1]} has no training steps.")
    begin, end = min(a for a, _ in steps), max(b for _, b in steps)
    programs: dict[object, Intervals] = {}  # the operations of each execution of a program
    for number, event in enumerate(spans):
        if OPERATION in event.get("args", {}):
            run = event["args"].get("run_id", number)
            programs.setdefault(run, []).append(interval(event))
    work = union((min(a for a, _ in run), max(b for _, b in run)) for run in programs.values())
    waits, moves = union(_named(spans, WAIT_FOR_INPUT)), union(_named(spans, TO_DEVICES))
    return Facts(
        steps=len(steps),
        milliseconds=(end - begin) / 1e6 / len(steps),
        computed_percent=100 * overlap(work, [(begin, end)]) / (end - begin),
        input_wait_percent=100 * length(waits) / (end - begin),
        to_devices_percent=100 * length(moves) / (end - begin),
        overlapped_percent=100 * overlap(moves, work) / (length(moves) or 1),
    )


def _named(spans: Iterable[dict], name: str) -> Intervals:
    return [interval(event) for event in spans if event["name"] == name]


def interval(event: dict) -> Interval:
    """Begin and end of a trace event, which is given in microseconds."""
    return round(1e3 * event["ts"]), round(1e3 * (event["ts"] + event["dur"]))


def union(intervals: Iterable[Interval]) -> Intervals:
    """The same set of points as sorted, disjoint intervals."""
    merged: Intervals = []
    for begin, end in sorted(intervals):
        if merged and begin <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(merged[-1][1], end)
        else:
            merged.append((begin, end))
    return merged


def length(intervals: Intervals) -> int:
    return sum(end - begin for begin, end in intervals)


def overlap(a: Intervals, b: Intervals) -> int:
    """Length of the intersection of `a` and `b`, both from `union`."""
    return length(a) + length(b) - length(union([*a, *b]))
