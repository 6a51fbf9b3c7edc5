"""Figure 7 left and centre, and Figure 10: embedding filters and position embeddings."""

from __future__ import annotations

import numpy as np

from vit_jax import models
from vit_jax.errors import UserError

COMPONENTS = 28


def embedding_filters(config: models.ModelConfig, params: models.Params) -> np.ndarray:
    """The filters that are applied to pixels, (height, width, channels, filters).

    For a hybrid or a ResNet those of its root convolution.
    """
    for path in ("stem/conv_root/kernel", "patch_embedding/kernel", "conv_root/kernel"):
        if path in params:
            return np.asarray(params[path], np.float32)
    raise UserError(f"{config.variant} has no filters on pixels.")


def filter_components(
    filters: np.ndarray, count: int = COMPONENTS
) -> tuple[np.ndarray, np.ndarray]:
    """Principal components of the filters as images (Figure 7, left).

    Args:
      filters: (h, w, c, n).

    Returns:
      components (count, h, w, c) scaled to [0, 1] each, and their share of the variance (count,).
    """
    h, w, c, n = filters.shape
    rows = filters.reshape(-1, n).T.astype(np.float64)
    rows = rows - rows.mean(axis=0)
    _, singular, vectors = np.linalg.svd(rows, full_matrices=False)
    count = min(count, len(vectors))
    images = vectors[:count].reshape(count, h, w, c)
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    share = singular**2 / max((singular**2).sum(), 1e-30)
    return (images - low) / np.maximum(high - low, 1e-12), share[:count]


def position_table(config: models.ModelConfig, params: models.Params) -> np.ndarray:
    """Position embeddings of the patches, (n, d), without the class token's.

    Raises:
      UserError: the model adds none to its input; says which kind it has.
    """
    kind = getattr(config, "position_embedding", None)
    if kind == "1d":
        table = np.asarray(params["position_embedding/0/embedding"])[0]
        return table[table.shape[0] - config.grid[0] * config.grid[1] :]
    if kind == "2d":
        y, x = (np.asarray(params[f"position_embedding/0/{axis}"]) for axis in "yx")
        rows, columns = config.grid
        return np.concatenate([np.repeat(y, columns, axis=0), np.tile(x, (rows, 1))], axis=1)
    what = "a ResNet has none" if kind is None else f"its kind is {kind!r}"
    raise UserError(f"{config.variant} adds no position embeddings to its tokens: {what}.")


def position_similarity(config: models.ModelConfig, params: models.Params) -> np.ndarray:
    """Cosine similarity of every position embedding to all others (Figure 7 centre, Figure 10).

    Returns:
      (rows, columns, rows, columns): [i, j] is the tile of the patch in row i, column j.
    """
    table = position_table(config, params).astype(np.float64)
    table = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return (table @ table.T).reshape(*config.grid, *config.grid)
