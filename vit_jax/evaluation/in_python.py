"""`vit_jax.predict`: the most likely classes of images that a program has."""

from __future__ import annotations

import sys

from tqdm import tqdm

from vit_jax import models
from vit_jax.data.photos import listed, preprocess
from vit_jax.errors import UserError
from vit_jax.evaluation.predict import BATCH_SIZE, best
from vit_jax.models import adapt


def predict(
    model, images: object, top_k: int = 5, *, progress: bool | None = None
) -> list[list[dict]]:
    """Classifies images, some at a time.

    Args:
      model: from `load_model`.
      images: what `vit_jax.preprocess` takes: paths, PIL images, uint8 arrays, also a mixture.
      top_k: how many classes, 1 or more.
      progress: a bar; None: of more than one batch, on a terminal and in a notebook.

    Returns:
      For each image a list, best first, of {"label", "class", "probability"}; of a model of several
      labels an image also "threshold" and "chosen".

    Raises:
      UserError: what is no image, names it; or a classifier that was never trained.
    """
    if not hasattr(model, "config"):
        raise UserError(f"predict takes a model of load_model, and got a {type(model).__name__}.")
    if not isinstance(top_k, int) or top_k < 1:
        raise UserError(f"top_k={top_k!r} must be a whole number, 1 or more.")
    adapt.check_head(models.get_params(model))
    several = listed(model.config, images)
    if progress is None:
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        progress = seen and len(several) > BATCH_SIZE
    found: list[list[dict]] = []
    with tqdm(total=len(several), unit=" images", disable=not progress, leave=False) as bar:
        for start in range(0, len(several), BATCH_SIZE):
            part = several[start : start + BATCH_SIZE]
            pixels = preprocess(model, part, first=start)
            found += best(model(pixels), model.config, top_k)
            bar.update(len(part))
    return found
