"""The step knows nothing of labels: a toy objective with parameters of its own trains."""

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.objectives.objective import Objective
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step


def brightness(apply):
    """Predicts the mean pixel of an image from the model's first output, by a scale of its own."""

    def error(params, batch):
        images = batch["image"].astype(jnp.float32) / 255
        found = params["objective/scale"] * apply(params, images)
        return jnp.square(found - images.mean(axis=(1, 2, 3)))

    def init(key):
        return {"objective/scale": 1.0 + jax.random.uniform(key)}

    return Objective(lambda params, batch, key: error(params, batch), measure_of(error), init)


def measure_of(error):
    return lambda params, batch: {"error": error(params, batch)}


def test_an_objective_without_labels_is_trained():
    objective = brightness(lambda params, images: images[:, 0, 0, 0] * params["weight"])
    params = {"weight": jnp.float32(0.1)} | objective.init(jax.random.key(0))
    optimizer = optim.sgd(momentum=0.9, accumulator_dtype="float32")
    now = state.create(params, optimizer, polyak=False)
    step = jax.jit(make_train_step(objective, optimizer, lambda step: jnp.float32(0.1), seed=0))
    rng = np.random.default_rng(0)
    flat = np.broadcast_to(rng.integers(50, 256, (32, 1, 1, 1), np.uint8), (32, 4, 4, 3))
    batch = {"image": jnp.asarray(flat)}
    before = objective.measure(now.params, batch)["error"].mean()
    for _ in range(200):
        now, _ = step(now, batch)
    after = objective.measure(now.params, batch)["error"].mean()
    assert after < 1e-4 < before
    # Only the product of both scales is determined, and both have learned.
    weight, scale = float(now.params["weight"]), float(now.params["objective/scale"])
    np.testing.assert_allclose(weight * scale, 1.0, atol=0.02)
    assert weight != 0.1 and scale != float(params["objective/scale"])
