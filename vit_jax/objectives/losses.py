"""Losses over logits (b, k) and targets (b, k); each returns one value per example, (b,)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """(b,) integers to (b, k) float32; (b, k) targets, such as mixed or several labels, pass."""
    if labels.ndim == 1:
        return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32)
    return labels.astype(jnp.float32)


def softmax_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """-sum_k t_k log softmax(logits)_k, for fine-tuning. Smoothing mixes the targets with 1/k."""
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[-1]
    return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets)


def sigmoid_cross_entropy(
    logits: jax.Array, targets: jax.Array, *, label_smoothing: float = 0.0
) -> jax.Array:
    """One binary cross-entropy per class, summed over the classes: pre-training's loss.

    Smoothing s makes the targets 1 - s and s (0.9999 and 0.0001 for s = 1e-4).
    """
    targets = (1 - label_smoothing) * targets + label_smoothing * (1 - targets)
    losses = optax.losses.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), targets)
    return losses.sum(axis=-1)


LOSSES: dict[str, Callable] = {
    "softmax_cross_entropy": softmax_cross_entropy,
    "sigmoid_cross_entropy": sigmoid_cross_entropy,
}
