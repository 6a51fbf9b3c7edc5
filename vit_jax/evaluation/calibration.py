"""Whether confidence means what it says, how to make it so, and what is confused with what."""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from vit_jax.errors import UserError

#: Between these a temperature is looked for.
LOWEST, HIGHEST = 0.01, 100.0
CHUNK = 4096  # examples at once, in float64

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


def fit_temperature(logits: np.ndarray, labels: np.ndarray, where: str) -> float:
    """T of the lowest mean cross-entropy of softmax(logits / T) (arXiv 1706.04599, section 4.2).

    The cross-entropy is convex in 1/T; T is where its slope is zero.

    Args:
      logits: (n, k). labels: (n,), below k. where: what they are of, for the message.

    Raises:
      UserError: no T from LOWEST to HIGHEST is the best.
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
            f"No temperature calibrates the answers on {where}: they say nothing of its labels."
        )
    if not slope(low) > 0:
        raise UserError(
            f"No temperature calibrates the answers on {where}: the {len(labels):,} images are all "
            "right, or nearly so. More images would tell."
        )
    return float(np.exp(brentq(slope, low, high, xtol=1e-9)))


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) counts: row the label, column the prediction."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predictions), 1)
    return matrix
