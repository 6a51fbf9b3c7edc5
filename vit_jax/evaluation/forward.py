"""The interface of a model for protocols: a function of images, and a few facts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import data, models
from vit_jax.data.source import Source
from vit_jax.errors import UserError, counted
from vit_jax.evaluation import run
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.models import adapt
from vit_jax.runtime import sharding


class Outputs(NamedTuple):
    """logits (b, k) float32; pre_logits (b, d), before any tanh, or None if not available.

    Both on every process.
    """

    logits: jax.Array
    pre_logits: jax.Array | None


class Forward(NamedTuple):
    """`forward(images) -> logits, pre_logits`, with images (b, h, w, c) uint8 on `mesh`.

    name: for messages. image_size: (h, w). labels: the names of the classes, () if unknown.
    preprocessing: as in a model's configuration.
    has_features: whether pre_logits are returned.
    check_head: raises UserError if the classifier was never trained.
    multilabel, thresholds, variant, temperature: see models.ViTConfig.
    """

    function: Callable[[jax.Array], Outputs]
    name: str
    image_size: tuple[int, int]
    num_classes: int
    labels: tuple[str, ...]
    preprocessing: tuple[tuple[str, object], ...]
    mesh: jax.sharding.Mesh
    batch_size: int
    has_features: bool
    check_head: Callable[[], None]
    multilabel: bool = False
    thresholds: tuple[float, ...] = ()
    variant: str = ""
    temperature: float | None = None

    def __call__(self, images: jax.Array) -> Outputs:
        return self.function(images)


def of_model(
    config: models.ModelConfig,
    params: models.Params,
    mesh: jax.sharding.Mesh,
    *,
    batch_size: int = 64,
) -> Forward:
    """A model on all devices of a mesh."""
    function = model_function(config, mesh)
    on_mesh = sharding.params_to_devices(params, mesh)
    return Forward(
        functools.partial(function, on_mesh),
        name=config.variant,
        variant=config.variant,
        image_size=config.image_size,
        num_classes=config.num_classes,
        labels=config.labels,
        preprocessing=config.preprocessing,
        mesh=mesh,
        batch_size=batch_size,
        has_features=True,
        check_head=functools.partial(adapt.check_head, params),
        multilabel=config.multilabel,
        thresholds=config.thresholds,
        temperature=config.temperature,
    )


@functools.lru_cache(maxsize=4)
def model_function(
    config: models.ModelConfig, mesh: jax.sharding.Mesh
) -> Callable[[Mapping[str, jax.Array], jax.Array], Outputs]:
    """The jitted (params, images) -> Outputs, cached so that it compiles once."""
    _, apply = models.as_functions(config)

    def function(params: Mapping[str, jax.Array], images: jax.Array) -> Outputs:
        logits, out = apply(params, models.normalise(images), return_intermediates=("pre_logits",))
        return Outputs(logits, out["pre_logits"])

    return run.jit_eval_step(function, mesh)


def of_function(
    answer: Callable[[np.ndarray], tuple],
    mesh: jax.sharding.Mesh,
    *,
    name: str,
    image_size: tuple[int, int],
    channels: int,
    labels: tuple[str, ...],
    preprocessing: tuple[tuple[str, object], ...],
    multilabel: bool = False,
    thresholds: tuple[float, ...] = (),
    variant: str = "",
    batch_size: int = 64,
) -> Forward:
    """`answer(images (b, h, w, c) float32 in [-1, 1]) -> logits, pre_logits or None, ...`, such as
    an exported model.

    Raises:
      UserError: there are several processes; each would have to run it on all images.
    """
    if jax.process_count() > 1:
        raise UserError(
            f"{name} is an exported model, which is evaluated by one process; start one."
        )
    shape = (*image_size, channels)
    grey, features = answer(np.zeros((1, *shape), np.float32))[:2]
    if len(labels) not in (0, grey.shape[-1]):
        raise UserError(
            f"{name} has {grey.shape[-1]} classes, but {counted(len(labels), 'class name')}."
        )

    def function(images: jax.Array) -> Outputs:
        logits, pre_logits = answer(np.asarray(models.normalise(images)))[:2]
        return Outputs(jnp.asarray(logits), None if pre_logits is None else jnp.asarray(pre_logits))

    def check_head() -> None:
        noise = np.random.default_rng(0).uniform(-1, 1, (1, *shape))
        if np.array_equal(answer(noise.astype(np.float32))[0], grey):
            raise UserError(
                f"The classifier of {name} predicts the same for every image: it is untrained."
            )

    return Forward(
        function,
        name=name,
        image_size=image_size,
        num_classes=grey.shape[-1],
        labels=labels,
        preprocessing=preprocessing,
        mesh=mesh,
        batch_size=batch_size,
        has_features=features is not None,
        check_head=check_head,
        multilabel=multilabel,
        thresholds=thresholds,
        variant=variant,
    )


#: (logits (b, k), labels (b,)) -> {name: (b, ...)}
Measure = Callable[[jax.Array, jax.Array], Mapping[str, jax.Array]]
compiled = functools.lru_cache(maxsize=16)(run.jit_eval_step)


def measured(
    forward: Forward,
    measure: Measure,
    source: Source,
    data_sets: DataSets,
    *,
    mapping: np.ndarray | None = None,
    transform: Callable | None = None,
    max_bad_images: int = 0,
) -> dict[str, np.ndarray]:
    """Per-example results of `measure`, in the order of `source`; see `run.over_source`.

    Args:
      measure: compiled once if it is the same function each time.
      mapping: the model's class for each class of the data; None if they are the same.
      transform: None: the model's preprocessing.
      max_bad_images: how many unreadable images may be skipped.

    Raises:
      UserError: more cannot be read.
    """
    step = compiled(measure, forward.mesh)
    with data_sets.progress(len(source), "evaluate") as on_batch:
        return run.over_source(
            lambda batch: step(forward(batch["image"]).logits, batch["label"]),
            source,
            transform or data.evaluation_transform(forward.image_size, forward.preprocessing),
            batch_size=forward.batch_size,
            mesh=forward.mesh,
            mapping=mapping,
            on_batch=on_batch,
            on_bad=data.BadImages(max_bad_images, "--max_bad_images"),
        )


def left_out(found: int, source: Source) -> tuple[dict[str, int], list[str]]:
    """Entries on unreadable images for evaluation.json and the table; empty without any."""
    count = len(source) - found
    if not count:
        return {}, []
    return {"num_bad_images": count}, [f"  {count} images cannot be read and were skipped"]
