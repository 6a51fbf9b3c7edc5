"""The training loop: a step, and the events that are due after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax

from vit_jax.training.state import TrainState

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]


class Event(NamedTuple):
    """due(step), counting from 1: whether `act(step, state, metrics)` runs after it.

    act: it may return another state to continue with.
    """

    due: Callable[[int], bool]
    act: Callable[[int, TrainState, Metrics], TrainState | None]


class Run(NamedTuple):
    """A run in progress, with its events in order: log, roll back, save, evaluate, stop.

    over(step): whether a completed step was the last.
    """

    over: Callable[[int], bool]
    step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    batches: Iterator[Batch]
    events: Sequence[Event]

    def after(self, step: int, state: TrainState, metrics: Metrics) -> TrainState:
        for event in self.events:
            if event.due(step):
                state = event.act(step, state, metrics) or state
        return state


def loop(run: Run, state: TrainState) -> TrainState:
    """Trains from `state`, whose arrays are donated to the first step, to the end."""
    step = int(state.step)
    while not run.over(step):
        step += 1
        state, metrics = run.step(state, next(run.batches))
        state = run.after(step, state, metrics)
    return state
