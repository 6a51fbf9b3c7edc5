"""Top-1 and top-5 accuracy of a classifier, in total and per class."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, figures, multilabel, per_image
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, Measure, left_out, measured
from vit_jax.evaluation.matching import match_labels
from vit_jax.evaluation.result import Result
from vit_jax.objectives.classification import measures_of

#: For more classes there is no confusion matrix, as its size is quadratic.
MATRIX = 2000
#: label: class index. class: its name. examples, correct: counts. accuracy is the recall; it and
#: the rest are None for a class without examples; precision is 0 for one never predicted.
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
    """The result of `classify`: a summary, a row per class, per-example results, a remark."""

    summary: dict[str, float]
    classes: list[ClassRow]
    results: dict[str, np.ndarray]
    remark: str


def classify(
    forward: Forward,
    source: Source,
    data_sets: DataSets,
    *,
    max_bad_images: int = 0,
    temperature: float | None = None,
) -> Answers:
    """Accuracy and calibration over all of `source`.

    Args:
      temperature: divides the logits; None: the model's own.

    Raises:
      UserError: the classifier is untrained, or lacks classes of the data; more than
        `max_bad_images` cannot be read.
    """
    if source.multilabel or forward.multilabel:
        raise UserError(
            f"{forward.name} on {source.spec}: accuracy is not defined for several labels."
        )
    forward.check_head()
    mapping, remark = match_labels(forward, source)
    own = forward.temperature or 1.0
    measure = measure_of(forward.num_classes, data_sets.top_k, temperature or own, own)
    results = measured(
        forward, measure, source, data_sets, mapping=mapping, max_bad_images=max_bad_images
    )
    names = forward.labels or source.class_names
    summary = summarise(results)
    error_of = functools.partial(calibration.expected_calibration_error, correct=results["correct"])
    summary["calibration_error"] = error_of(results["confidence"])
    if temperature is not None:
        summary["calibration_error_before"] = error_of(results["confidence_before"])
        summary["loss_before"] = float(results["loss_before"].mean())
    if temperature or forward.temperature:
        summary["temperature"] = temperature or own
    rows = per_class(results, names)
    return Answers(summary | macro(rows), rows, results, remark)


def score(forward: Forward, source: Source, data: DataSets) -> tuple[str, float]:
    """("accuracy", top-1), or ("mAP", mean average precision) for several labels."""
    if not (forward.multilabel or source.multilabel):
        return "accuracy", classify(forward, source, data).summary["accuracy"]
    results, labels, _ = multilabel.answers(forward, source, data)
    return "mAP", multilabel.summarise(results["logits"], labels).get("mAP", float("nan"))


@functools.lru_cache(maxsize=4)
def measure_of(
    num_classes: int, top_k: int = 5, temperature: float = 1.0, before: float = 1.0
) -> Measure:
    """(logits, labels) -> `measures_of` for logits / temperature, and more.

    "confidence_before" and "loss_before" are without the new temperature; "ranked" and
    "probabilities" (b, top_k) are the top classes.
    """

    def measure(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
        other = measures_of(logits / before, labels, num_classes)
        _, ranked = jax.lax.top_k(logits, min(top_k, num_classes))
        chances = jax.nn.softmax(logits / temperature)
        return measures_of(logits / temperature, labels, num_classes) | {
            "confidence_before": other["confidence"],
            "loss_before": other["loss"],
            "ranked": ranked,
            "probabilities": jnp.take_along_axis(chances, ranked, axis=-1),
        }

    return measure


def only_logits(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """{"logits": (b, k)}"""
    return {"logits": logits}


def find_temperature(
    forward: Forward, source: Source, data: DataSets, spec: str
) -> tuple[float, str]:
    """The temperature for an evaluation on `source`, and the data it is fitted on.

    spec: data to use instead of the validation split; "": the validation split.

    Raises:
      UserError: there are no such data, or they share images with `source`.
    """
    validation = data.validation(source, spec, "temperature")
    forward.check_head()
    mapping, _ = match_labels(forward, validation)
    found = measured(forward, only_logits, validation, data, mapping=mapping)
    fitted = calibration.fit_temperature(found["logits"], found["label"], validation.spec)
    return fitted, validation.spec


def classification(
    forward: Forward,
    data: DataSets,
    *,
    threshold: float | Literal["model", "one", "per_class"] = "model",
    threshold_data: str = "",
    calibrate: bool = False,
    temperature_data: str = "",
    max_bad_images: int = 0,
) -> Result:
    """Top-1 and top-5 accuracy, results per class, calibration, confusion matrix and mistakes.

    For multi-label models mean average precision, and F1 at a threshold.

    Args:
      threshold: for multi-label models: a probability; model, its own; one or per_class, chosen by
        F1 on the validation split.
      threshold_data: other data to choose the threshold on.
      calibrate: divide the logits by the temperature with the lowest loss on the validation split.
      temperature_data: other data to fit the temperature on.
      max_bad_images: how many unreadable images may be skipped.
    """
    if temperature_data and not calibrate:
        raise UserError("--temperature_data needs --calibrate.")
    source = data.open()
    if forward.multilabel or source.multilabel:
        if calibrate:
            raise UserError(
                f"{source.spec}: a temperature is for one label per image; with several labels use "
                "thresholds (--threshold=per_class)."
            )
        return multilabel.evaluate(
            *(forward, source, data),
            threshold=threshold,
            threshold_data=threshold_data,
            max_bad_images=max_bad_images,
        )
    if threshold != "model" or threshold_data:
        raise UserError(f"{forward.name} has one label per image; thresholds are for several.")
    fitted, on = (
        find_temperature(forward, source, data, temperature_data) if calibrate else (None, "")
    )
    answers = classify(forward, source, data, max_bad_images=max_bad_images, temperature=fitted)
    said, lines = left_out(len(answers.results["label"]), source)
    remark = f"; {answers.remark}" if answers.remark else ""
    table = [f"{source.spec}: {answers.summary['num_examples']} examples{remark}", *lines]
    table += [f"  {note}" for note in source.notes]
    record = {"data": source.spec, **answers.summary, **said}
    if on:
        record["temperature_from"] = on
    names = forward.labels or source.class_names
    return Result(
        record={**record, "per_class": answers.classes},
        table=table + printed(answers, on),
        metrics={key: float(answers.summary[key]) for key in ("accuracy", "top5_accuracy", "loss")},
        rows=answers.classes,
        csv="classification_per_class",
        model={"temperature": fitted} if fitted else {},
        images=functools.partial(of_images, source, answers.results, names),
        **shown(answers.results, source, names),
    )


def sources(data: DataSets, options: Mapping[str, object]) -> list[Source]:
    """The data of `classification`, and those that a temperature or thresholds are chosen on.

    Raises:
      UserError: a data set does not exist, or see DataSets.validation.
    """
    source, what = data.open(), ""
    if source.multilabel and options["threshold"] in ("one", "per_class"):
        what = "threshold"
    elif options["calibrate"] and not source.multilabel:
        what = "temperature"
    return (
        [source, data.validation(source, str(options[f"{what}_data"]), what)] if what else [source]
    )


def of_images(
    source: Source, results: Mapping[str, np.ndarray], names: Sequence[str]
) -> per_image.Columns:
    """The table of all images."""
    labels, said = ([names[k] for k in results[key]] for key in ("label", "prediction"))
    return per_image.of_answers(source, results, labels, said, names)


def shown(results: dict[str, np.ndarray], source: Source, names: Sequence[str]) -> dict[str, dict]:
    """Pictures of predictions, and the confusion matrix unless there are too many classes."""
    pictures: dict[str, Callable] = {
        "reliability": functools.partial(
            figures.reliability, results["confidence"], results["correct"]
        ),
        "mistakes": functools.partial(figures.mistakes, results, source, names),
    }
    if len(names) > MATRIX:
        return {"pictures": {"confusion": lambda: None, **pictures}}
    matrix = calibration.confusion_matrix(results["label"], results["prediction"], len(names))
    columns = {name: matrix[:, k].tolist() for k, name in enumerate(names)}
    return {
        "pictures": {"confusion": functools.partial(figures.confusion, matrix, names), **pictures},
        "tables": {"confusion": {"label \\ prediction": list(names), **columns}},
    }


def printed(answers: Answers, temperature_from: str) -> list[str]:
    """Lines of the table."""
    summary = answers.summary
    lines = [
        f"  {text}  {100 * summary[key]:.2f}%"
        for key, text in (("accuracy", "top-1"), ("top5_accuracy", "top-5"))
    ]
    loss, error = f"{summary['loss']:.4f}", f"{100 * summary['calibration_error']:.2f}%"
    if temperature_from:
        loss = f"{summary['loss_before']:.4f} -> {loss}"
        error = f"{100 * summary['calibration_error_before']:.2f}% -> {error}"
    lines += [f"  loss   {loss}", f"  calibration error  {error}"]
    if "temperature" in summary:
        why = f"fitted on {temperature_from}" if temperature_from else "the model's own"
        lines.append(f"  temperature  {summary['temperature']:.4g}, {why}")
    known = [row for row in answers.classes if row["examples"]]
    means = ", ".join(
        f"{name} {100 * summary[f'macro_{key}']:.2f}%"
        for key, name in (("precision", "precision"), ("recall", "recall"), ("f1", "F1"))
    )
    lines.append(f"  mean over {len(known)} classes  {means}")
    if gone := len(answers.classes) - len(known):
        lines.append(f"  {gone} classes have no example here and are not in these means")
    return lines + multilabel.class_lines(known, ("precision", "recall", "f1"))


def summarise(results: Mapping[str, np.ndarray]) -> dict[str, float]:
    """{"accuracy", "top5_accuracy", losses if known, "num_examples"}; accuracies in [0, 1].

    With several labels per image {"mAP", losses, "num_examples"}. For an objective without classes
    the mean of each of its measures.
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
    """Means over the classes with examples, and the number of classes without."""
    known = [row for row in rows if row["examples"]]
    means: dict[str, float] = {
        "macro_precision": float(np.mean([row["precision"] for row in known])),
        "macro_recall": float(np.mean([row["recall"] for row in known])),
        "macro_f1": float(np.mean([row["f1"] for row in known])),
    }
    return means | {"classes_without_examples": len(rows) - len(known)}
