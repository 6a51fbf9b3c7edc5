"""What happens between two steps, in this order: log, roll back, save, evaluate, stop.

Logs are on disk before the step is saved, and a step is saved before its evaluation, which is slow
and may fail: a run that ends in between evaluates after the resume.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax.errors import Diverged, Preempted
from vit_jax.models.fingerprints import Record
from vit_jax.runtime.distributed import StopRequest
from vit_jax.runtime.logbook import Logbook
from vit_jax.runtime.pace import Clock, Paced
from vit_jax.runtime.watchdog import Watchdog
from vit_jax.training.best import OF_MODEL, Best
from vit_jax.training.checkpoint import BEST, Checkpoints
from vit_jax.training.loop import Event
from vit_jax.training.prepared import Evaluator, Plan
from vit_jax.training.spikes import LOOK_BACK, Spike, Spikes
from vit_jax.training.state import TrainState, evaluated_params


class Instruments(NamedTuple):
    """State shared by the events of a run. results: the newest value of every metric."""

    log: Logbook
    results: dict[str, float]
    clock: Clock
    pace: Paced
    watchdog: Watchdog
    checkpoints: Checkpoints
    meta: Record  # the run's record in every checkpoint
    best: Best
    spikes: Spikes


def every(steps: int | None, *, last: int, first: int | None = None) -> Callable[[int], bool]:
    """Due every so many steps, at the last one, and at the first of this process if given."""
    return lambda step: step in (first, last) or bool(steps and step % steps == 0)


def always(step: int) -> bool:
    """After each step."""
    del step
    return True


def logged(
    shared: Instruments,
    measured_memory: Callable[[], dict[str, float]],
    *,
    due: Callable[[int], bool],
    max_skipped_steps: int,
) -> Event:
    """Logs training metrics; the progress bar moves at each step.

    Consecutive skipped updates are counted on the devices. The count of each step is read a few
    steps later, at the same step on all processes, so that no device waits; not if it has been
    taken back by then.

    Raises:
      Diverged: from the event, after `max_skipped_steps` consecutive skipped updates.
    """
    in_a_row: collections.deque[tuple[int, jax.Array]] = collections.deque()

    def read_counts(left: int) -> None:
        while len(in_a_row) > left:
            step, count = in_a_row.popleft()
            if not shared.spikes.was_taken_back(step):
                abort_if_stuck(count, max_skipped_steps)

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        count = metrics["train/skipped_in_a_row"]
        count.copy_to_host_async()
        in_a_row.append((step, count))
        read_counts(LOOK_BACK)
        if due(step):
            record = {key: float(value) for key, value in metrics.items()}
            record |= shared.clock.read(step) | measured_memory()
            read_counts(0)
            shared.log.write(step, record)
            shared.results.update(record)
        shared.log.advance(step)

    return Event(always, act)


def abort_if_stuck(in_a_row: jax.Array, limit: int) -> None:
    """Stops a run whose updates are no longer finite; its checkpoints are all finite."""
    if (bad := int(in_a_row)) >= limit:
        raise Diverged(
            f"The last {bad} gradients or updates were not finite and were skipped; lower "
            "config.schedule.learning_rate, or set config.gradient_clip_norm, and start again."
        )


def rolled_back(shared: Instruments, abstract: TrainState) -> Event:
    """After a loss spike, continues with the weights of the last checkpoint before it.

    Raises:
      Diverged: from the event, at a spike after the last roll-back that is allowed.
      CheckpointError: that checkpoint cannot be used.
    """
    spikes = shared.spikes

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> TrainState | None:
        if (spike := spikes.note(metrics["train/loss"])) is None:
            return None
        target, seen = spikes.target(step), f"loss spike before step {step} ({described(spike)})"
        if target is None:
            spikes.losses.clear()  # what is usual from here on
            shared.log.say(f"{seen}; there was no checkpoint before it, and the run continues")
            return None
        assert spikes.rule is not None
        if len(spikes.ranges) >= spikes.rule.limit:
            raise Diverged(
                f"A {seen}, and the run was rolled back {len(spikes.ranges)} times already "
                "(config.roll_back.limit). Lower config.schedule.learning_rate, or set "
                "config.gradient_clip_norm, and start again."
            )
        shared.log.say(
            f"{seen}; rolled back to the weights of step {target}, without the batches of steps "
            f"{target + 1} to {step}"
        )
        shared.pace.wait()
        shared.checkpoints.wait()
        jax.tree.map(lambda leaf: leaf.delete(), state)  # there is memory for one of them only
        before = shared.checkpoints.restore_named(target, abstract, "to which the run rolls back")
        state = without_updates(before, step)
        spikes.take_back(step, target, spike)
        values = {"from": target + 1, "to": step, "loss": spike.loss, "usual": spike.usual}
        shared.log.write(step, {f"roll_back/{key}": value for key, value in values.items()})
        save(shared, step, state)
        return state

    return Event(always, act)


def without_updates(state: TrainState, step: int) -> TrainState:
    """The state after `step`, as if the updates since `state` had been skipped."""
    taken = step - int(state.step)
    counts = {"step": step, "skipped": int(state.skipped) + taken, "skipped_in_a_row": 0}
    where = state.step.sharding
    return state._replace(**{k: jax.device_put(np.int32(n), where) for k, n in counts.items()})


def described(spike: Spike) -> str:
    """What was seen, in words."""
    loss = f"{spike.loss:.4g}" if math.isfinite(spike.loss) else "not finite"
    return f"{loss}, usually {spike.usual:.4g}"


def save(shared: Instruments, step: int, state: TrainState) -> None:
    """Saves a checkpoint in the background, with the record of the best so far and of spikes."""
    meta = shared.meta
    if (best := shared.best.record()) is not None:
        meta = {**meta, "best": best}
    if (losses := shared.spikes.record()) is not None:
        meta = {**meta, "roll_back": losses}
    with shared.pace.aside():
        shared.checkpoints.save(step, state, meta)
    shared.watchdog.beat(f"a checkpoint of step {step}", progress=True)


def saved(shared: Instruments, *, every_steps: int, total_steps: int) -> Event:
    """Saves a checkpoint while training continues; waits for that of the last step.

    Raises:
      CheckpointError: from the event, if the previous one was not written.
    """
    due = every(every_steps, last=total_steps)

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        if shared.checkpoints.check():
            shared.pace.trim()  # it has freed its memory
        if step % every_steps == 0:
            shared.spikes.anchor(step)
        if due(step):
            save(shared, step, state)
        if step == total_steps:
            shared.checkpoints.wait()

    return Event(always, act)


def due_evaluators(step: int, periods: Mapping[str, int | None], total_steps: int) -> list[str]:
    """The names of the evaluators that run after a step."""
    return [name for name, n in periods.items() if every(n, last=total_steps)(step)]


Stop = Callable[[int, TrainState], None]


def evaluate(
    shared: Instruments,
    evaluators: Mapping[str, Evaluator],
    step: int,
    state: TrainState,
    request: StopRequest,
    stop: Stop,
) -> None:
    """Runs evaluators on the state after a step, and adds their metrics to its log line.

    A request to stop interrupts them, since it may allow 30 seconds only; they run after the
    resume.
    """

    def on_batch(count: int) -> None:
        shared.watchdog.on_batch(count)
        if request.requested():
            stop(step, state)

    record = measure(shared, evaluators, state, on_batch)
    shared.clock.restart(step)
    shared.results.update(record)
    shared.log.write(step, record)


def measure(
    shared: Instruments,
    evaluators: Mapping[str, Evaluator],
    state: TrainState,
    on_batch: Callable[[int], None],
) -> dict[str, float]:
    """The metrics of evaluators on a state."""
    record: dict[str, float] = {}
    with shared.pace.aside():
        for evaluator in evaluators.values():
            record |= evaluator(evaluated_params(state), on_batch)
    return record


def keep_if_best(shared: Instruments, names: list[str], step: int, state: TrainState) -> None:
    """Saves a step whose evaluation, by the named evaluators, is the best so far.

    Raises:
      UserError: the evaluator does not report the configured metric.
    """
    rule = shared.best.rule
    if rule is not None and rule.evaluator in names:
        own = {key: v for key, v in shared.results.items() if key.partition("/")[0] in names}
        if shared.best.note(step, own):
            save(shared, step, state)


def evaluated(
    shared: Instruments,
    evaluators: Mapping[str, Evaluator],
    periods: Mapping[str, int | None],
    total_steps: int,
    request: StopRequest,
    stop: Stop,
) -> Event:
    """Runs the evaluators that are due, and saves the best so far.

    Raises:
      UserError: see `keep_if_best`.
    """

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        names = due_evaluators(step, periods, total_steps)
        due = {name: evaluators[name] for name in names}
        evaluate(shared, due, step, state, request, stop)
        keep_if_best(shared, names, step, state)

    return Event(lambda step: bool(due_evaluators(step, periods, total_steps)), act)


def best_state(
    shared: Instruments,
    plan: Plan,
    evaluators: Mapping[str, Evaluator],
    state: TrainState,
    abstract: TrainState,
) -> tuple[TrainState, dict[str, float]]:
    """The weights to export from a run that ends in `state`, and the metrics for its last line.

    With `keep_best` these are the best evaluated ones; evaluators that run once run on them.

    Raises:
      CheckpointError: the best checkpoint cannot be used.
    """
    best, last = shared.best, int(state.step)
    if best.rule is None:
        return state, {}
    if best.step is None:
        done = due_evaluators(last, plan.periods_during_training, plan.total_steps)
    else:
        done = [key.partition("/")[0] for key in best.values]
        if best.step != last:
            jax.tree.map(lambda leaf: leaf.delete(), state)  # there is memory for one of them only
            state = shared.checkpoints.restore_named(best.step, abstract, BEST)
    left = {name: evaluator for name, evaluator in evaluators.items() if name not in done}
    record = measure(shared, left, state, shared.watchdog.on_batch)
    if best.step is None:
        return state, record
    found = {f"{OF_MODEL}{key}": value for key, value in {**best.values, **record}.items()}
    return state, {f"{OF_MODEL}step": best.step, **found}


def ended_early(shared: Instruments) -> Event:
    """Saves a run that stops early at its last step."""

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        save(shared, step, state)
        shared.checkpoints.wait()

    return Event(lambda step: shared.best.is_over, act)


def saves_and_stops(shared: Instruments, workdir: Path, total_steps: int) -> Stop:
    """Ends a process that was asked to stop, with its step saved.

    Raises:
      Preempted: always.
    """

    def stop(step: int, state: TrainState) -> None:
        save(shared, step, state)
        shared.checkpoints.wait()
        raise Preempted(
            f"asked to stop: saved step {step} of {total_steps} in {workdir}; "
            "run the same command to resume."
        )

    return stop


def stopped(request: StopRequest, stop: Stop, over: Callable[[int], bool]) -> Event:
    """Stops early on request, at the same step on all processes."""

    def act(step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
        if request.requested():
            stop(step, state)

    return Event(lambda step: not over(step), act)
