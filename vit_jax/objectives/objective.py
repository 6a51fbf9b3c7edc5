"""What a model is trained for; the training step itself knows nothing of labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from vit_jax.numerics.bits import Randomness

Batch = dict[str, jax.Array]


def no_parameters(key: jax.Array) -> dict[str, jax.Array]:
    """No parameters of its own."""
    del key
    return {}


class Objective(NamedTuple):
    """An objective over batches with "image" (b, h, w, c) uint8 and other keys that it reads.

    loss: (params, batch, key) -> (b,) float32, per-example losses, which the step averages.
      The key is for the model; `models.layers.split` derives a `jax.random` key from it.
    measure: (params, batch) -> {name: (b,)}, per-example metrics of an evaluation.
    init: key -> parameters of its own; their paths begin with "objective/", and they are dropped
      on export and fine-tuning.
    show: (params, images (b, h, w, c) uint8) -> {name: likewise}, rows of pictures for the report.
    mix: (batch, key) -> a batch of mixed examples for `loss`, applied to the whole batch before it
      is divided into micro-batches; without accumulation `loss` mixes itself. None: no mixing.
    """

    loss: Callable[[dict[str, jax.Array], Batch, Randomness], jax.Array]
    measure: Callable[[dict[str, jax.Array], Batch], dict[str, jax.Array]]
    init: Callable[[jax.Array], dict[str, Any]] = no_parameters
    show: Callable[[dict[str, jax.Array], jax.Array], dict[str, jax.Array]] | None = None
    mix: Callable[[Batch, Randomness], Batch] | None = None
