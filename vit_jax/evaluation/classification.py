"""Top-1 and top-5 accuracy of a classifier, in all and of each class."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from vit_jax import models
from vit_jax.data.labels import match_classes
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, figures
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, Measure, left_out, measured
from vit_jax.evaluation.result import Result
from vit_jax.objectives.classification import measures_of

IMAGENET21K = (
    "Published ImageNet-21k weights have 21,843 outputs, two of them for classes without images; "
    "the fall 2011 release has images of 21,841, which are other numbers."
)


def match_labels(model: Forward | models.ModelConfig, source: Source) -> tuple[np.ndarray, str]:
    """Which of the model's classes each class of the data is, and a remark ("" if none is due).

    Classes are matched by name where both sides know the names, otherwise by number.

    Raises:
      UserError: the data has classes that the model does not have.
    """
    theirs = tuple(source.class_names)
    if not model.labels:
        if source.num_classes != model.num_classes:
            both = {source.num_classes, model.num_classes}
            why = " " + IMAGENET21K if both == {21_841, 21_843} else ""
            raise UserError(
                f"{source.spec} has {source.num_classes} classes and the model "
                f"{model.num_classes}; fine-tune the model on this data first.{why}"
            )
        return np.arange(source.num_classes, dtype=np.int32), ""
    try:
        numbers, by = match_classes(model.labels, theirs, there=source.spec)
    except UserError as error:
        base = source.spec.partition("[")[0]
        how = f" They can be matched by number: {base}?match=number"
        same = len(theirs) == model.num_classes and "match=number" not in str(error)
        raise UserError(
            f"{error} Fine-tune the model on this data first.{how if same else ''}"
        ) from None
    of = f" ({len(theirs)} of the model's {model.num_classes})"
    return numbers, "" if by == "same" else f"classes matched by {by}{of}"


#: label: its number. class: its name. examples, correct: how many. accuracy: None of none.
ClassRow = TypedDict(
    "ClassRow",
    {"label": int, "class": str, "examples": int, "correct": int, "accuracy": float | None},
)


class Answers(NamedTuple):
    """What `classify` finds: a summary, a row for each class, every example's result, a remark."""

    summary: dict[str, float]
    classes: list[ClassRow]
    results: dict[str, np.ndarray]
    remark: str


def classify(
    forward: Forward, source: Source, data_sets: DataSets, *, max_bad_images: int = 0
) -> Answers:
    """Accuracy and calibration over all of `source`.

    Raises:
      UserError: the classifier is untrained, or does not know the classes; more than
        `max_bad_images` cannot be read.
    """
    forward.check_head()
    mapping, remark = match_labels(forward, source)
    measure = measure_of(forward.num_classes)
    results = measured(
        forward, measure, source, data_sets, mapping=mapping, max_bad_images=max_bad_images
    )
    names = forward.labels or source.class_names
    summary = summarise(results)
    summary["calibration_error"] = calibration.expected_calibration_error(
        results["confidence"], results["correct"]
    )
    return Answers(summary, per_class(results, names), results, remark)


@functools.lru_cache(maxsize=4)
def measure_of(num_classes: int) -> Measure:
    """(logits, labels) -> "correct", "top5", "prediction", "confidence" and "loss"."""
    return functools.partial(measures_of, num_classes=num_classes)


def classification(forward: Forward, data: DataSets, *, max_bad_images: int = 0) -> Result:
    """Top-1 and top-5 of the classifier, every class, calibration, confusions and mistakes.

    Args:
      max_bad_images: images that may be left out because they cannot be read.
    """
    source = data.open()
    answers = classify(forward, source, data, max_bad_images=max_bad_images)
    summary, results = answers.summary, answers.results
    said, lines = left_out(len(results["label"]), source)
    remark = f"; {answers.remark}" if answers.remark else ""
    table = [f"{source.spec}: {summary['num_examples']} examples{remark}", *lines]
    table += [f"  {note}" for note in source.notes]
    for key, text in (("accuracy", "top-1"), ("top5_accuracy", "top-5")):
        table.append(f"  {text}  {100 * summary[key]:.2f}%")
    table.append(f"  loss   {summary['loss']:.4f}")
    table.append(f"  calibration error  {100 * summary['calibration_error']:.2f}%")
    names = forward.labels or source.class_names
    matrix = calibration.confusion_matrix(results["label"], results["prediction"], len(names))
    return Result(
        record={"data": source.spec, **summary, **said},
        table=table,
        metrics={key: float(summary[key]) for key in ("accuracy", "top5_accuracy", "loss")},
        rows=answers.classes,
        csv="classification_per_class",
        pictures={
            "confusion": functools.partial(figures.confusion, matrix, names),
            "reliability": functools.partial(
                figures.reliability, results["confidence"], results["correct"]
            ),
            "mistakes": functools.partial(figures.mistakes, results, source, names),
        },
    )


def summarise(results: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"accuracy", "top5_accuracy", losses if known, "num_examples"}; accuracies in [0, 1].

    Of an objective that does not classify, the mean of each of its measures.
    """
    mean = {name: float(values.mean()) for name, values in results.items()}
    count = {"num_examples": len(next(iter(results.values())))}
    if "correct" not in results:
        return {k: value for k, value in mean.items() if k not in ("label", "index")} | count
    summary = {"accuracy": mean["correct"], "top5_accuracy": mean["top5"]}
    return summary | {k: mean[k] for k in ("loss", "training_loss") if k in mean} | count


def per_class(results: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> list[ClassRow]:
    """One row per class, in their order."""
    rows: list[ClassRow] = []
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
