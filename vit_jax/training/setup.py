"""Everything that a configuration decides, before any array exists."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import config as configuration, data, models
from vit_jax.config import ConfigDict
from vit_jax.data.labels import one_class
from vit_jax.data.relabel import with_classes
from vit_jax.data.remarks import small_images, untrained_classes
from vit_jax.data.source import Without, shared_records
from vit_jax.errors import UserError
from vit_jax.interop import load
from vit_jax.models import adapt
from vit_jax.numerics import Machine, Numerics, remat
from vit_jax.objectives import losses
from vit_jax.objectives.classification import classification
from vit_jax.objectives.objective import Objective
from vit_jax.runtime import profiling, sharding
from vit_jax.training import optim, state as train_state
from vit_jax.training.evaluators import Periods, periods
from vit_jax.training.step import make_train_step


class Setup(NamedTuple):
    """Everything that a configuration decides, before any array exists."""

    config: ConfigDict
    model: models.ModelConfig
    numerics: Numerics
    train_source: Any
    eval_source: Any
    train_transform: Callable
    eval_transform: Callable
    mesh: jax.sharding.Mesh
    total_steps: int
    warmup_steps: int
    periods: Periods
    schedule: Callable
    make_objective: Callable[[Callable], Objective]  # of a model's apply function
    make_train_step: Callable  # (objective, accumulation_steps=...) -> train_step
    train_step: Callable  # (state, batch) -> (state, metrics), not yet jitted
    eval_step: Callable  # (params, batch) -> per-example results, not yet jitted
    initialise: Callable  # () -> TrainState on the mesh
    abstract_state: train_state.TrainState
    notes: list[str]


def set_up(
    config: ConfigDict,
    *,
    resuming: bool = False,
    sources: tuple[Any, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    machine: Machine | None = None,
) -> Setup:
    """Opens the data and builds the model's functions, steps and shardings from a configuration.

    Args:
      resuming: `init_from` is not read; its weights are not needed any more.
      sources: training and evaluation data that are open already, instead of `config.data`.
      mesh: instead of that of `config.mesh` over the devices here, e.g. of a pod elsewhere.
      machine: to be compiled for, instead of this one.

    Raises:
      UserError: something does not exist or does not fit; says which setting.
    """
    notes: list[str] = []
    if mesh is None:
        mesh = sharding.make_mesh(**configuration.section(config, "mesh"))
    check_counts(config)
    check_batch(config, mesh)
    if sources is None:
        train_source, eval_source, notes = open_sources(config)
    else:
        train_source, eval_source = sources
    notes += data_notes(train_source, eval_source)
    needed = not resuming or config.model.variant == OF_CHECKPOINT
    initial = load.read(config.init_from) if config.init_from and needed else None
    model = model_config(config, train_source, initial)
    size = model.image_size
    notes += [] if sources else small_images(train_source, size)
    orient = {"orient": config.data.orient}
    train_transform = data.make_transform(
        size=size, train=True, **orient | config.augment.to_dict()
    )
    eval_transform = data.evaluation_transform(size, model.preprocessing)

    epoch = len(train_source) / config.batch_size  # in steps, not rounded
    in_steps = functools.partial(configuration.duration, steps_per_epoch=epoch)
    total_steps = in_steps(config, "total")
    if not total_steps or total_steps < 1:
        raise UserError("config.total_steps or config.total_epochs must be set and positive.")
    profiling.check_steps(config.profile_steps, total_steps)
    check_memory(config)
    if config.polyak_decay is not None and not 0 < config.polyak_decay < 1:
        raise UserError(f"config.polyak_decay={config.polyak_decay} must lie between 0 and 1.")
    warmup_steps = in_steps(config.schedule, "warmup", total_steps=total_steps) or 0
    schedule = optim.learning_rate_schedule(
        config.schedule.decay,
        config.schedule.learning_rate,
        total_steps,
        warmup_steps,
        config.schedule.final_learning_rate,
        config.schedule.boundaries_percent,
    )
    optimizer = configuration.call(optim.OPTIMIZERS, "config.optimizer", config.optimizer)
    loss = loss_function(config)
    numerics = models.numerics_of(model, machine)
    init, apply = models.as_functions(model, numerics)
    make_objective = functools.partial(
        classification,
        num_classes=model.num_classes,
        loss=loss,
        mixup_alpha=config.mixup_alpha,
        training_loss=None if is_plain(config.loss) else loss,
    )
    train_step_of = functools.partial(
        make_train_step,
        optimizer=optimizer,
        schedule=schedule,
        seed=config.seed,
        gradient_clip_norm=config.gradient_clip_norm,
        polyak_decay=config.polyak_decay,
        polyak_ramp=config.polyak_ramp,
    )
    objective = make_objective(apply)
    make_params, argument = initial_params(config, model, initial, init, mesh, notes)
    initialise, abstract_state = train_state.initialise(
        lambda argument: make_params(argument) | objective.init(jax.random.key(config.seed)),
        argument,
        optimizer,
        mesh,
        polyak=config.polyak_decay is not None,
        consume=initial is not None,
    )
    return Setup(
        config=config,
        model=model,
        numerics=numerics,
        train_source=train_source,
        eval_source=eval_source,
        train_transform=train_transform,
        eval_transform=eval_transform,
        mesh=mesh,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        periods=periods(config, epoch),
        schedule=schedule,
        make_objective=make_objective,
        make_train_step=train_step_of,
        train_step=train_step_of(objective, accumulation_steps=config.accumulation_steps),
        eval_step=objective.measure,
        initialise=initialise,
        abstract_state=abstract_state,
        notes=notes,
    )


def loss_function(config: ConfigDict) -> Callable:
    """The configured loss, checked before it is first traced."""
    options = config.loss.to_dict()
    empty = jnp.zeros((1, 2))
    jax.eval_shape(
        lambda: configuration.call(
            losses.LOSSES, "config.loss", options, logits=empty, targets=empty
        )
    )
    return functools.partial(losses.LOSSES[options.pop("name")], **options)


def is_plain(loss: ConfigDict) -> bool:
    """Whether a configured loss is what evaluations report anyway."""
    return loss.name == "softmax_cross_entropy" and not loss.get("label_smoothing", 0)


MEMORY_MODES = ("as_configured", "auto")


def check_memory(config: ConfigDict) -> None:
    """Raises UserError if `config.memory` is unknown or contradicts another setting."""
    if config.memory not in MEMORY_MODES:
        raise UserError(f"config.memory={config.memory!r}: choose {' or '.join(MEMORY_MODES)}.")
    chosen = config.accumulation_steps != 1 or config.model.remat is not None
    if config.memory == "auto" and chosen:
        raise UserError(
            "config.memory=auto chooses config.accumulation_steps and config.model.remat itself; "
            "leave them out, or leave config.memory as_configured."
        )


def check_counts(config: ConfigDict) -> None:
    """Raises UserError for a count that is negative."""
    for key, value in (("seed", config.seed), ("data.max_bad_images", config.data.max_bad_images)):
        if value < 0:
            raise UserError(f"config.{key}={value} must be 0 or more.")


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """The global batch must divide by devices and accumulation steps."""
    for key in ("batch_size", "accumulation_steps"):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be 1 or more.")
    divisor = sharding.batch_divisor(mesh) * config.accumulation_steps
    if config.batch_size % divisor:
        fits = max(divisor, config.batch_size // divisor * divisor)
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide by "
            f"{sharding.batch_divisor(mesh)} devices x {config.accumulation_steps} "
            f"accumulation steps; {fits} would."
        )


def open_sources(config: ConfigDict) -> tuple[Any, Any, list[str]]:
    """The training and the evaluation source of `config.data`, and what to know of the choice.

    Their classes are those of the training source: matched by name, whatever their order.

    Raises:
      UserError: nothing can be learnt or measured: one class, other classes, no labels.
    """
    spec, options = config.data.dataset, {"data_dir": config.data.data_dir}
    train_split, eval_split = config.data.train_split, config.data.eval_split
    notes: list[str] = []
    if train_split and not eval_split:
        raise UserError(
            "config.data.train_split and .eval_split belong together: with the first alone it is "
            "not known what is left to evaluate on; set both."
        )
    if train_split and eval_split:
        train_spec, eval_spec = f"{spec}[{train_split}]", f"{spec}[{eval_split}]"
    else:
        train_spec, eval_spec, notes = data.choose_splits(spec, **options, watch=True)
        if eval_split:
            eval_spec, notes = f"{spec}[{eval_split}]", []
    exclude = config.data.exclude or None
    train_source = data.open_source(train_spec, exclude=exclude, labelled=True, **options)
    eval_source = data.open_source(eval_spec, labelled=True, **options)
    if train_source.num_classes < 2:
        raise one_class(train_source)
    eval_source = with_classes(eval_source, train_source.class_names, train_source.spec)
    return train_source, eval_source, notes


def data_notes(train_source: Any, eval_source: Any) -> list[str]:
    """What a person should know of the two parts of the data before the first step."""
    notes = list(dict.fromkeys((*train_source.notes, *eval_source.notes)))
    if shared := shared_records(train_source, eval_source):
        notes.append(
            f"{shared:,} of the {len(eval_source):,} evaluation records are trained on: "
            f"{eval_source.spec} overlaps {train_source.spec}"
        )
    if isinstance(train_source, Without):
        named = len(train_source.removed) + train_source.missing
        notes.append(
            f"data.exclude: {len(train_source.removed):,} of {named:,} names found and left out"
        )
    return notes + untrained_classes(train_source, eval_source)


#: What `config.model.variant` says to take the architecture from `config.init_from`.
OF_CHECKPOINT = "checkpoint"
Checkpoint = tuple[models.ModelConfig, models.Params]


def model_config(config: ConfigDict, source: Any, initial: Checkpoint | None) -> models.ModelConfig:
    """The model of `config.model` for the classes of `source`, in the compute dtype."""
    overrides = configuration.section(config, "model")
    classes = overrides.setdefault("num_classes", source.num_classes)
    if classes < source.num_classes:
        raise UserError(
            f"config.model.num_classes={classes} is less than the {source.num_classes} classes "
            f"of {source.spec}; leave it out to take them from the data."
        )
    if overrides.get("channels", 3) != 3:
        raise UserError(
            f"config.model.channels={overrides['channels']}: data sets are read as RGB, so a model "
            "that is trained on them has 3 channels."
        )
    labels = tuple(source.class_names) if classes == source.num_classes else ()
    overrides |= {
        "labels": labels,
        "preprocessing": tuple(
            sorted(({"orient": config.data.orient} | config.eval_preprocess.to_dict()).items())
        ),
        "dtype": compute_dtype(config.compute_dtype),
    }
    if overrides["variant"] != OF_CHECKPOINT:
        return models.get_config(**overrides)
    if initial is None:
        raise UserError(
            f"config.model.variant={OF_CHECKPOINT!r} takes the architecture from "
            "config.init_from, which is not set."
        )
    found, _ = initial
    overrides["variant"] = found.variant
    if isinstance(found, models.ViTConfig):  # a new task: the linear head, unless it is asked for
        found = models.replace(found, representation_size=None)
    return models.override(found, **overrides)


def compute_dtype(name: str) -> str:
    """ "auto" is bfloat16 where there is hardware for it, float32 on CPU."""
    if name == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise UserError(f"config.compute_dtype={name!r}: choose auto, float32 or bfloat16.")
    return name


def initial_params(
    config: ConfigDict,
    model: models.ModelConfig,
    initial: Checkpoint | None,
    init: Callable,
    mesh: jax.sharding.Mesh,
    notes: list[str],
) -> tuple[Callable[[Any], models.Params], Any]:
    """Where the weights come from, as a function and its argument: `init_from`, or the seed."""
    if initial is None:
        return init, jax.random.key(config.seed)
    found, params = initial
    adapted, changes = adapt.adapt(found, params, model, new_head=not config.keep_head)
    notes.append(f"weights from {config.init_from} ({found.variant})")
    notes.extend(f"adapted {change}" for change in changes)
    return dict, sharding.params_to_devices(adapted, mesh)


def abstract_batch(setup: Setup) -> dict[str, jax.ShapeDtypeStruct]:
    """A training batch as shapes, dtypes and shardings."""
    where = sharding.batch_sharding(setup.mesh)
    b, (h, w), c = setup.config.batch_size, setup.model.image_size, setup.model.channels
    return {
        "image": jax.ShapeDtypeStruct((b, h, w, c), np.uint8, sharding=where),
        "label": jax.ShapeDtypeStruct((b,), np.int32, sharding=where),
    }


def jit_train_step(setup: Setup) -> Any:
    """The training step, jitted: the old state's memory is given to the new one."""
    replicated = NamedSharding(setup.mesh, PartitionSpec())
    shardings = jax.tree.map(lambda leaf: leaf.sharding, setup.abstract_state)
    return jax.jit(
        setup.train_step,
        donate_argnums=0,
        out_shardings=(shardings, replicated),
        compiler_options=remat.compiler_options(setup.model.remat),
    )


def compile_train_step(setup: Setup) -> Any:
    """The training step, compiled ahead of time."""
    return jit_train_step(setup).lower(setup.abstract_state, abstract_batch(setup)).compile()
