"""Losses over logits (b, k) and targets (b, k); each returns one value per example, (b,).

`class_weights` (k,) multiply the loss of labels of each class; None: all are 1.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """(b,) integers to (b, k) float32; (b, k) targets (mixed, or several labels) pass unchanged.

    Classes that the model has beyond those of the labels are negative in every example.
    """
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    missing = num_classes - labels.shape[1]
    targets = labels.astype(jnp.float32)
    return jnp.pad(targets, ((0, 0), (0, missing))) if missing else targets


def softmax_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """-sum_k t_k log softmax(logits)_k, for fine-tuning. Smoothing mixes the targets with 1/k.

    Class weights make it -sum_k w_k t_k log softmax(logits)_k.
    """
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    if class_weights is not None:
        targets = targets * class_weights
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    class_weights: jax.Array | None = None,
    *,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """One binary cross-entropy per class, summed over the classes: pre-training's loss.

    Smoothing s makes the targets 1 - s and s (0.9999 and 0.0001 for s = 1e-4). Class weights apply
    to the positive term: -sum_k w_k t_k log p_k + (1 - t_k) log(1 - p_k).
    """
    targets = (1 - label_smoothing) * targets + label_smoothing * (1 - targets)
    if class_weights is not None:
        logits = logits.astype(jnp.float32)
        there, not_there = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
        return -(class_weights * targets * there + (1 - targets) * not_there).sum(axis=-1)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    return losses.sum(axis=-1)


LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
}
