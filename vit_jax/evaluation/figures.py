"""Pictures of predictions: confusion matrix, calibration, and confident mistakes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax import data
from vit_jax.data.source import Source
from vit_jax.evaluation import calibration
from vit_jax.pages.figures import Figure, as_text, hide_axes, new_figure

NAMED_CLASSES = 30  # more names are not readable
SHEET = (4, 6)


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


def mistakes(results: dict[str, np.ndarray], source: Source, names: Sequence[str]) -> Figure | None:
    """The mistakes with the highest confidence, as a contact sheet; None if there are none."""
    wrong = np.flatnonzero(~results["correct"].astype(bool))
    if not len(wrong):
        return None
    worst = wrong[np.argsort(-results["confidence"][wrong], kind="stable")][: SHEET[0] * SHEET[1]]
    columns = min(SHEET[1], len(worst))
    rows = -(-len(worst) // columns)
    figure, axes = new_figure(rows, columns, 1.75 * columns, 2.15 * rows)
    for cell in axes.flat:
        hide_axes(cell)
    for cell, index in zip(axes.flat, worst, strict=False):
        record = source[int(results["index"][index])]
        cell.imshow(data.decode(record["image"], record["name"]))
        said, true = names[results["prediction"][index]], names[results["label"][index]]
        cell.set_title(
            f"{as_text(said, 20)} {100 * results['confidence'][index]:.0f}%\n"
            f"is {as_text(true, 20)}",
            fontsize=8,
        )
    return figure
