"""`vit_jax.predict`: the most likely classes of images that a program has."""

from __future__ import annotations

from vit_jax import models
from vit_jax.data.photos import preprocess
from vit_jax.errors import UserError
from vit_jax.evaluation.predict import BATCH_SIZE, best
from vit_jax.models import adapt


def predict(model, images: object, top_k: int = 5) -> list[list[dict]]:
    """Classifies images.

    Args:
      model: from `load_model`.
      images: what `vit_jax.preprocess` takes: paths, PIL images, uint8 arrays, also a mixture.
      top_k: how many classes, 1 or more.

    Returns:
      For each image a list, best first, of {"label", "class", "probability"}; of a model of several
      labels an image also "threshold" and "chosen".

    Raises:
      UserError: no images, or a classifier that was never trained.
    """
    if not hasattr(model, "config"):
        raise UserError(f"predict takes a model of load_model, and got a {type(model).__name__}.")
    if not isinstance(top_k, int) or top_k < 1:
        raise UserError(f"top_k={top_k!r} must be a whole number, 1 or more.")
    adapt.check_head(models.get_params(model))
    pixels = preprocess(model, images)
    parts = [pixels[i : i + BATCH_SIZE] for i in range(0, len(pixels), BATCH_SIZE)]
    return [rows for part in parts for rows in best(model(part), model.config, top_k)]
