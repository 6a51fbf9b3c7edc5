"""What is measured while training, each at its own interval: accuracy, and protocols on other data.

An evaluator takes the parameters and returns metrics; it compiles once, runs on the mesh of the
training run, and counts every example once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from vit_jax import config as configuration, data
from vit_jax.config import ConfigDict
from vit_jax.data.specs import parse_spec, split_specs
from vit_jax.errors import UserError
from vit_jax.evaluation import classification, objectnet, run, suites

#: (parameters, called with the count so far after every batch) -> metrics
Evaluator = Callable[[Mapping[str, jax.Array], Callable[[int], None]], dict[str, float]]
#: {name: every so many steps; None: at the end}; "eval" is the accuracy on the run's own data.
Periods = dict[str, int | None]


def periods(config: ConfigDict, steps_per_epoch: float) -> Periods:
    """When each evaluator of a configuration runs; its data sets are looked for.

    Raises:
      UserError: a data set that is not there.
    """
    found: Periods = {
        "eval": configuration.duration(config, "eval_every", steps_per_epoch=steps_per_epoch)
    }
    for name, section in config.evaluators.items():
        if not section.data:
            continue
        for spec in split_specs(section.data):
            if name == "objectnet":
                objectnet.class_map(suites.objectnet_root(spec))
            elif parse_spec(spec)[2]:
                data.open_source(spec, data_dir=config.data.data_dir)
            else:
                data.default_splits(spec, data_dir=config.data.data_dir)
        found[name] = configuration.duration(section, "every", steps_per_epoch=steps_per_epoch)
    return found


def sources(config: ConfigDict) -> Iterator[Any]:
    """The data sets of a configuration's evaluators, all parts that they read; not ObjectNet's."""
    where = {"data_dir": config.data.data_dir}
    for name, section in config.evaluators.items():
        if section.data and name != "objectnet":
            for spec in split_specs(section.data):
                parts = [spec] if parse_spec(spec)[2] else data.default_splits(spec, **where)
                for part in dict.fromkeys(parts):
                    yield data.open_source(part, **where)


def evaluators(setup: Any, on_bad: Callable[[str], None] | None = None) -> dict[str, Evaluator]:
    """{name: evaluator} of a training run's Setup, as in its `periods`.

    on_bad: called for images of the run's own data that cannot be read; None raises.
    """
    return {
        name: accuracy(setup, on_bad) if name == "eval" else protocol(setup, name)
        for name in setup.plan.periods
    }


def eval_batch_size(config: ConfigDict) -> int:
    """As configured, or the images of a forward pass of training, which are known to fit."""
    return config.eval_batch_size or config.batch_size // config.accumulation_steps


def accuracy(setup: Any, on_bad: Callable[[str], None] | None = None) -> Evaluator:
    """Top-1, top-5 and loss on the evaluation split of the run's own data."""
    step = run.jit_eval_step(setup.program.objective.measure, setup.program.mesh)
    source = setup.data.evaluation
    batch_size = eval_batch_size(setup.config)

    def evaluate(params, on_batch: Callable[[int], None]) -> dict[str, float]:
        results = run.run_model(
            setup.program.model,
            params,
            source,
            step,
            batch_size=batch_size,
            mesh=setup.program.mesh,
            transform=setup.data.eval_transform,
            num_threads=setup.config.data.num_threads,
            on_batch=on_batch,
            on_bad=on_bad,
        )
        summary = classification.summarise(results)
        return {f"eval/{key}": value for key, value in summary.items()}

    return evaluate


def protocol(setup: Any, name: str) -> Evaluator:
    """A suite of `vit-jax evaluate` as an evaluator; its metrics are NAME/..."""
    section = setup.config.evaluators[name]
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in section.to_dict().items()
        if key not in ("data", "every_steps", "every_epochs") and value != ""
    }

    def evaluate(params, on_batch: Callable[[int], None]) -> dict[str, float]:
        request = suites.Request(
            config=setup.program.model,
            params=dict(params),
            specs=split_specs(section.data),
            data_dir=setup.config.data.data_dir,
            batch_size=eval_batch_size(setup.config),
            mesh=setup.program.mesh,
            progress=lambda total, text: contextlib.nullcontext(on_batch),
            **options,
        )
        try:
            metrics = suites.SUITES[name](request).metrics
        except UserError as error:
            raise UserError(f"config.evaluators.{name}: {error}") from error
        return {f"{name}/{key}": value for key, value in metrics.items()}

    return evaluate
