"""Several labels per image: average precision, F1, and thresholds chosen on other data.

Scores are ranked as logits: probabilities far from 1/2 round to the same number.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, TypedDict

import numpy as np

from vit_jax.data.multilabel import from_numbers
from vit_jax.data.relabel import Relabelled
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation import figures, per_image
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, Measure, left_out, measured
from vit_jax.evaluation.matching import match_labels
from vit_jax.evaluation.result import Result
from vit_jax.objectives.classification import measures_of_several

#: Threshold on the probability of a class: the model's own, one chosen for all classes, one per
#: class; or a number.
Threshold = float | Literal["model", "one", "per_class"]
DEFAULT = 0.5  # default of a model without one
SHOWN = 20  # classes that are printed

#: examples: number with the class. The rest is None for a class without any.
ClassRow = TypedDict(
    "ClassRow",
    {
        "label": int,
        "class": str,
        "examples": int,
        "average_precision": float | None,
        "precision": float | None,
        "recall": float | None,
        "f1": float | None,
        "threshold": float,
    },
)


class Counts(NamedTuple):
    """Per class, (k,): number of positives, predicted positives, and both."""

    there: np.ndarray
    said: np.ndarray
    both: np.ndarray


def average_precision(scores: np.ndarray, there: np.ndarray) -> float:
    """sum_i (R_i - R_{i-1}) P_i over the distinct scores, from the highest, in [0, 1].

    Precision P_i and recall R_i are for the examples with at least the i-th score; equal scores
    are one step, as in scikit-learn's average_precision_score.

    Args:
      scores: (n,), any numbers. there: (n,), 1 where the class is; somewhere at least.
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(order) - 1)
    found = np.cumsum(there[order], dtype=np.int64)[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / found[-1])


def average_precisions(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(k,) average precisions of (n, k) logits and labels; NaN for a class without examples."""
    there = labels.any(axis=0)
    found = np.full(labels.shape[1], np.nan)
    for k in np.flatnonzero(there):
        found[k] = average_precision(logits[:, k], labels[:, k])
    return found


def probabilities(logits: np.ndarray) -> np.ndarray:
    """The sigmoid, in float64."""
    return np.exp(-np.logaddexp(0, -logits.astype(np.float64)))


def best_threshold(scores: np.ndarray, there: np.ndarray) -> float:
    """The threshold with the best F1 = 2 TP / (2 TP + FP + FN), half-way to the next lower score.

    The highest of equally good ones.

    Args:
      scores: (n,) probabilities. there: (n,), 1 where the class is; somewhere at least.
    """
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(order) - 1)
    found = np.cumsum(there[order], dtype=np.int64)[last]
    best = int(np.argmax(2 * found / (last + 1 + found[-1])))
    high = float(ordered[last[best]])
    low = float(ordered[last[best + 1]]) if best + 1 < len(last) else 0.0
    middle = (high + low) / 2
    return middle if middle > low else high


def choose_thresholds(
    logits: np.ndarray, labels: np.ndarray, each: bool
) -> tuple[tuple[float, ...], list[int]]:
    """Thresholds with the best F1, and the classes without an example to choose one on.

    One for all classes, by micro-averaged F1; or, if `each`, one per class, where classes without
    an example get the common one.

    Raises:
      UserError: no class has an example.
    """
    scores, there = probabilities(logits), np.asarray(labels.any(axis=0))
    if not there.any():
        raise UserError("A threshold cannot be chosen: no image has any of the classes.")
    common = best_threshold(scores[:, there].ravel(), labels[:, there].ravel())
    if not each:
        return (common,), []
    found = [
        best_threshold(scores[:, k], labels[:, k]) if there[k] else common
        for k in range(labels.shape[1])
    ]
    return tuple(found), np.flatnonzero(~there).tolist()


def counts(labels: np.ndarray, said: np.ndarray) -> Counts:
    """Counts from labels and predictions, (n, k) each."""
    labels, said = labels.astype(bool), said.astype(bool)
    return Counts(labels.sum(axis=0), said.sum(axis=0), (labels & said).sum(axis=0))


def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole; 0 where whole is 0, as scikit-learn's zero_division=0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=np.asarray(whole) > 0)


def scores_of(found: Counts) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and F1 of each class, (k,)."""
    there, said, both = found
    return ratio(both, said), ratio(both, there), ratio(2 * both, there + said)


def summarise(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """{"mAP": mean average precision over the classes with examples}; {} without any."""
    found = average_precisions(logits, from_numbers(labels, logits.shape[1]))
    known = found[~np.isnan(found)]
    return {"mAP": float(known.mean())} if len(known) else {}


def check_model(forward: Forward, source: Source) -> None:
    """Raises UserError for a single-label model on multi-label data."""
    if source.multilabel and not forward.multilabel:
        raise UserError(
            f"{source.spec} has several labels per image, and {forward.name} was trained for one; "
            "train it with config.loss.name=sigmoid_cross_entropy on such data first."
        )


def answers(
    forward: Forward, source: Source, data: DataSets, max_bad_images: int = 0
) -> tuple[dict[str, np.ndarray], np.ndarray, str]:
    """Results with "logits" and "loss", the labels (n, k) of the model's classes, and a remark.

    Raises:
      UserError: the model is untrained, single-label, or lacks classes of the data.
    """
    check_model(forward, source)
    forward.check_head()
    mapping, remark = match_labels(forward, source)
    if not source.multilabel:
        remark = "; ".join(filter(None, (remark, "one label per image")))
    names = forward.labels or source.class_names
    known: Source = source
    if not np.array_equal(mapping, np.arange(len(names))):
        known = Relabelled(source, mapping, names)
    results = measured(
        forward, several_of(forward.num_classes), known, data, max_bad_images=max_bad_images
    )
    return results, from_numbers(results["label"], forward.num_classes), remark


@functools.lru_cache(maxsize=4)
def several_of(num_classes: int) -> Measure:
    """(logits, labels) -> "logits" and "loss"; labels may be class indices."""
    return functools.partial(measures_of_several, num_classes=num_classes)


class Chosen(NamedTuple):
    """thresholds: one, or one per class. on: the data that they were chosen on, or "".

    text: their origin. without: classes without an example to choose one on.
    """

    thresholds: tuple[float, ...]
    on: str
    text: str
    without: list[int]


def chosen(
    forward: Forward, source: Source, data: DataSets, threshold: Threshold, threshold_data: str
) -> Chosen:
    """The thresholds of an evaluation of `source`.

    Raises:
      UserError: not a probability, or it would be chosen on test data.
    """
    if threshold not in ("one", "per_class"):
        if threshold_data:
            raise UserError("--threshold_data needs --threshold=one or --threshold=per_class.")
        if isinstance(threshold, (int, float)):
            if not 0 <= threshold <= 1:
                raise UserError(f"--threshold={threshold} must be a probability, in [0, 1].")
            return Chosen((float(threshold),), "", "as given", [])
        if forward.thresholds:
            return Chosen(forward.thresholds, "", "the model's own", [])
        return Chosen((DEFAULT,), "", "the default", [])
    validation = data.validation(source, threshold_data, "threshold")
    results, labels, _ = answers(forward, validation, data)
    thresholds, without = choose_thresholds(results["logits"], labels, threshold == "per_class")
    return Chosen(thresholds, validation.spec, f"chosen on {validation.spec}", without)


def evaluate(
    forward: Forward,
    source: Source,
    data: DataSets,
    *,
    threshold: Threshold = "model",
    threshold_data: str = "",
    max_bad_images: int = 0,
) -> Result:
    """Mean average precision, and F1 at a threshold, in total and per class."""
    used = chosen(forward, source, data, threshold, threshold_data)
    results, labels, remark = answers(forward, source, data, max_bad_images)
    names = forward.labels or source.class_names
    at = np.broadcast_to(np.array(used.thresholds), (forward.num_classes,))
    said = probabilities(results["logits"]) >= at
    found = counts(labels, said)
    rows = per_class(average_precisions(results["logits"], labels), found, names, at)
    summary = overall(rows, found) | {"loss": float(results["loss"].mean())}
    gone = [row["class"] for row in rows if not row["examples"]]
    bad, lines = left_out(len(labels), source)
    record: dict[str, object] = {
        "data": source.spec,
        **summary,
        "num_examples": len(labels),
        "threshold": used.thresholds[0] if len(used.thresholds) == 1 else "per class",
        "threshold_from": used.text,
        "classes_without_examples": gone,
        **bad,
        "per_class": rows,
    }
    if used.without:
        record["classes_without_threshold"] = [names[k] for k in used.without]
    return Result(
        record=record,
        table=[
            f"{source.spec}: {len(labels)} examples{f'; {remark}' if remark else ''}",
            *lines,
            *(f"  {note}" for note in source.notes),
            *printed(summary, rows, gone, used, names),
        ],
        metrics=summary,
        rows=rows,
        csv="classification_per_class",
        model={"thresholds": used.thresholds} if used.on else {},
        images=functools.partial(of_images, source, results, labels, said, names, data.top_k),
        pictures={
            "wrong_labels": functools.partial(
                figures.wrong_labels, results, labels, said, source, names
            )
        },
    )


def of_images(
    source: Source,
    results: Mapping[str, np.ndarray],
    labels: np.ndarray,
    said: np.ndarray,
    names: Sequence[str],
    top_k: int,
) -> per_image.Columns:
    """The table of all images. labels, said: labels and predictions, (n, k) of 0 and 1."""
    scores = probabilities(results["logits"])
    ranked = np.argsort(-results["logits"], axis=-1, kind="stable")[:, :top_k]
    found = {
        "index": results["index"],
        "ranked": ranked,
        "probabilities": np.take_along_axis(scores, ranked, axis=-1),
    }
    lists, answers = (
        [[names[int(k)] for k in np.flatnonzero(row)] for row in rows] for rows in (labels, said)
    )
    return per_image.of_answers(source, found, lists, answers, names, several=True)


def per_class(
    precisions: np.ndarray, found: Counts, names: tuple[str, ...], thresholds: np.ndarray
) -> list[ClassRow]:
    """A row for each class; None where a class has no example."""
    columns = [column.tolist() for column in (precisions, *scores_of(found))]
    rows: list[ClassRow] = []
    for label, (name, count) in enumerate(zip(names, found.there.tolist(), strict=True)):
        values = [column[label] if count else None for column in columns]
        rows.append(
            {
                "label": label,
                "class": name,
                "examples": count,
                "average_precision": values[0],
                "precision": values[1],
                "recall": values[2],
                "f1": values[3],
                "threshold": float(thresholds[label]),
            }
        )
    return rows


def overall(rows: list[ClassRow], found: Counts) -> dict[str, float]:
    """Means over the classes with an example, and F1 over all answers together.

    Raises:
      UserError: no class has an example.
    """
    known = found.there > 0
    if not known.any():
        raise UserError("No image has any of the classes, so nothing can be evaluated.")
    micro = Counts(*(np.atleast_1d(column.sum()) for column in found))
    precision, recall, f1 = (float(column[0]) for column in scores_of(micro))
    means = [float(column[known].mean()) for column in scores_of(found)]
    precisions = [p for row in rows if (p := row["average_precision"]) is not None]
    return {
        "mAP": float(np.mean(precisions)),
        "micro_precision": precision,
        "micro_recall": recall,
        "micro_f1": f1,
        "macro_precision": means[0],
        "macro_recall": means[1],
        "macro_f1": means[2],
    }


def printed(
    summary: dict[str, float],
    rows: list[ClassRow],
    gone: list[str],
    used: Chosen,
    names: tuple[str, ...],
) -> list[str]:
    """Lines of the table."""
    low, high = min(used.thresholds), max(used.thresholds)
    text = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
    lines = [
        f"  mAP    {100 * summary['mAP']:.2f}% of {len(rows) - len(gone)} classes",
        *(
            f"  {kind}  precision {100 * summary[f'{kind}_precision']:.2f}%, recall "
            f"{100 * summary[f'{kind}_recall']:.2f}%, F1 {100 * summary[f'{kind}_f1']:.2f}%"
            for kind in ("micro", "macro")
        ),
        f"  threshold  {text}, {used.text}",
        f"  loss   {summary['loss']:.4f}",
    ]
    for classes, why in (
        (gone, "have no example here and are not in the means"),
        ([names[k] for k in used.without], "have no example to choose a threshold on"),
    ):
        if classes:
            few = ", ".join(classes[:5]) + (", ..." if len(classes) > 5 else "")
            lines.append(f"  {len(classes)} classes {why}: {few}")
    known = [row for row in rows if row["examples"]]
    return lines + class_lines(known, ("average_precision", "precision", "recall", "f1"))


def class_lines(rows: Sequence[Mapping], keys: tuple[str, ...]) -> list[str]:
    """The classes with the lowest F1, each with some of its numbers."""
    worst = sorted(rows, key=lambda row: row["f1"])[:SHOWN]
    width = max((len(row["class"]) for row in worst), default=0)
    heads = [key.replace("_", " ") for key in keys]
    lines = [f"  {'class':<{width}}  {'examples':>8}  {'  '.join(f'{h:>9}' for h in heads)}"]
    for row in worst:
        cells = "  ".join(
            f"{100 * row[key]:>{max(9, len(head)) - 1}.2f}%"
            for key, head in zip(keys, heads, strict=True)
        )
        lines.append(f"  {row['class']:<{width}}  {row['examples']:>8}  {cells}")
    if more := len(rows) - len(worst):
        lines.append(f"  {more} more classes, with a higher F1, in the CSV")
    return lines if worst else []
