"""Calibration error, temperature scaling, and the confusion matrix."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from vit_jax.errors import UserError

#: Search range of the temperature.
LOWEST, HIGHEST = 0.01, 100.0
CHUNK = 4096  # examples per chunk, in float64

#: The predictions with a confidence between two bounds; without any, the means are nan.
Bin = TypedDict(
    "Bin", {"from": float, "to": float, "count": int, "confidence": float, "accuracy": float}
)


def reliability(confidence: np.ndarray, correct: np.ndarray, bins: int = 15) -> list[Bin]:
    """Per bin of confidence: its bounds, and count, mean confidence and accuracy of predictions."""
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


def fit_temperature(logits: np.ndarray, labels: np.ndarray, where: str) -> float:
    """T of the lowest mean cross-entropy of softmax(logits / T) (arXiv 1706.04599, section 4.2).

    The cross-entropy is convex in 1/T; T is where its slope is zero.

    Args:
      logits: (n, k). labels: (n,), below k. where: the data, for the message.

    Raises:
      UserError: there is no optimum between LOWEST and HIGHEST.
    """
    from scipy.optimize import brentq

    def slope(log_temperature: float) -> float:
        """d cross-entropy / d (1/T): the mean of E[z] - z_label under softmax(z / T)."""
        total = 0.0
        for start in range(0, len(labels), CHUNK):
            z = logits[start : start + CHUNK].astype(np.float64)
            z -= z.max(axis=1, keepdims=True)
            weights = np.exp(z / np.exp(log_temperature))
            expected = (weights * z).sum(axis=1) / weights.sum(axis=1)
            mine = labels[start : start + CHUNK]
            total += float((expected - z[np.arange(len(z)), mine]).sum())
        return total / len(labels)

    low, high = float(np.log(LOWEST)), float(np.log(HIGHEST))
    if not slope(high) < 0:
        raise UserError(
            f"No temperature calibrates predictions on {where}: they do not depend on the labels."
        )
    if not slope(low) > 0:
        raise UserError(
            f"No temperature calibrates predictions on {where}: (nearly) all {len(labels):,} are "
            "correct. Use more images."
        )
    return float(np.exp(brentq(slope, low, high, xtol=1e-9)))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Confusion matrix, (num_classes, num_classes) counts: row the label, column the prediction."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
