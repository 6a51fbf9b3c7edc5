"""Top-1 and top-5 accuracy of a classifier, in all and of each class."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple, TypedDict

import numpy as np

from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, figures, multilabel
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, Measure, left_out, measured
from vit_jax.evaluation.matching import match_labels
from vit_jax.evaluation.result import Result
from vit_jax.objectives.classification import measures_of

#: label: its number. class: its name. examples, correct: how many. accuracy is the recall; it and
#: what follows are None of a class without examples, and precision is 0 of one that is never said.
ClassRow = TypedDict(
    "ClassRow",
    {
        "label": int,
        "class": str,
        "examples": int,
        "correct": int,
        "accuracy": float | None,
        "precision": float | None,
        "recall": float | None,
        "f1": float | None,
    },
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
    if source.multilabel or forward.multilabel:
        raise UserError(f"{forward.name} on {source.spec}: there is no accuracy of several labels.")
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
    rows = per_class(results, names)
    return Answers(summary | macro(rows), rows, results, remark)


def score(forward: Forward, source: Source, data: DataSets) -> tuple[str, float]:
    """("accuracy", top-1) of a classifier, or ("mAP", its mean average precision)."""
    if not (forward.multilabel or source.multilabel):
        return "accuracy", classify(forward, source, data).summary["accuracy"]
    results, labels, _ = multilabel.answers(forward, source, data)
    return "mAP", multilabel.summarise(results["logits"], labels).get("mAP", float("nan"))


@functools.lru_cache(maxsize=4)
def measure_of(num_classes: int) -> Measure:
    """(logits, labels) -> "correct", "top5", "prediction", "confidence" and "loss"."""
    return functools.partial(measures_of, num_classes=num_classes)


def classification(
    forward: Forward,
    data: DataSets,
    *,
    threshold: multilabel.Threshold = "model",
    threshold_data: str = "",
    max_bad_images: int = 0,
) -> Result:
    """Top-1 and top-5 of the classifier, every class, calibration, confusions and mistakes.

    Of a model of several labels an image, mean average precision, and F1 at a threshold.

    Args:
      threshold: of multi-label models: a probability; model, its own; one or per_class, those of
        the best F1 on the validation split.
      threshold_data: other data to choose the threshold on.
      max_bad_images: images that may be left out because they cannot be read.
    """
    source = data.open()
    if forward.multilabel or source.multilabel:
        return multilabel.evaluate(
            *(forward, source, data),
            threshold=threshold,
            threshold_data=threshold_data,
            max_bad_images=max_bad_images,
        )
    if threshold != "model" or threshold_data:
        raise UserError(f"{forward.name} has one label an image; a threshold is of several.")
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
    known = [row for row in answers.classes if row["examples"]]
    means = ", ".join(
        f"{name} {100 * summary[f'macro_{key}']:.2f}%"
        for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    )
    table.append(f"  mean of {len(known)} classes  {means}")
    if gone := len(answers.classes) - len(known):
        table.append(f"  {gone} classes have no example here and are left out of these means")
    table += multilabel.class_lines(known, ("precision", "recall", "f1"))
    names = forward.labels or source.class_names
    matrix = calibration.confusion_matrix(results["label"], results["prediction"], len(names))
    return Result(
        record={"data": source.spec, **summary, **said, "per_class": answers.classes},
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

    Of several labels an image, {"mAP", losses, "num_examples"}. Of an objective that does not
    classify, the mean of each of its measures.
    """
    several = "logits" in results and results["label"].ndim == 2
    if several:
        results = dict(results)
        precision = multilabel.summarise(results.pop("logits"), results["label"])
        losses = {k: float(results[k].mean()) for k in ("loss", "training_loss") if k in results}
        return precision | losses | {"num_examples": len(results["label"])}
    mean = {name: float(values.mean()) for name, values in results.items()}
    count = {"num_examples": len(next(iter(results.values())))}
    if "correct" not in results:
        return {k: value for k, value in mean.items() if k not in ("label", "index")} | count
    summary = {"accuracy": mean["correct"], "top5_accuracy": mean["top5"]}
    return summary | {k: mean[k] for k in ("loss", "training_loss") if k in mean} | count


def per_class(results: Mapping[str, np.ndarray], class_names: tuple[str, ...]) -> list[ClassRow]:
    """One row per class, in their order."""
    total, right = len(class_names), results["correct"].astype(bool)
    found = multilabel.Counts(
        np.bincount(results["label"], minlength=total),
        np.bincount(results["prediction"], minlength=total),
        np.bincount(results["label"][right], minlength=total),
    )
    columns = [column.tolist() for column in multilabel.scores_of(found)]
    rows: list[ClassRow] = []
    for label, name in enumerate(class_names):
        count = int(found.there[label])
        precision, recall, f1 = (column[label] if count else None for column in columns)
        rows.append(
            {
                "label": label,
                "class": name,
                "examples": count,
                "correct": int(found.both[label]),
                "accuracy": recall,
                "precision": precision,
                "recall": recall,
                "f1": f1,
            }
        )
    return rows


def macro(rows: list[ClassRow]) -> dict[str, float]:
    """Means over the classes that have an example, and how many have none."""
    known = [row for row in rows if row["examples"]]
    means: dict[str, float] = {
        "macro_precision": float(np.mean([row["precision"] for row in known])),
        "macro_recall": float(np.mean([row["recall"] for row in known])),
        "macro_f1": float(np.mean([row["f1"] for row in known])),
    }
    return means | {"classes_without_examples": len(rows) - len(known)}
