"""The training step and the forward pass from shapes only, for compilation without the device."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vit_jax import models
from vit_jax.bench.jobs import CLIP, LEARNING_RATE, WEIGHT_DECAY
from vit_jax.numerics import Machine
from vit_jax.objectives.classification import classification
from vit_jax.runtime import sharding
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step


def step_of(
    config: models.ModelConfig, machine: Machine, mesh: Mesh, batch: int, *, train: bool
) -> tuple[Any, tuple[Any, ...]]:
    """The training step (Adam, clipped gradients) or the logits of a batch, and its arguments.

    The training state is donated, and sharded as by the trainer.

    Args:
      machine: the target for which numerics are chosen.
      mesh: of devices that need not exist here.
      batch: uint8 images of a step, over all devices.

    Returns:
      The jitted function, and its arguments as shapes with shardings, for `.trace(*arguments)`.
    """
    init, apply = models.as_functions(config, models.numerics_of(config, machine))
    whole, split = NamedSharding(mesh, PartitionSpec()), sharding.batch_sharding(mesh)
    images = jax.ShapeDtypeStruct(
        (batch, *config.image_size, config.channels), np.uint8, sharding=split
    )
    key = jax.random.key(0)
    if train:
        optimizer = optim.adam(weight_decay=WEIGHT_DECAY)
        _, start = state.initialise(init, key, optimizer, mesh, polyak=False)
        run = make_train_step(
            classification(apply, config.num_classes),
            optimizer,
            schedule=lambda step: jnp.float32(LEARNING_RATE),
            seed=0,
            gradient_clip_norm=CLIP,
        )
        where = jax.tree.map(lambda leaf: leaf.sharding, start)
        labels = jax.ShapeDtypeStruct((batch,), np.int32, sharding=split)
        jitted = jax.jit(run, donate_argnums=0, out_shardings=(where, whole))
        return jitted, (start, {"image": images, "label": labels})

    def infer(params, images):
        return apply(params, models.normalise(images))

    shapes = jax.eval_shape(init, key)
    params = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        sharding.tree_shardings(shapes, shapes, mesh),
    )
    return jax.jit(infer, out_shardings=split), (params, images)
