"""Nearest neighbours by cosine similarity: the quality of features without training."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.features import frozen
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.result import Result

CHUNK = 1024


def knn(forward: Forward, data: DataSets, *, k: tuple[int, ...] = (1, 5, 10, 20)) -> Result:
    """Accuracy of the nearest neighbours' vote on each data set.

    Args:
      k: number of neighbours that vote.
    """
    if min(k) < 1:
        raise UserError("--k must be whole numbers, 1 or more: how many neighbours vote.")
    rows: list[dict[str, object]] = []
    table = ["nearest neighbours, cosine similarity"]
    metrics = {}
    for spec in data.specs:
        for count, accuracy in accuracies(*frozen(forward, data, spec), ks=k).items():
            rows.append({"data": spec, "k": count, "accuracy": accuracy})
            table.append(f"  {spec}  k={count:<3} {100 * accuracy:.2f}%")
            metrics[f"{spec}/k_{count}"] = accuracy
    return Result({"results": rows}, table, metrics, rows)


def unit_rows(x: np.ndarray) -> np.ndarray:
    """Rows (n, d) of length 1; a row of zeros stays one."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def nearest_neighbours(x: np.ndarray, bank: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices and similarities (n, k) of the most similar rows of `bank`, best first."""
    x, bank = unit_rows(x), unit_rows(bank)
    indices, similarities = [], []
    for start in range(0, len(x), CHUNK):
        similarity = x[start : start + CHUNK] @ bank.T
        top = np.argpartition(-similarity, min(k, similarity.shape[1]) - 1, axis=1)[:, :k]
        values = np.take_along_axis(similarity, top, axis=1)
        order = np.argsort(-values, axis=1, kind="stable")
        indices.append(np.take_along_axis(top, order, axis=1))
        similarities.append(np.take_along_axis(values, order, axis=1))
    return np.concatenate(indices), np.concatenate(similarities)


def accuracies(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    num_classes: int,
    *,
    ks: Sequence[int] = (1, 5, 10, 20),
) -> dict[int, float]:
    """{k: accuracy in [0, 1]}: a vote of the k nearest, each weighted by its similarity.

    Those of `ks` that exceed the training images are left out.

    Raises:
      UserError: all of them do.
    """
    if min(ks) > len(x_train):
        raise UserError(
            f"--k={','.join(map(str, ks))} is too many: there are {len(x_train)} training images."
        )
    ks = [k for k in ks if k <= len(x_train)]
    indices, similarities = nearest_neighbours(x_test, x_train, max(ks))
    found = {}
    for k in ks:
        votes = np.zeros((len(x_test), num_classes))
        rows = np.arange(len(x_test))[:, None]
        np.add.at(votes, (rows, np.asarray(y_train)[indices[:, :k]]), similarities[:, :k] + 1.0)
        found[k] = float((votes.argmax(axis=1) == y_test).mean())
    return found
