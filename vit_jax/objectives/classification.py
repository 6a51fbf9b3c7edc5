"""Classification: labels, their losses, and what is right about an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from vit_jax import models
from vit_jax.models.layers import Randomness, split
from vit_jax.objectives import losses
from vit_jax.objectives.objective import Batch, Objective


def classification(
    apply: Callable[..., Any],
    num_classes: int,
    *,
    loss: Callable[[jax.Array, jax.Array], jax.Array] = losses.softmax_cross_entropy,
    mixup_alpha: float = 0.0,
    training_loss: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    multilabel: bool = False,
) -> Objective:
    """The objective of pre-training and fine-tuning; "label" is (b,) int32 or (b, k).

    Args:
      apply: (params, images, key=None) -> logits (b, k).
      loss: (logits, targets) -> (b,).
      mixup_alpha: pairs of images are mixed by Beta(alpha, alpha); 0: not.
      training_loss: measured under its own name beside the plain loss.
      multilabel: an image has any number of labels; "label" is (b, k) of 0 and 1.
    """

    def batch_loss(params: dict[str, jax.Array], batch: Batch, key: Randomness) -> jax.Array:
        images = models.normalise(batch["image"])
        targets = losses.one_hot(batch["label"], num_classes)
        if mixup_alpha:
            key, mix_key = split(key)
            images, targets = mixup(images, targets, mixup_alpha, mix_key)
        return loss(apply(params, images, key=key), targets)

    measured = measures_of_several if multilabel else measures_of
    return Objective(batch_loss, measures(apply, num_classes, measured, training_loss))


def mixup(
    images: jax.Array, targets: jax.Array, alpha: float, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mixes every example with its mirror place in the batch (arXiv 1710.09412), as BiT fine-tunes.

    One share, drawn from Beta(alpha, alpha), for the whole batch; shapes stay as they are.
    """
    share = jax.random.beta(key, alpha, alpha)
    return (
        share * images + (1 - share) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def measures(
    apply: Callable[..., Any],
    num_classes: int,
    measured: Callable[..., dict[str, jax.Array]],
    training_loss: Callable | None = None,
) -> Callable[[dict[str, jax.Array], Batch], dict[str, jax.Array]]:
    """The function (params, batch) -> per-example results of `measured`, to be jitted."""

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
    """What is reported of logits (b, num_classes) and labels (b,).

    Returned are "correct", "top5", "prediction", "confidence" and "loss", each (b,): the plain
    softmax cross-entropy, whatever a model was trained with, so that runs can be compared.
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
    """The same of labels (b, k) of 0 and 1: "logits" (b, num_classes) and "loss" (b,).

    The loss is the plain sigmoid cross-entropy. What else is reported depends on all examples of a
    class together (evaluation/multilabel.py).
    """
    targets = losses.one_hot(labels, num_classes)
    results = {"logits": logits, "loss": losses.sigmoid_cross_entropy(logits, targets)}
    if training_loss is not None:
        results["training_loss"] = training_loss(logits, targets)
    return results
