"""Thirty fine-tuning steps end where the original's own update function ends.

`golden/trajectory.npz` was made by google-research/vision_transformer c6de1e5
(`train.make_update_fn`): a ViT of two layers, SGD with momentum 0.9, clipping at 1, and a cosine
schedule with warm-up. Measured differences of weights: 1.3e-7 with the float32 accumulator, 1.2e-4
with bfloat16.
"""

import golden_weights
import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.interop import npz
from vit_jax.objectives.classification import classification
from vit_jax.runtime import sharding
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step

#: Largest difference of a weight, and relative one of a loss.
TOLERANCES = {"float32": 1e-6, "bfloat16": 3e-4}
STEPS, BATCH, CLASSES = 30, 16, 10
CONFIG = models.get_config(
    "debug",
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    mlp_dim=64,
    patch_size=4,
    image_size=16,
    num_classes=CLASSES,
)


#: Flax's own names of a block's parts, as the original makes them; and as it released them.
RELEASED = {
    "LayerNorm_1": "LayerNorm_2",
    "MultiHeadDotProductAttention_0": "MultiHeadDotProductAttention_1",
    "MlpBlock_0": "MlpBlock_3",
}


def parameters(numbers, part):
    """Our parameters from the arrays of `part`."""
    official = {
        "/".join(RELEASED.get(piece, piece) for piece in name.split("/")[1:]): array
        for name, array in numbers.items()
        if name.startswith(f"{part}/")
    }
    return npz.from_official(official, CONFIG)


def train(params, accumulator_dtype, learning_rate=0.03):
    """Losses and parameters after all steps, on one device."""
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (STEPS, BATCH, 16, 16, 3), dtype=np.uint8)
    labels = images.reshape(STEPS, BATCH, -1).astype(np.int64).sum(-1) % CLASSES
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    _, apply = models.as_functions(CONFIG)
    optimizer = optim.sgd(momentum=0.9, accumulator_dtype=accumulator_dtype)
    placed = sharding.params_to_devices(params, mesh)
    make, _ = state.initialise(dict, placed, optimizer, mesh, polyak=False)
    step = jax.jit(
        make_train_step(
            classification(apply, CLASSES),
            optimizer,
            schedule=optim.learning_rate_schedule("cosine", learning_rate, STEPS, 5),
            seed=0,
            gradient_clip_norm=1.0,
        )
    )
    now, found = make(), []
    with jax.default_matmul_precision("highest"):
        for index in range(STEPS):
            batch = {"image": images[index], "label": labels[index].astype(np.int32)}
            now, metrics = step(now, sharding.to_devices(batch, mesh))
            found.append(float(metrics["train/loss"]))
    return np.array(found), jax.device_get(now.params)


def largest_difference(found, golden):
    """Of any two weights, absolute."""
    return max(float(np.abs(found[path] - value).max()) for path, value in golden.items())


@pytest.mark.parametrize("accumulator", TOLERANCES)
def test_the_trajectory_of_the_original(accumulator):
    numbers = golden_weights.numbers("trajectory")
    losses_found, found = train(parameters(numbers, "init"), accumulator)
    golden = parameters(numbers, accumulator)
    golden_losses = numbers[f"losses_{accumulator}"]
    of_losses = float(np.abs(losses_found / golden_losses - 1).max())
    of_weights = largest_difference(found, golden)
    print(f"{accumulator}: losses {of_losses:.1e}, weights {of_weights:.1e}")
    assert of_losses < TOLERANCES[accumulator]
    assert of_weights < TOLERANCES[accumulator]


def test_another_learning_rate_leads_elsewhere():
    numbers = golden_weights.numbers("trajectory")
    _, found = train(parameters(numbers, "init"), "float32", learning_rate=0.0303)
    assert largest_difference(found, parameters(numbers, "float32")) > 1e-4
