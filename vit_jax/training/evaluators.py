"""Evaluations during training, each at its own interval: accuracy, and protocols on other data.

An evaluator takes the parameters and returns metrics; it compiles once, runs on the mesh of the
training run, and counts every example once.
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Container, Mapping
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.data.source import Source, Subset
from vit_jax.data.specs import split_specs
from vit_jax.errors import UserError
from vit_jax.evaluation import classification, options, protocols, run
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import of_model
from vit_jax.training.prepared import Evaluator, Periods, Program, Setup

#: Keys of every section of config.evaluators besides the options of its evaluator.
COMMON = {
    option.name: option
    for option in (
        options.Option("name", str, "", "the evaluator; by default that of the section's key"),
        options.Option("data", str, "", "its data sets; off without any"),
        options.Option("every_steps", int | None, None, "its interval"),
        options.Option("every_epochs", float | None, None, "its interval; default: at the end"),
    )
}


#: Name of the accuracy on training images; see `config.eval_training_images`.
ON_TRAINING = "train_eval"
#: The beginnings of other metrics of a run.
TAKEN = ("eval", ON_TRAINING, "train", "best", "roll_back")


class Protocol(NamedTuple):
    """A section of config.evaluators: an evaluator, its data, options and interval."""

    evaluator: protocols.Evaluator
    data: DataSets
    options: dict[str, object]
    section: dict[str, object]


def chosen(config: ConfigDict) -> dict[str, Protocol]:
    """{key: Protocol} for the evaluators that have data.

    Raises:
      UserError: an unknown evaluator or option, or a value of the wrong type.
    """
    found = {}
    for key, section in config.evaluators.items():
        where = f"config.evaluators.{key}"
        if not isinstance(section, ConfigDict):
            raise UserError(f"{where}={section!r} must be a section: {where}.data=SPEC.")
        if key in TAKEN:
            raise UserError(
                f"{where}: other metrics of a run begin with {key}/; give the section another name."
            )
        evaluator = configuration.pick(
            protocols.EVALUATORS, section.get("name") or key, f"{where}.name"
        )
        own = options.options_of(evaluator)
        values = options.chosen(COMMON | own, section.to_dict(), where)
        if values["data"]:
            found[key] = Protocol(
                evaluator,
                DataSets(split_specs(str(values["data"])), config.data.data_dir),
                {name: values[name] for name in own},
                values,
            )
    return found


def periods(config: ConfigDict, steps_per_epoch: float) -> Periods:
    """The interval of each evaluator of a configuration; checks that its data sets exist.

    Raises:
      UserError: a missing data set, or see `chosen`.
    """
    every = functools.partial(configuration.duration, steps_per_epoch=steps_per_epoch)
    found: Periods = {"eval": every(config, "eval_every")}
    if config.eval_training_images:
        found[ON_TRAINING] = found["eval"]
    for key, protocol in chosen(config).items():
        with naming(key, protocol.section):
            protocols.sources(protocol.evaluator, protocol.data, protocol.options)
        found[key] = every(protocol.section, "every")
    return found


def sources(config: ConfigDict) -> list[Source]:
    """The data sets of evaluators that need all of their images."""
    return [
        source
        for evaluator, data, options, _ in chosen(config).values()
        if not options.get("max_bad_images")
        for source in protocols.sources(evaluator, data, options)
    ]


def evaluators(setup: Setup, on_bad: Callable[[str], None] | None = None) -> dict[str, Evaluator]:
    """{name: evaluator} for a training run's Setup, as in its `periods`.

    on_bad: called for unreadable images in the run's own data; None: raise.
    """
    others = chosen(setup.config)
    step = run.jit_eval_step(setup.program.objective.measure, setup.program.mesh)
    own = {"eval": setup.data.evaluation}
    if setup.config.eval_training_images:
        own[ON_TRAINING] = some_training_images(setup)
    return {
        key: accuracy(setup, step, key, own[key], on_bad)
        if key in own
        else protocol(setup, key, others[key])
        for key in setup.plan.periods
    }


def some_training_images(setup: Setup) -> Source:
    """`config.eval_training_images` of the training images, the same for equal seeds."""
    train, count = setup.data.train, setup.config.eval_training_images
    rng = np.random.default_rng(setup.config.seed)
    chosen = np.sort(rng.permutation(len(train))[:count])
    return Subset(train, chosen, f"{len(chosen)} of {train.spec}")


def eval_batch_size(config: ConfigDict) -> int:
    """As configured, or the micro-batch of training, which is known to fit."""
    return config.eval_batch_size or config.batch_size // config.accumulation_steps


def accuracy(
    setup: Setup,
    step: Callable,
    name: str,
    source: Source,
    on_bad: Callable[[str], None] | None = None,
) -> Evaluator:
    """Top-1, top-5 and plain loss on a split of the run's own data, as {name/...}.

    step: the jitted measure of the objective.
    """

    def evaluate(
        params: Mapping[str, jax.Array], on_batch: Callable[[int], None]
    ) -> dict[str, float]:
        results = run.over_source(
            functools.partial(step, params),
            source,
            setup.data.eval_transform,
            batch_size=eval_batch_size(setup.config),
            mesh=setup.program.mesh,
            num_threads=setup.config.data.num_threads,
            on_batch=on_batch,
            on_bad=on_bad,
        )
        summary = classification.summarise(results)
        return {f"{name}/{key}": value for key, value in summary.items()}

    return evaluate


def metric_names(program: Program, batch: Mapping[str, jax.ShapeDtypeStruct]) -> list[str]:
    """Names of the metrics that `accuracy` will report."""
    measure = jax.eval_shape(program.objective.measure, program.abstract_state.params, batch)
    one = {name: np.zeros((1, *leaf.shape[1:])) for name, leaf in measure.items()}
    one["label"] = np.ones((1, *batch["label"].shape[1:]), np.int8)
    summary = classification.summarise(one)
    return [f"eval/{name}" for name in summary]


def protocol(setup: Setup, key: str, asked: Protocol) -> Evaluator:
    """A suite of `vit-jax evaluate` as an evaluator, with metrics KEY/..."""

    def evaluate(
        params: Mapping[str, jax.Array], on_batch: Callable[[int], None]
    ) -> dict[str, float]:
        forward = of_model(
            setup.program.model,
            dict(params),
            setup.program.mesh,
            batch_size=eval_batch_size(setup.config),
        )
        data = asked.data._replace(progress=lambda total, text: contextlib.nullcontext(on_batch))
        with naming(key, asked.section):
            result = protocols.evaluate(asked.evaluator, forward, data, asked.options)
        return {f"{key}/{name}": value for name, value in result.metrics.items()}

    return evaluate


@contextlib.contextmanager
def naming(key: str, names: Container[str]):
    """Adds the section of the configuration to errors, and to flags with one of `names` in them."""

    def as_setting(flag: re.Match) -> str:
        return f"config.evaluators.{key}.{flag[1]}" if flag[1] in names else flag[0]

    try:
        yield
    except UserError as error:
        text = re.sub(r"--(\w+)", as_setting, str(error))
        raise UserError(f"config.evaluators.{key}: {text}") from error
