"""Few-shot linear evaluation (section 4.1): ridge regression from frozen features to {-1, 1}^K.

Closed form. The paper does not give the regulariser or how examples are drawn; both are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from vit_jax.data.transforms import make_transform
from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.features import frozen
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.result import Result

SHOTS = (1, 5, 10, 25)
L2 = 2.0**10
#: Candidates in code of that time: one is chosen per number of shots, over all data sets.
L2_SWEEP = tuple(2.0**i for i in range(-10, 20))
BIAS = 100.0  # a large constant feature, so that its weight is hardly regularised


def fewshot(
    forward: Forward,
    data: DataSets,
    *,
    shots: tuple[int, ...] = SHOTS,
    seeds: int = 3,
    l2: float | Literal["sweep"] = L2,
    preprocessing: Literal["protocol", "model"] = "protocol",
) -> Result:
    """Few-shot linear accuracy (section 4.1) on each data set, from features before any tanh.

    Args:
      shots: training examples of each class.
      seeds: draws of the examples.
      l2: the regulariser; sweep: for each number of shots the best mean rank over the data sets,
        from 2^-10 to 2^19.
      preprocessing: protocol: a square resize and central crop (256 to 224); model: the model's.
    """
    if seeds < 1 or min(shots) < 1:
        raise UserError("Few-shot evaluation needs at least one draw of at least one example.")
    if isinstance(l2, float) and not 0 < l2 < float("inf"):
        raise UserError(f"--l2={l2:g} must be above 0, or sweep.")
    transform = None
    if preprocessing == "protocol":
        transform = make_transform(
            name="square_center_crop",
            size=forward.image_size,
            train=False,
            orient=bool(dict(forward.preprocessing).get("orient")),
        )
    l2s = L2_SWEEP if isinstance(l2, str) else (l2,)
    results = {
        spec: accuracies(
            *frozen(forward, data, spec, transform), shots=shots, seeds=range(seeds), l2s=l2s
        )
        for spec in data.specs
    }
    chosen = {k: best_l2(results, k) for k in shots}
    rows: list[dict[str, object]] = []
    table = ["few-shot linear accuracy"]
    metrics = {}
    for spec, found in results.items():
        for k in shots:
            best = chosen[k]
            mean, std, draws = *_mean_and_std(found[k][best]), len(found[k][best])
            rows.append(
                {"data": spec, "shots": k, "accuracy": mean, "std": std, "seeds": draws, "l2": best}
            )
            table.append(
                f"  {spec}  {k:>2} shots  {100 * mean:.2f}% ± {100 * std:.2f} "
                f"({draws} draws, l2 {best:g})"
            )
            metrics[f"{spec}/{k}_shots"] = mean
    return Result({"results": rows}, table, metrics, rows)


def _mean_and_std(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def whiten(x_train: np.ndarray, x_test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both sets standardised by training mean and deviation, with the bias feature."""
    x_train, x_test = np.asarray(x_train, np.float64), np.asarray(x_test, np.float64)
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0) + 1e-5

    def prepared(x: np.ndarray) -> np.ndarray:
        return np.pad((x - mean) / deviation, ((0, 0), (0, 1)), constant_values=BIAS)

    return prepared(x_train), prepared(x_test)


def ridge_scores(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    num_classes: int,
    l2: float = L2,
) -> np.ndarray:
    """Scores (n_test, num_classes) of the regression W = (X'X + l2 I)^-1 X'Y, Y = 2 onehot - 1.

    Args:
      x_train, x_test: features (n, d), pre-logits before any tanh.
      y_train: (n,) in 0..num_classes - 1.
    """
    return ridge_path(x_train, y_train, x_test, num_classes, (l2,))[l2]


def ridge_path(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    num_classes: int,
    l2s: Sequence[float],
) -> dict[float, np.ndarray]:
    """`ridge_scores` for many l2 with one decomposition."""
    x, z = whiten(x_train, x_test)
    y = 2.0 * np.eye(num_classes)[np.asarray(y_train)] - 1.0
    if len(x) < x.shape[1]:  # fewer examples than features: X'(XX' + l2 I)^-1 Y is the same
        values, vectors = np.linalg.eigh(x @ x.T)
        left, right = (z @ x.T) @ vectors, vectors.T @ y
    else:
        values, vectors = np.linalg.eigh(x.T @ x)
        left, right = z @ vectors, vectors.T @ (x.T @ y)
    values = np.maximum(values, 0.0)
    return {l2: (left / (values + l2)) @ right for l2 in l2s}


def choose_shots(labels: np.ndarray, shots: int, num_classes: int, seed: int) -> np.ndarray:
    """Indices of `shots` examples of every class, drawn without replacement.

    Raises:
      UserError: a class has fewer; names it.
    """
    rng = np.random.default_rng(seed)
    chosen = []
    for label in range(num_classes):
        mine = np.flatnonzero(labels == label)
        if len(mine) < shots:
            raise UserError(
                f"{shots}-shot evaluation needs {shots} training examples of every class; class "
                f"{label} has {len(mine)}. Lower --shots."
            )
        chosen.append(rng.permutation(mine)[:shots])
    return np.concatenate(chosen)


def accuracies(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    num_classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (0, 1, 2),
    l2s: Sequence[float] = (L2,),
) -> dict[int, dict[float, list[float]]]:
    """{shots: {l2: accuracies in [0, 1], one per seed}}."""
    found: dict[int, dict[float, list[float]]] = {}
    for k in shots:
        rows: dict[float, list[float]] = {l2: [] for l2 in l2s}
        for seed in seeds:
            chosen = choose_shots(y_train, k, num_classes, seed)
            path = ridge_path(x_train[chosen], y_train[chosen], x_test, num_classes, l2s)
            for l2, scores in path.items():
                rows[l2].append(float((scores.argmax(axis=1) == y_test).mean()))
        found[k] = rows
    return found


def best_l2(results: Mapping[str, Mapping[int, Mapping[float, list[float]]]], shots: int) -> float:
    """The l2 with the best mean rank over all data sets, for a number of shots.

    Args:
      results: {data set: result of `accuracies`}.
    """
    l2s = list(next(iter(results.values()))[shots])
    ranks = np.zeros(len(l2s))
    for found in results.values():
        means = np.array([np.mean(found[shots][l2]) for l2 in l2s])
        above = [(means > mean).sum() + ((means == mean).sum() - 1) / 2 for mean in means]
        ranks += np.array(above)
    return l2s[int(ranks.argmin())]
