"""Whether confidence means what it says, and what is confused with what."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

#: The predictions whose confidence lies between two bounds; without any, the means are nan.
Bin = TypedDict(
    "Bin", {"from": float, "to": float, "count": int, "confidence": float, "accuracy": float}
)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> list[Bin]:
    """Per bin of confidence: its bounds, how many predictions, their confidence and accuracy."""
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.digitize(confidence, edges[1:-1], right=True), 0, bins - 1)
    rows: list[Bin] = []
    for i in range(bins):
        mine = which == i
        rows.append(
            {
                "from": float(edges[i]),
                "to": float(edges[i + 1]),
                "count": int(mine.sum()),
                "confidence": float(confidence[mine].mean()) if mine.any() else float("nan"),
                "accuracy": float(correct[mine].mean()) if mine.any() else float("nan"),
            }
        )
    return rows


def expected_calibration_error(
    confidence: np.ndarray, correct: np.ndarray, bins: int = 15
) -> float:
    """ECE (arXiv 1706.04599): mean |accuracy - confidence| over bins, weighted by their counts."""
    rows = [row for row in reliability(confidence, correct, bins) if row["count"]]
    total = sum(row["count"] for row in rows)
    return sum(row["count"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / total


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) counts: row the label, column the prediction."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
