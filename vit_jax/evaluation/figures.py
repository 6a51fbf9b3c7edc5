"""Pictures of predictions: confusion matrix, calibration, and confident mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax import data
from vit_jax.data.source import Source
from vit_jax.evaluation import calibration
from vit_jax.pages.figures import Figure, as_text, hide_axes, new_figure

NAMED_CLASSES = 30  # more names are not readable
SHOWN, COLUMNS = 24, 6  # images of a contact sheet


def confusion(matrix: np.ndarray, names: Sequence[str]) -> Figure:
    """Rows are labels, columns predictions; the colour is the fraction of the row."""
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(4.0, 0.32 * len(names) + 1.5), 11.0)
    figure, axes = new_figure(1, 1, side + 1.0, side)
    cell = axes[0, 0]
    image = cell.imshow(share, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    if len(names) <= NAMED_CLASSES:
        shown = [as_text(name) for name in names]
        cell.set_xticks(range(len(names)), shown, rotation=90)
        cell.set_yticks(range(len(names)), shown)
        for row, column in np.argwhere(matrix):
            colour = "white" if share[row, column] > 0.5 else "#1a202c"
            cell.text(column, row, matrix[row, column], ha="center", va="center", fontsize=7,
                      color=colour)  # fmt: skip
    cell.set_xlabel("prediction")
    cell.set_ylabel("label")
    figure.colorbar(image, ax=cell, shrink=0.8, label="fraction of the label's examples")
    return figure


def reliability(confidence: np.ndarray, correct: np.ndarray) -> Figure:
    """Accuracy against confidence; the diagonal is perfect calibration."""
    rows = [row for row in calibration.reliability(confidence, correct) if row["count"]]
    error = calibration.expected_calibration_error(confidence, correct)
    figure, axes = new_figure(1, 1, 4.8, 4.6)
    cell = axes[0, 0]
    width = rows[0]["to"] - rows[0]["from"]
    cell.bar(
        [row["from"] for row in rows],
        [row["accuracy"] for row in rows],
        width=width,
        align="edge",
        color="#90cdf4",
        edgecolor="#2b6cb0",
        label="accuracy",
    )
    cell.plot([0, 1], [0, 1], color="#4a5568", linestyle="--", label="perfect calibration")
    most = max(row["count"] for row in rows)
    for row in rows:  # predictions in a bar
        cell.plot(
            [row["confidence"]], [row["accuracy"]], "o", color="#c05621",
            markersize=2 + 6 * (row["count"] / most) ** 0.5,
        )  # fmt: skip
    cell.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    cell.set_title(f"calibration error {100 * error:.1f}%")
    cell.legend(loc="upper left", framealpha=0.9)
    return figure


def mistakes(
    results: Mapping[str, np.ndarray], source: Source, names: Sequence[str]
) -> Figure | None:
    """The mistakes with the highest confidence, as a contact sheet; None if there are none."""
    wrong = np.flatnonzero(~results["correct"].astype(bool))
    worst = wrong[np.argsort(-results["confidence"][wrong], kind="stable")][:SHOWN]
    titles = [
        f"{as_text(names[results['prediction'][i]], 20)} {100 * results['confidence'][i]:.0f}%\n"
        f"is {as_text(names[results['label'][i]], 20)}"
        for i in worst
    ]
    return sheet(source, results["index"][worst].tolist(), titles)


def wrong_labels(
    results: Mapping[str, np.ndarray],
    labels: np.ndarray,
    said: np.ndarray,
    source: Source,
    names: Sequence[str],
) -> Figure | None:
    """As `mistakes` for several labels: the largest losses, with the classes missed and wrong.

    labels, said: labels and predictions, (n, k) of 0 and 1; the images are those that differ.
    """
    labels, said = labels.astype(bool), said.astype(bool)
    wrong = np.flatnonzero((labels != said).any(axis=1))
    worst = wrong[np.argsort(-results["loss"][wrong], kind="stable")][:SHOWN]
    titles = []
    for i in worst:
        parts = (("missed", labels[i] & ~said[i]), ("wrong", said[i] & ~labels[i]))
        found = [(what, np.flatnonzero(row).tolist()) for what, row in parts]
        lines = [(what, ", ".join(names[k] for k in classes)) for what, classes in found if classes]
        titles.append("\n".join(f"{what}: {as_text(text, 20)}" for what, text in lines))
    return sheet(source, results["index"][worst].tolist(), titles)


def sheet(source: Source, numbers: Sequence[int], titles: Sequence[str]) -> Figure | None:
    """Images of a source with a title each; None without any."""
    if not len(numbers):
        return None
    columns = min(COLUMNS, len(numbers))
    rows = -(-len(numbers) // columns)
    figure, axes = new_figure(rows, columns, 1.75 * columns, 2.15 * rows)
    for cell in axes.flat:
        hide_axes(cell)
    for cell, number, title in zip(axes.flat, numbers, titles, strict=False):
        record = source[int(number)]
        cell.imshow(data.picture(record["image"], record["name"]))
        cell.set_title(title, fontsize=8)
    return figure
