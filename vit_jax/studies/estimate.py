"""The estimated cost of the trials of a study on this machine: `vit-jax study --dry_run`.

Needs no data: the sizes of the paper's data sets are known; other data are opened if available.
"""

from __future__ import annotations

import functools
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config as configuration, models
from vit_jax.config import ConfigDict
from vit_jax.data.source import ArraySource, Source
from vit_jax.data.splits import slice_split
from vit_jax.errors import UserError
from vit_jax.models import ModelConfig, ResNetConfig, cost
from vit_jax.studies.record import Outcome, parent_of
from vit_jax.training.objective import needs_labels
from vit_jax.training.setup import OF_CHECKPOINT, check_names, compute_dtype, model_config
from vit_jax.training.sources import open_sources

#: Classes, and records of the splits: the paper's data (section 4.1), as in TFDS.
SIZES: dict[str, tuple[int, dict[str, int]]] = {
    "tfds:jft": (cost.JFT_CLASSES, {"train": cost.JFT_IMAGES}),
    "tfds:imagenet21k": (21_843, {"train": 14_197_122}),
    "tfds:imagenet2012": (1000, {"train": 1_281_167, "validation": 50_000}),
    "tfds:cifar10": (10, {"train": 50_000, "test": 10_000}),
    "tfds:cifar100": (100, {"train": 50_000, "test": 10_000}),
    "tfds:oxford_iiit_pet": (37, {"train": 3_680, "test": 3_669}),
    "tfds:oxford_flowers102": (102, {"train": 1_020, "validation": 1_020, "test": 6_149}),
}
#: Layers (or units per stage) and classes of the timed model.
TIMED_LAYERS, TIMED_CLASSES = 2, 10
#: Training FLOPs per image that a CPU computes in about a second.
QUICK = 4e10
#: Micro-batches to try until one takes this long, in seconds.
MICRO_BATCHES, LONG_ENOUGH = (1, 16, 128), 0.3


class Known(NamedTuple):
    """Facts about the data of a trial, without reading images."""

    num_classes: int
    examples: int


class Cost(NamedTuple):
    """Cost of a trial, pre-training stages included; None: not known, `unknown` says why."""

    model: ModelConfig | None
    steps: int | None = None
    flops: float | None = None
    unknown: str = ""


def data_of(config: ConfigDict, seen: dict[tuple, Known | str]) -> Known | str:
    """Facts about the training data, or why they are unknown; `seen` is a cache."""
    data = config.data
    key = (data.dataset, data.train_split, data.eval_split, data.exclude, data.data_dir)
    if key not in seen:
        seen[key] = _look(config)
    return seen[key]


def _look(config: ConfigDict) -> Known | str:
    spec, split = config.data.dataset, config.data.train_split or "train"
    name = re.sub(r":\d+(\.[\d*]+)*$", "", spec)  # without a version
    if name in SIZES and not config.data.exclude:
        classes, sizes = SIZES[name]
        return Known(classes, sum(len(rows) for _, rows in slice_split(split, sizes, spec)))
    try:
        train, _, _ = open_sources(config, labelled=needs_labels(config))
    except UserError as error:
        return f"{spec} is not available ({str(error).splitlines()[0]})"
    return Known(train.num_classes, len(train))


def cost_of(name: str, trials: Mapping[str, ConfigDict], seen: dict[tuple, Known | str]) -> Cost:
    """The model, steps and FLOPs of a trial."""
    config = trials[name]
    configuration.check(config)
    check_names(config)
    found = data_of(config, seen)
    if isinstance(found, str):
        return Cost(None, unknown=found)
    names = list(map(str, range(found.num_classes)))
    source = ArraySource(np.zeros((0, 1, 1, 3), np.uint8), (), names, spec=config.data.dataset)
    model = _model(config, trials, source, seen)
    if model is None:
        return Cost(None, unknown=f"the model of {config.init_from} is not known until it is read")
    steps = configuration.duration(
        config, "total", steps_per_epoch=found.examples / config.batch_size
    )
    if not steps:
        raise UserError("config.total_steps or config.total_epochs must be set.")
    before = Cost(None, 0, 0.0)
    if config.pretrain is not None:
        before = cost_of(name, {name: config.pretrain}, seen)
        if before.steps is None or before.flops is None:
            return before
    flops = cost.train_flops_per_image(model) * config.batch_size * float(steps)
    return Cost(model, steps + (before.steps or 0), flops + (before.flops or 0.0))


def _model(
    config: ConfigDict,
    trials: Mapping[str, ConfigDict],
    source: Source,
    seen: dict[tuple, Known | str],
) -> ModelConfig | None:
    """The model of a configuration; None if it comes from a checkpoint outside the study."""
    initial: tuple[ModelConfig, dict] | None = None
    if config.model.variant == OF_CHECKPOINT:
        parent = parent_of(config)
        found = cost_of(parent, trials, seen).model if parent else None
        if found is None:
            return None
        initial = found, {}
    return model_config(config, source, initial)


def flops_per_image(config: ConfigDict) -> int:
    """Training FLOPs of a configuration's model per image, without the classes of its data."""
    model = configuration.section(config, "model")
    model.setdefault("num_classes", TIMED_CLASSES)
    return cost.train_flops_per_image(models.get_config(**model))


def parameters(model: ModelConfig) -> int:
    """Parameters of a model, from shapes only; another number of classes is not traced again."""
    kernels, rest = _one_class(models.replace(model, num_classes=1, labels=(), preprocessing=()))
    return rest + model.num_classes * kernels


@functools.cache
def _one_class(model: ModelConfig) -> tuple[int, int]:
    """Parameters per class of the head, and of the rest."""
    shapes = {path: math.prod(leaf.shape) for path, leaf in models.abstract_params(model).items()}
    head = shapes["head/kernel"] + shapes["head/bias"]
    return head, sum(shapes.values()) - head


def timed_model(model: ModelConfig) -> ModelConfig:
    """A model with fewer layers, so that it compiles and fits; a layer costs the same."""
    cut = models.replace(model, num_classes=TIMED_CLASSES, labels=())
    if isinstance(cut, ResNetConfig):
        return models.replace(cut, depths=tuple(1 for _ in cut.depths))
    stem = None if cut.stem_depths is None else tuple(1 for _ in cut.stem_depths)
    layers = min(cut.num_layers, TIMED_LAYERS)
    return models.replace(cut, num_layers=layers, stem_depths=stem)


def to_time(found: Sequence[ModelConfig]) -> ModelConfig | None:
    """The largest model; on a CPU, of those that can be timed within seconds when cut."""
    ordered = sorted(found, key=cost.train_flops_per_image)
    if jax.default_backend() == "cpu":
        quick = [m for m in ordered if cost.train_flops_per_image(timed_model(m)) <= QUICK]
        ordered = quick or ordered[:1]
    return ordered[-1] if ordered else None


class Speed(NamedTuple):
    """flops: training FLOPs per second of one device. micro_batch: images it was timed with."""

    flops: float
    micro_batch: int
    model: ModelConfig


def speed_of(model: ModelConfig) -> Speed:
    """Times forward and backward of a micro-batch of `timed_model(model)`, on one device.

    The micro-batch grows as long as it takes no time and fits in memory.
    """
    cut = timed_model(model)
    init, apply = models.as_functions(cut)
    params = jax.jit(init)(jax.random.key(0))

    @jax.jit
    def gradient(params, images):
        return jax.grad(lambda p: jnp.square(apply(p, images).astype(jnp.float32)).mean())(params)

    best = Speed(0.0, 0, cut)
    for count in MICRO_BATCHES:
        images = jnp.zeros((count, *cut.image_size, cut.channels))
        try:
            jax.block_until_ready(gradient(params, images))
            start = time.perf_counter()
            jax.block_until_ready(gradient(params, images))
            seconds = time.perf_counter() - start
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or not best.micro_batch:
                raise
            break
        best = max(best, Speed(cost.train_flops_per_image(cut) * count / seconds, count, cut))
        if seconds > LONG_ENOUGH:
            break
    return best


def listing(
    trials: Mapping[str, ConfigDict],
    mine: Mapping[str, ConfigDict],
    done: Mapping[str, Outcome],
) -> list[str]:
    """A line for each trial of `mine`, the totals, and their basis.

    Raises:
      UserError: a trial with invalid settings; names it.
    """
    seen: dict[tuple, Known | str] = {}
    costs = {}
    for name in mine:
        try:
            costs[name] = cost_of(name, trials, seen)
        except UserError as error:
            raise UserError(f"The trial {name}: {error}") from error
    largest = to_time([found.model for found in costs.values() if found.model])
    speed = speed_of(largest) if largest is not None else None
    devices = 1 if jax.default_backend() == "cpu" else jax.device_count()
    width = max(map(len, [*mine, "trial"]))
    lines = [f"{'trial':<{width}} {'parameters':>13} {'steps':>10} {'exaFLOPs':>9} {'hours':>9}"]
    for name, found in costs.items():
        params = "–" if found.model is None else f"{parameters(found.model):,}"
        steps = "–" if found.steps is None else f"{found.steps:,}"
        exaflops, hours = _texts(found.flops, speed, devices)
        lines.append(
            f"{name:<{width}} {params:>13} {steps:>10} {exaflops:>9} {hours:>9}"
            + ("   done" if name in done else "")
        )
    left = {name: found for name, found in costs.items() if name not in done}
    for label, of in (("total", costs), ("left", left)):
        if label == "left" and len(left) == len(costs):
            continue
        known = [found.flops for found in of.values() if found.flops is not None]
        exaflops, hours = _texts(math.fsum(known), speed, devices)
        text = f"{label}: {len(of)} trials, {exaflops} exaFLOPs, {hours} hours"
        lines.append(text + (f" without {len(of) - len(known)}" if len(known) < len(of) else ""))
    for why in dict.fromkeys(found.unknown for found in costs.values() if found.unknown):
        count = sum(found.unknown == why for found in costs.values())
        lines.append(f"unknown for {count} trials without their data: {why}")
    if speed is not None and largest is not None:
        lines += _basis(largest, speed, devices)
    return lines


def _texts(flops: float | None, speed: Speed | None, devices: int) -> tuple[str, str]:
    """exaFLOPs and hours."""
    if flops is None or speed is None:
        return "–", "–"
    return f"{flops / 1e18:.3g}", f"{flops / (speed.flops * devices) / 3600:.3g}"


def _basis(largest: ModelConfig, speed: Speed, devices: int) -> list[str]:
    """The basis of the hours."""
    kind, side = jax.devices()[0].device_kind, "x".join(map(str, largest.image_size))
    cut = speed.model
    now, before = (
        (str(cut.depths), str(largest.depths))
        if isinstance(cut, ResNetConfig) and isinstance(largest, ResNetConfig)
        else (str(getattr(cut, "num_layers", "")), str(getattr(largest, "num_layers", "")))
    )
    what = f", cut from {before} to {now} layers" if now != before else ""
    count = f"{devices} devices of {kind}" if devices > 1 else f"one device of {kind}"
    return [
        f"hours are an estimate for {count}: FLOPs at {speed.flops / 1e12:.3g} TFLOP/s per device.",
        f"Timed: forward and backward of {speed.micro_batch} images of {largest.variant} at "
        f"{side} pixels{what}, in {compute_dtype('auto')}: the largest that takes seconds here.",
        "Smaller models may be slower for their FLOPs; evaluation, input and the update are not "
        "counted.",
    ]
