"""Linear probe: logistic regression on frozen features of the whole training set.

The regulariser is chosen on a held-out tenth of the training set; then all of it is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.features import frozen
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.result import Result

INVERSE_L2 = tuple(10.0**i for i in range(-4, 4))
MAX_ITERATIONS = 1000
HELD_OUT = 0.1


def probe(forward: Forward, data: DataSets) -> Result:
    """Accuracy of logistic regression on the features of each data set's training split."""
    rows: list[dict[str, object]] = []
    table = ["linear probe"]
    metrics = {}
    for spec in data.specs:
        found, inverse_l2 = accuracy(*frozen(forward, data, spec)[:4])
        rows.append({"data": spec, "accuracy": found, "inverse_l2": inverse_l2})
        table.append(f"  {spec}  {100 * found:.2f}% (C = {inverse_l2:g})")
        metrics[spec] = found
    return Result({"results": rows}, table, metrics, rows)


def accuracy(
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    *,
    inverse_l2s: Sequence[float] = INVERSE_L2,
    seed: int = 0,
) -> tuple[float, float]:
    """Test accuracy in [0, 1], and the chosen inverse of the l2 penalty.

    Args:
      x_train, x_test: features (n, d); they are whitened by the training set's statistics.
      y_train, y_test: (n,) classes.

    Raises:
      UserError: too few training images.
    """
    mean, deviation = x_train.mean(axis=0), x_train.std(axis=0) + 1e-5
    x_train, x_test = (x_train - mean) / deviation, (x_test - mean) / deviation
    order = np.random.default_rng(seed).permutation(len(x_train))
    split = min(round(len(order) * (1 - HELD_OUT)), len(order) - 1)
    fit, held_out = order[:split], order[split:]
    if len(np.unique(y_train[fit])) < 2:
        raise UserError(
            f"A linear probe needs more than {len(order)} training images: those that it is fitted "
            "on, without a tenth, are of one class."
        )
    rising = sorted(inverse_l2s)  # each starts from the previous solution
    scores = _accuracies(x_train[fit], y_train[fit], x_train[held_out], y_train[held_out], rising)
    best = rising[int(np.argmax(scores))]
    return _accuracies(x_train, y_train, x_test, y_test, [best])[0], best


def _accuracies(
    x: np.ndarray,
    y: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    inverse_l2s: Sequence[float],
) -> list[float]:
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=MAX_ITERATIONS, warm_start=True)
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # so that weak penalties are still compared
        for inverse_l2 in inverse_l2s:
            model.set_params(C=inverse_l2).fit(x, y)
            found.append(float((model.predict(x_test) == y_test).mean()))
    return found
