"""Classification: targets, losses and per-example metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.models.layers import Randomness, split
from vit_jax.objectives import losses, mixing
from vit_jax.objectives.objective import Batch, Objective


def classification(
    apply: Callable[..., Any],
    num_classes: int,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.softmax_cross_entropy,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
    training_loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    multilabel: bool = False,
) -> Objective:
    """The objective of pre-training and fine-tuning; "label" is (b,) int32 or (b, k).

    Args:
      apply: (params, images, key=None) -> logits (b, k).
      loss: (logits, targets) -> (b,).
      mixup_alpha, cutmix_alpha: see `mixing.mix`; 0: off.
      training_loss: reported under its own name beside the plain loss.
      multilabel: an image may have several labels; "label" is (b, k) of 0 and 1.
    """

    mixes = bool(mixup_alpha or cutmix_alpha)

    def prepared(batch: Batch, key: Randomness) -> tuple[Batch, Randomness]:
        """Images in [-1, 1] and targets (b, k), mixed if configured; and the model's key."""
        is_mixed = mixes and batch["image"].dtype != jnp.uint8
        images = batch["image"] if is_mixed else models.normalise(batch["image"])
        targets = losses.one_hot(batch["label"], num_classes)
        if mixes:
            key, mix_key = split(key)
            if not is_mixed:
                images, targets = mixing.mix(
                    images, targets, mix_key, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha
                )
        return {"image": images, "label": targets}, key

    def batch_loss(params: dict[str, jax.Array], batch: Batch, key: Randomness) -> jax.Array:
        batch, key = prepared(batch, key)
        return loss(apply(params, batch["image"], key=key), batch["label"])

    measured = measures_of_several if multilabel else measures_of
    return Objective(
        batch_loss,
        measures(apply, num_classes, measured, training_loss),
        mix=(lambda batch, key: prepared(batch, key)[0]) if mixes else None,
    )


def measures(
    apply: Callable[..., Any],
    num_classes: int,
    measured: Callable[..., dict[str, jax.Array]],
    training_loss: Callable | None = None,
) -> Callable[[dict[str, jax.Array], Batch], dict[str, jax.Array]]:
    """The function (params, batch) -> per-example metrics of `measured`, to be jitted."""

    def measure(params: dict[str, jax.Array], batch: Batch) -> dict[str, jax.Array]:
        logits = apply(params, models.normalise(batch["image"]))
        return measured(logits, batch["label"], num_classes, training_loss)

    return measure


def measures_of(
    logits: jax.Array,
    labels: jax.Array,
    num_classes: int,
    training_loss: Callable | None = None,
) -> dict[str, jax.Array]:
    """Per-example metrics of logits (b, num_classes) and labels (b,).

    Returns "correct", "top5", "prediction", "confidence" and "loss", each (b,). The loss is the
    plain softmax cross-entropy, whatever the training loss, so that runs can be compared;
    `training_loss` is reported under its own name beside it.
    """
    _, ranked = jax.lax.top_k(logits, min(5, num_classes))
    hits = ranked == labels[:, None]
    results = {
        "correct": hits[:, 0],
        "top5": hits.any(axis=1),
        "prediction": ranked[:, 0],
        "confidence": jax.nn.softmax(logits).max(axis=-1),
    }
    targets = losses.one_hot(labels, num_classes)
    results["loss"] = losses.softmax_cross_entropy(logits, targets)
    if training_loss is not None:
        results["training_loss"] = training_loss(logits, targets)
    return results


def measures_of_several(
    logits: jax.Array,
    labels: jax.Array,
    num_classes: int,
    training_loss: Callable | None = None,
) -> dict[str, jax.Array]:
    """The same for labels (b, k) of 0 and 1: "logits" (b, num_classes) and "loss" (b,).

    The loss is the plain sigmoid cross-entropy. Other metrics need all examples of a class
    together (evaluation/multilabel.py).
    """
    targets = losses.one_hot(labels, num_classes)
    results = {"logits": logits, "loss": losses.sigmoid_cross_entropy(logits, targets)}
    if training_loss is not None:
        results["training_loss"] = training_loss(logits, targets)
    return results
