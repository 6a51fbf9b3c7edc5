"""`vit_jax.predict`: the most likely classes of images, in Python."""

from __future__ import annotations

import numbers
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
    """Classifies images, in batches.

    Args:
      model: from `load_model`.
      images: as for `vit_jax.preprocess`: paths, PIL images, uint8 arrays, also mixed.
      top_k: number of classes, 1 or more.
      progress: show a bar; None: for more than one batch, on a terminal or in a notebook.

    Returns:
      For each image a list, best first, of {"label", "class", "probability"}; for multi-label
      models also "threshold" and "chosen".

    Raises:
      UserError: something is not an image (names it), or the classifier is untrained.
    """
    if not hasattr(model, "config"):
        raise UserError(f"predict takes a model from load_model, but got a {type(model).__name__}.")
    if not isinstance(top_k, numbers.Integral) or top_k < 1:
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
            found += best(models.logits(model, pixels), model.config, top_k)
            bar.update(len(part))
    return found
