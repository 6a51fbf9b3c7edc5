"""Attention on real images, one layer at a time, to need memory for one layer only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.inspection.attention import attention_distance, patch_attention, rollout_step
from vit_jax.models import ablations


class AttentionStats(NamedTuple):
    """distance: (layers, heads) in pixels. rollout, rows: of the class token, if there is one.

    rollout: (b, grid_h, grid_w). rows: (b, layers, heads, grid_h, grid_w), what the class token
    attends to (without one: what all patches attend to, on average).
    """

    distance: np.ndarray
    rollout: np.ndarray | None
    rows: np.ndarray


def attention_layers(
    config: models.ModelConfig, params: models.Params, images: np.ndarray
) -> Iterator[np.ndarray]:
    """Attention weights of every layer in turn, (b, heads, t, t).

    Args:
      images: (b, h, w, c) in [-1, 1].

    Raises:
      UserError: the model has no attention over all tokens.
    """
    if type(config) is not models.ViTConfig:
        raise UserError(
            f"{config.variant} has no attention over all tokens; only its embedding filters and "
            "features can be inspected."
        )
    config = models.replace(models.at_rest(config), scan=False)
    model = models.set_params(models.abstract(config), jax.tree.map(jnp.asarray, dict(params)))
    assert isinstance(model, models.VisionTransformer)
    z = jax.jit(lambda m, x: m.embed(m.patches(x)))(model, jnp.asarray(images))

    @jax.jit
    def layer(block, z):
        return block(z), block.attention_weights(z)

    for i, block in enumerate(model.blocks):
        z = ablations.add_position(model.position_embedding, model.config, z, i) if i else z
        z, weights = layer(block, z)
        yield np.asarray(weights)


def attention_stats(
    config: models.ModelConfig, params: models.Params, images: np.ndarray
) -> AttentionStats:
    """Distance, rollout and the class token's attention of some images."""
    distances, rows, joint = [], [], None
    has_token = getattr(config, "classifier", "") == "token"
    for weights in attention_layers(config, params, images):
        distances.append(attention_distance(weights[None], config.grid, config.image_size)[0])
        if has_token:
            rows.append(weights[:, :, 0, 1:])
            step = rollout_step(weights)
            joint = step if joint is None else step @ joint
        else:
            rows.append(patch_attention(weights, config.grid).mean(axis=2))
    stacked = np.stack(rows, axis=1)
    return AttentionStats(
        np.stack(distances),
        None if joint is None else joint[:, 0, 1:].reshape(-1, *config.grid),
        stacked.reshape(*stacked.shape[:3], *config.grid),
    )


def occlusion(
    config: models.ModelConfig, params: models.Params, image: np.ndarray, cells: int = 7
) -> tuple[np.ndarray, int]:
    """The drop of the predicted class's probability when a part of the image is grey.

    Args:
      image: (h, w, c) in [-1, 1], divided into about cells x cells parts along patch borders.

    Returns:
      (rows, columns) drops in probability, and the class.
    """
    h, w, _ = image.shape
    step_h, step_w = (
        max(stride, -(-size // cells // stride) * stride)
        for size, stride in zip((h, w), getattr(config, "stride", (1, 1)), strict=True)
    )
    _, apply = models.as_functions(models.replace(config, dtype="float32"))
    probability = jax.nn.sigmoid if config.multilabel else jax.nn.softmax
    run = jax.jit(lambda p, x: probability(apply(p, x)))
    whole = np.asarray(run(params, image[None]))[0]
    label = int(whole.argmax())
    tops, lefts = range(0, h, step_h), range(0, w, step_w)
    covered = []
    for top in tops:
        for left in lefts:
            copy = image.copy()
            copy[top : top + step_h, left : left + step_w] = 0.0
            covered.append(copy)
    found = [
        np.asarray(run(params, np.stack(_padded(covered[i : i + 8]))))[:, label]
        for i in range(0, len(covered), 8)
    ]
    drops = whole[label] - np.concatenate(found)[: len(covered)]
    return drops.reshape(len(tops), len(lefts)), label


def _padded(images: list[np.ndarray], size: int = 8) -> list[np.ndarray]:
    """Pads images to the compiled batch size."""
    return images + [images[-1]] * (size - len(images))
