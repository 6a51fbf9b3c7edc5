"""What a model is trained for: the one thing that the step knows of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vit_jax.numerics.bits import Randomness

Batch = dict[str, jax.Array]


def nothing_of_its_own(key: jax.Array) -> dict[str, jax.Array]:
    """The parameters of an objective that has none."""
    del key
    return {}


class Objective(NamedTuple):
    """An objective over batches with "image" (b, h, w, c) uint8 and whatever else it reads.

    loss: (params, batch, key) -> (b,) float32, the loss of each example; the step takes their mean.
      The key is for the model; `models.layers.split` makes one of `jax.random` of it.
    measure: (params, batch) -> {name: (b,)}, what an evaluation reports of each example.
    init: key -> parameters of its own; their paths begin with "objective/", and neither an export
      nor fine-tuning has them.
    show: (params, images (b, h, w, c) uint8) -> {name: likewise}, rows of pictures for the report.
    mix: (batch, key) -> a batch whose examples are of several, for `loss` to go on with, made of
      the whole batch before it is cut into parts; an uncut one `loss` mixes itself. None: not.
    """

    loss: Callable[[dict[str, jax.Array], Batch, Randomness], jax.Array]
    measure: Callable[[dict[str, jax.Array], Batch], dict[str, jax.Array]]
    init: Callable[[jax.Array], dict[str, Any]] = nothing_of_its_own
    show: Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]] | None = None
    mix: Callable[[Batch, Randomness], Batch] | None = None
