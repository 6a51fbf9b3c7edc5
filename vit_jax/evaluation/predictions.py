"""What a checkpoint says about every example of a data set."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import data, models
from vit_jax.errors import UserError, nearest
from vit_jax.evaluation import calibration, classification
from vit_jax.interop import export, load
from vit_jax.models import adapt
from vit_jax.objectives import losses
from vit_jax.runtime import sharding
from vit_jax.training.step import make_eval_step

IMAGENET21K = (
    "Published ImageNet-21k weights have 21,843 outputs, two of them for classes without images; "
    "the fall 2011 release has images of 21,841, which are other numbers."
)


def match_labels(config: models.ModelConfig, source: Any) -> tuple[np.ndarray, str]:
    """Which of the model's classes each class of the data is, and a remark ("" if none is due).

    Classes are matched by name where both sides know the names, otherwise by number.

    Raises:
      UserError: the data has classes that the model does not have.
    """
    identity = np.arange(source.num_classes, dtype=np.int32)
    ours, theirs = tuple(config.labels), tuple(source.class_names)
    if ours == theirs or not ours:
        if source.num_classes != config.num_classes:
            both = {source.num_classes, config.num_classes}
            why = " " + IMAGENET21K if both == {21_841, 21_843} else ""
            raise UserError(
                f"{source.spec} has {source.num_classes} classes and the model "
                f"{config.num_classes}; fine-tune the model on this data first.{why}"
            )
        return identity, ""
    position = {name: i for i, name in enumerate(ours)}
    if all(name in position for name in theirs):
        mapping = np.array([position[name] for name in theirs], np.int32)
        return mapping, f"classes matched by name ({len(theirs)} of the model's {len(ours)})"
    if len(ours) == len(theirs):
        return identity, (
            f"the class names differ (e.g. {ours[0]!r} and {theirs[0]!r}); matched by number"
        )
    unknown = next(name for name in theirs if name not in position)
    raise UserError(
        f"{source.spec} has the class {unknown!r}, which the model does not know."
        f"{nearest(unknown, ours)} Fine-tune the model on this data first."
    )


class Answers(NamedTuple):
    """What `classify` finds: a summary, a row for each class, every example's result, a remark."""

    summary: dict[str, float]
    classes: list[dict]
    results: dict[str, np.ndarray]
    remark: str


def classify(
    config: models.ModelConfig,
    params: models.Params,
    source: Any,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[int], None] | None = None,
) -> Answers:
    """Accuracy and calibration over all of `source`.

    Raises:
      UserError: the classifier is untrained, or does not know the classes.
    """
    if adapt.is_zero_head(params):
        raise UserError(
            "The classifier of this checkpoint is all zeros (published ImageNet-21k weights come "
            "so); fine-tune it first, or use its features."
        )
    mapping, remark = match_labels(config, source)
    results = run_model(
        config,
        params,
        source,
        eval_step(config, mesh),
        mapping=mapping,
        batch_size=batch_size,
        mesh=mesh,
        on_batch=on_batch,
    )
    names = config.labels or source.class_names
    summary = classification.summarise(results)
    summary["calibration_error"] = calibration.expected_calibration_error(
        results["confidence"], results["correct"]
    )
    return Answers(summary, classification.per_class(results, names), results, remark)


@functools.lru_cache(maxsize=4)
def eval_step(config: models.ModelConfig, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted evaluation step of a model: compiled once, however often it is evaluated."""
    _, apply = models.as_functions(config)
    step = make_eval_step(apply, loss=losses.softmax_cross_entropy, num_classes=config.num_classes)
    return classification.jit_eval_step(step, mesh)


def run_model(
    config: models.ModelConfig,
    params: models.Params,
    source: Any,
    step: Callable,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    mapping: np.ndarray | None = None,
    transform: Callable | None = None,
    num_threads: int = 4,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Every example's results of `step` (see `classification.run`), in the order of `source`.

    Args:
      mapping: the model's class for each class of the data; None if they are the same.
      transform: how images are prepared; None: as the model says.
    """
    transform = transform or data.evaluation_transform(config.image_size, config.preprocessing)
    batches = data.eval_batches(
        source,
        transform,
        batch_size=sharding.fit_batch(batch_size, mesh, num_examples=len(source)),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=num_threads,
    )
    numbered = (
        batch if mapping is None else {**batch, "label": mapping[batch["label"]]}
        for batch in batches
    )
    on_mesh = sharding.params_to_devices(params, mesh)
    return classification.run(
        step, on_mesh, numbered, mesh, num_examples=len(source), on_batch=on_batch
    )


def accuracy_of_export(
    checkpoint: str, exported: str, form: str, spec: str, *, batch_size: int
) -> tuple[float, float]:
    """Top-1 of a checkpoint, and of what was exported from it, on a data set."""
    config, params = load.read(checkpoint)
    source = data.open_source(spec)
    mapping, _ = match_labels(config, source)
    answers = classify(config, params, source, batch_size=batch_size, mesh=sharding.make_mesh())
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    _, open_ = export.FORMATS[form]
    run, _ = open_(Path(exported))
    correct = seen = 0
    for batch in data.eval_batches(source, transform, batch_size=batch_size):
        images = np.asarray(batch["image"], np.float32) / 127.5 - 1
        found = run(images)
        mask = batch["mask"]
        correct += int((found.argmax(-1) == mapping[batch["label"]])[mask].sum())
        seen += int(mask.sum())
    assert seen == len(source)
    return answers.summary["accuracy"], correct / seen
