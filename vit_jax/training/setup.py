"""Builds everything that follows from a configuration, before any array exists."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import config as configuration, models
from vit_jax.config import ConfigDict
from vit_jax.data.remarks import small_images
from vit_jax.data.source import Source
from vit_jax.errors import UserError, need
from vit_jax.interop import load
from vit_jax.models import adapt
from vit_jax.numerics import Machine, remat
from vit_jax.objectives.objective import Objective
from vit_jax.runtime import determinism, profiling, sharding
from vit_jax.training import best, by_layer, optim, state as train_state
from vit_jax.training.evaluators import chosen, metric_names, periods
from vit_jax.training.objective import loss_function, needs_labels, objective_of
from vit_jax.training.prepared import Plan, Program, Setup
from vit_jax.training.sources import Data, data_of, open_sources
from vit_jax.training.step import make_train_step

#: Value of `config.model.variant` that takes the architecture from `config.init_from`.
OF_CHECKPOINT = "checkpoint"


def set_up(
    config: ConfigDict,
    *,
    resuming: bool = False,
    sources: tuple[Source, Source] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    machine: Machine | None = None,
) -> Setup:
    """Opens the data and builds the model's functions, steps and shardings from a configuration.

    Args:
      resuming: `init_from` is not read; its weights are no longer needed.
      sources: open training and evaluation data, instead of `config.data`.
      mesh: instead of `config.mesh` over the local devices, e.g. of a remote pod.
      machine: the target of compilation, instead of this machine.

    Raises:
      UserError: something does not exist or does not fit; says which setting.
    """
    mesh = check_settings(config, mesh)
    if config.deterministic:
        determinism.check()
    opened = (
        open_sources(config, labelled=needs_labels(config)) if sources is None else (*sources, [])
    )
    by_layer.check(config)
    needed = not resuming or config.model.variant == OF_CHECKPOINT
    initial = load.read(config.init_from) if config.init_from and needed else None
    model = model_config(config, opened[0], initial)
    data = data_of(config, model, *opened)
    plan = plan_of(config, len(data.train))
    notes = [*data.notes, *([] if sources else small_images(data.train, model.image_size))]
    program = program_of(config, model, data, plan, mesh, initial, notes, machine)
    setup = Setup(config, data, plan, program, notes)
    if plan.keep and plan.keep.evaluator == "eval":
        best.check_metric(plan.keep, metric_names(program, abstract_batch(setup)))
    return setup


def check(config: ConfigDict) -> None:
    """Raises UserError for errors that can be found before the weights of `init_from` exist.

    Checks settings, data, model, schedule and evaluators; builds nothing.
    """
    check_settings(config)
    check_names(config)
    opened = open_sources(config, labelled=needs_labels(config))
    if config.model.variant != OF_CHECKPOINT:
        model = model_config(config, opened[0], None)
        models.numerics_of(model)
        by_layer.rate_of(config, model)
        data_of(config, model, *opened)
    plan_of(config, len(opened[0]))


def check_names(config: ConfigDict) -> None:
    """Raises UserError for errors that do not depend on data, weights or devices.

    Launchers call it on the user's machine, which need not be able to run the experiment.
    """
    if config.model.variant != OF_CHECKPOINT:
        models.get_config(**configuration.section(config, "model"))
    optimizer_of(config)
    loss_function(config)
    needs_labels(config)
    chosen(config)


def check_settings(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> jax.sharding.Mesh:
    """Checks that settings are valid and consistent; returns the mesh."""
    configuration.check(config)
    if config.wandb:
        need("config.wandb", "wandb")
    check_memory(config)
    if mesh is None:
        mesh = sharding.make_mesh(**configuration.section(config, "mesh"))
    check_batch(config, mesh)
    return mesh


def plan_of(config: ConfigDict, num_examples: int) -> Plan:
    """The durations of a configuration in steps, and its learning rates.

    Raises:
      UserError: no length, a warm-up or trace that does not fit it, or a missing data set.
    """
    epoch = num_examples / config.batch_size  # in steps, unrounded
    in_steps = functools.partial(configuration.duration, steps_per_epoch=epoch)
    total_steps = in_steps(config, "total")
    if not total_steps:
        raise UserError("config.total_steps or config.total_epochs must be set.")
    profiling.check_steps(config.profile_steps, total_steps)
    warmup_steps = in_steps(config.schedule, "warmup", total_steps=total_steps) or 0
    schedule = optim.learning_rate_schedule(
        config.schedule.decay,
        config.schedule.learning_rate,
        total_steps,
        warmup_steps,
        config.schedule.final_learning_rate,
        config.schedule.boundaries_percent,
    )
    found = periods(config, epoch)
    return Plan(total_steps, warmup_steps, schedule, found, best.rule_of(config, found))


def program_of(
    config: ConfigDict,
    model: models.ModelConfig,
    data: Data,
    plan: Plan,
    mesh: jax.sharding.Mesh,
    initial: load.Weights | None,
    notes: list[str],
    machine: Machine | None = None,
) -> Program:
    """The functions of a run; adaptations of `initial` weights are added to `notes`."""
    numerics = models.numerics_of(model, machine)
    objective = objective_of(config, model, numerics, data.class_weights)
    make_params, argument = initial_params(config, model, initial, mesh, notes)
    initialise, abstract_state = train_state.initialise(
        lambda argument: make_params(argument) | objective.init(jax.random.key(config.seed)),
        argument,
        optimizer_of(config),
        mesh,
        polyak=config.polyak_decay is not None,
        consume=initial is not None,
    )
    step = train_step_of(config, model, objective, plan)
    return Program(model, numerics, mesh, objective, step, initialise, abstract_state)


def optimizer_of(config: ConfigDict) -> optax.GradientTransformation:
    return configuration.call(optim.OPTIMIZERS, "config.optimizer", config.optimizer)


def train_step_of(
    config: ConfigDict, model: models.ModelConfig, objective: Objective, plan: Plan
) -> Callable:
    """The training step of a configuration, not yet jitted."""
    rate = by_layer.rate_of(config, model)
    return make_train_step(
        by_layer.frozen(objective, rate),
        by_layer.with_rates(optimizer_of(config), rate),
        plan.schedule,
        seed=config.seed,
        gradient_clip_norm=config.gradient_clip_norm,
        polyak_decay=config.polyak_decay,
        polyak_ramp=config.polyak_ramp,
        threefry=config.dropout_bits == "threefry",
        accumulation_steps=config.accumulation_steps,
    )


def computed_as(
    setup: Setup,
    *,
    remat: bool | str | None = None,
    attention: str | None = None,
    accumulation_steps: int | None = None,
) -> Setup:
    """The same run with other settings of how to compute; None: unchanged."""
    config, model = setup.config.copy_and_resolve_references(), setup.program.model
    config.accumulation_steps = accumulation_steps or config.accumulation_steps
    model = models.replace(model, remat=model.remat if remat is None else remat)
    if attention is not None and isinstance(model, models.ViTConfig):
        model = models.replace(model, attention=attention)
    numerics = models.numerics_of(model, setup.program.numerics.machine)
    objective = objective_of(config, model, numerics, setup.data.class_weights)
    step = train_step_of(config, model, objective, setup.plan)
    program = setup.program._replace(
        model=model, numerics=numerics, objective=objective, train_step=step
    )
    return setup._replace(config=config, program=program)


def check_memory(config: ConfigDict) -> None:
    """Raises UserError if `config.memory` conflicts with another setting."""
    chosen = config.accumulation_steps != 1 or config.model.remat is not None
    if config.memory == "auto" and chosen:
        raise UserError(
            "config.memory=auto chooses config.accumulation_steps and config.model.remat itself; "
            "leave them out, or leave config.memory as_configured."
        )


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """Raises UserError unless devices times accumulation steps divide the global batch."""
    divisor = sharding.batch_divisor(mesh) * config.accumulation_steps
    if config.batch_size % divisor:
        fits = max(divisor, config.batch_size // divisor * divisor)
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide by "
            f"{sharding.batch_divisor(mesh)} devices x {config.accumulation_steps} "
            f"accumulation steps; {fits} would."
        )


def model_config(
    config: ConfigDict, source: Source, initial: load.Weights | None
) -> models.ModelConfig:
    """The model of `config.model` for the classes of `source`, in the compute dtype."""
    overrides = configuration.section(config, "model")
    classes = overrides.setdefault("num_classes", source.num_classes)
    if classes < source.num_classes:
        raise UserError(
            f"config.model.num_classes={classes} is less than the {source.num_classes} classes "
            f"of {source.spec}; leave it out to take them from the data."
        )
    labels = tuple(source.class_names) if classes == source.num_classes else ()
    overrides |= {
        "labels": labels,
        "multilabel": source.multilabel,
        "thresholds": (),
        "temperature": None,
        "preprocessing": tuple(
            sorted(({"orient": config.data.orient} | config.eval_preprocess.to_dict()).items())
        ),
        "dtype": compute_dtype(config.compute_dtype),
    }
    if overrides["variant"] != OF_CHECKPOINT:
        return with_channels(models.get_config(**overrides), config)
    if initial is None:
        raise UserError(
            f"config.model.variant={OF_CHECKPOINT!r} takes the architecture from "
            "config.init_from, which is not set."
        )
    found, _ = initial
    overrides["variant"] = found.variant
    if isinstance(found, models.ViTConfig):  # a new task: the linear head, unless configured
        found = models.replace(found, representation_size=None)
    return with_channels(models.override(found, **overrides), config)


def with_channels(model: models.ModelConfig, config: ConfigDict) -> models.ModelConfig:
    """The model, with the number of channels in its preprocessing.

    Raises:
      UserError: the objective needs RGB.
    """
    if model.channels != 3 and config.objective.name == "masked_patches":
        raise UserError(
            f"config.model.channels={model.channels}: masked_patches predicts colours, of 3 "
            "channels."
        )
    preprocessing = adapt.with_channels(model.preprocessing, model.channels)
    return models.replace(model, preprocessing=preprocessing)


def compute_dtype(name: str) -> str:
    """ "auto" is bfloat16 on accelerators, float32 on CPU."""
    if name == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return name


def initial_params(
    config: ConfigDict,
    model: models.ModelConfig,
    initial: load.Weights | None,
    mesh: jax.sharding.Mesh,
    notes: list[str],
) -> tuple[Callable[..., dict[str, jax.Array]], jax.Array | dict[str, jax.Array]]:
    """The source of the weights, as a function and its argument: `init_from`, or the seed."""
    if initial is None:
        init, _ = models.as_functions(model)
        return init, jax.random.key(config.seed)
    found, params = initial
    adapted, changes = adapt.adapt(found, params, model, new_head=not config.keep_head)
    notes.append(f"weights from {config.init_from} ({found.variant})")
    notes.extend(f"adapted {change}" for change in changes)
    return dict, sharding.params_to_devices(adapted, mesh)


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch as shapes, dtypes and shardings."""
    model = setup.program.model
    where = sharding.batch_sharding(setup.program.mesh)
    b, (h, w), c = setup.config.batch_size, model.image_size, model.channels
    label = jax.ShapeDtypeStruct((b,), np.int32, sharding=where)
    if model.multilabel:
        label = jax.ShapeDtypeStruct((b, setup.data.train.num_classes), np.int8, sharding=where)
    return {
        "image": jax.ShapeDtypeStruct((b, h, w, c), np.uint8, sharding=where),
        "label": label,
    }


def jit_train_step(setup: Setup):
    """The training step, jitted, with the state donated."""
    program = setup.program
    replicated = NamedSharding(program.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, program.abstract_state)
    return jax.jit(
        program.train_step,
        donate_argnums=0,
        out_shardings=(shardings, replicated),
        compiler_options=remat.compiler_options(program.model.remat),
    )


def compile_train_step(setup: Setup) -> jax.stages.Compiled:
    """The training step, compiled ahead of time."""
    return (
        jit_train_step(setup).lower(setup.program.abstract_state, abstract_batch(setup)).compile()
    )
