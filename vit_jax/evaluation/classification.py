"""Top-1 and top-5 accuracy of a classifier, in all and of each class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import data, models
from vit_jax.data.labels import match_classes
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, run
from vit_jax.evaluation.run import run_model
from vit_jax.models import adapt
from vit_jax.objectives.classification import measures

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
    theirs = tuple(source.class_names)
    if not config.labels:
        if source.num_classes != config.num_classes:
            both = {source.num_classes, config.num_classes}
            why = " " + IMAGENET21K if both == {21_841, 21_843} else ""
            raise UserError(
                f"{source.spec} has {source.num_classes} classes and the model "
                f"{config.num_classes}; fine-tune the model on this data first.{why}"
            )
        return np.arange(source.num_classes, dtype=np.int32), ""
    try:
        numbers, by = match_classes(config.labels, theirs, there=source.spec)
    except UserError as error:
        base = source.spec.partition("[")[0]
        how = f" They can be matched by number: {base}?match=number"
        same = len(theirs) == config.num_classes and "match=number" not in str(error)
        raise UserError(
            f"{error} Fine-tune the model on this data first.{how if same else ''}"
        ) from None
    of = f" ({len(theirs)} of the model's {config.num_classes})"
    return numbers, "" if by == "same" else f"classes matched by {by}{of}"


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
    adapt.check_head(params)
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
    summary = summarise(results)
    summary["calibration_error"] = calibration.expected_calibration_error(
        results["confidence"], results["correct"]
    )
    return Answers(summary, per_class(results, names), results, remark)


@functools.lru_cache(maxsize=4)
def eval_step(config: models.ModelConfig, mesh: jax.sharding.Mesh) -> Callable:
    """The jitted evaluation step of a model: compiled once, however often it is evaluated."""
    _, apply = models.as_functions(config)
    return run.jit_eval_step(measures(apply, config.num_classes), mesh)


def summarise(results: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"accuracy", "top5_accuracy", losses if known, "num_examples"}; accuracies in [0, 1]."""
    summary: dict[str, float] = {
        "accuracy": float(results["correct"].mean()),
        "top5_accuracy": float(results["top5"].mean()),
    }
    for name in ("loss", "training_loss"):
        if name in results:
            summary[name] = float(results[name].mean())
    return summary | {"num_examples": len(results["correct"])}


def per_class(results: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> list[dict]:
    """One row per class: its name, how many examples, how many correct, accuracy (None if none)."""
    rows: list[dict[str, Any]] = []
    for label, name in enumerate(class_names):
        mine = results["label"] == label
        count, correct = int(mine.sum()), int(results["correct"][mine].sum())
        rows.append(
            {
                "label": label,
                "class": name,
                "examples": count,
                "correct": correct,
                "accuracy": correct / count if count else None,
            }
        )
    return rows


def accuracy_of(
    run: Callable[[np.ndarray], np.ndarray],
    config: models.ModelConfig,
    source: data.Source,
    *,
    batch_size: int,
) -> float:
    """Top-1 of `run(images (b, h, w, 3) float32 in [-1, 1]) -> logits`, such as an exported model.

    Images are prepared, and classes matched, as `config` says.
    """
    mapping, _ = match_labels(config, source)
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    correct = seen = 0
    for batch in data.eval_batches(source, transform, batch_size=batch_size):
        found = run(np.asarray(batch["image"], np.float32) / 127.5 - 1)
        mask = batch["mask"]
        correct += int((found.argmax(-1) == mapping[batch["label"]])[mask].sum())
        seen += int(mask.sum())
    assert seen == len(source)
    return correct / seen
