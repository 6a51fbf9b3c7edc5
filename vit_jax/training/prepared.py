"""The result of a configuration, built by setup.py and read by the parts of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax

from vit_jax import models
from vit_jax.config import ConfigDict
from vit_jax.numerics import Numerics
from vit_jax.objectives.objective import Objective
from vit_jax.training.best import Rule
from vit_jax.training.sources import Data
from vit_jax.training.state import TrainState

#: (parameters, callback with the count so far after every batch) -> metrics
Evaluator = Callable[[Mapping[str, jax.Array], Callable[[int], None]], dict[str, float]]
#: {name: interval in steps; None: at the end}; "eval" is the accuracy on the run's own data.
Periods = dict[str, int | None]


class Plan(NamedTuple):
    """Length, learning rate and intervals of evaluators, in steps. keep: None: off."""

    total_steps: int
    warmup_steps: int
    schedule: Callable  # step -> learning rate
    periods: Periods
    keep: Rule | None = None

    @property
    def periods_during_training(self) -> Periods:
        """Intervals before the end; evaluators that run once evaluate what is exported."""
        once = self.keep is None
        return {name: steps for name, steps in self.periods.items() if steps or once}


class Program(NamedTuple):
    """What is computed, as functions not yet jitted, and where."""

    model: models.ModelConfig
    numerics: Numerics
    mesh: jax.sharding.Mesh
    objective: Objective
    train_step: Callable  # (state, batch) -> (state, metrics)
    initialise: Callable  # () -> TrainState on the mesh
    abstract_state: TrainState


class Setup(NamedTuple):
    """Everything that follows from a configuration, before any array exists."""

    config: ConfigDict
    data: Data
    plan: Plan
    program: Program
    notes: list[str]
