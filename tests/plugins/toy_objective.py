"""An objective in one file: the colour of the image's centre, from the mean of the tokens."""

import jax
import jax.numpy as jnp

from vit_jax.objectives.labels import reads_no_labels
from vit_jax.objectives.objective import Objective


@reads_no_labels
def centre_colour(apply, model, *, scale: float = 1.0) -> Objective:
    """Squared error of a colour in [-1, 1], times `scale`; no label is read.

    apply: (params, x, *, key=None, method="__call__"). model: the model's configuration.
    """

    def init(key):
        shape = (model.hidden_size, 3)
        return {"objective/centre/kernel": 0.02 * jax.random.normal(key, shape, jnp.float32)}

    def errors(params, batch, key=None):
        images = batch["image"].astype(jnp.float32) / 127.5 - 1.0
        tokens = apply(params, apply(params, images, method="patches"), key=key, method="encode")
        found = tokens.astype(jnp.float32).mean(axis=1) @ params["objective/centre/kernel"]
        height, width = images.shape[1:3]
        return scale * ((found - images[:, height // 2, width // 2]) ** 2).mean(axis=-1)

    return Objective(errors, lambda params, batch: {"error": errors(params, batch)}, init)
