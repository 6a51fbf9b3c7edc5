"""Attention distance (section 4.5, Appendix D.7) and attention rollout (Appendix D.8)."""

from __future__ import annotations

import numpy as np

from vit_jax.errors import UserError


def token_distances(grid: tuple[int, int], image_size: tuple[int, int]) -> np.ndarray:
    """Euclidean distance in pixels between the centres of any two patches, (n, n) raster order."""
    rows, columns = grid
    y, x = np.divmod(np.arange(rows * columns), columns)
    y, x = y * image_size[0] / rows, x * image_size[1] / columns
    return np.hypot(y[:, None] - y[None, :], x[:, None] - x[None, :])


def patch_attention(weights: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Attention among patches only: drops the class token's row and column if there is one.

    Args:
      weights: (..., t, t) with t the number of patches of `grid`, or one more.

    Raises:
      UserError: t is neither.
    """
    patches, tokens = grid[0] * grid[1], weights.shape[-1]
    if tokens not in (patches, patches + 1):
        raise UserError(
            f"Attention over {tokens} tokens does not fit a grid of {grid[0]}x{grid[1]} patches."
        )
    skip = tokens - patches
    return weights[..., skip:, skip:]


def attention_distance(
    weights: np.ndarray, grid: tuple[int, int], image_size: tuple[int, int] | int
) -> np.ndarray:
    """Mean attention distance of every head in pixels, (layers, heads): Figure 7 right, Figure 11.

    The distance of a query to all patches, weighted by its attention (not renormalised without the
    class token), then the mean over queries and images.

    Args:
      weights: (layers, heads, t, t), or (layers, b, heads, t, t) over b images; rows sum to 1.
      grid: patches (down, across).
      image_size: pixels.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
    distances = token_distances(grid, (size[0], size[1]))
    among = patch_attention(np.asarray(weights), grid)
    per_query = (among * distances).sum(axis=-1)
    mean = per_query.mean(axis=-1)  # over queries: (layers, heads) or (layers, b, heads)
    return mean.mean(axis=1) if mean.ndim == 3 else mean


def attention_rollout(weights: np.ndarray, grid: tuple[int, int] | None = None) -> np.ndarray:
    """The attention of the class token to every patch through all layers, (grid_h, grid_w).

    Heads are averaged, the residual is added as the identity, rows are normalised, and the layers
    are multiplied, last to first (arXiv 2005.00928).

    Args:
      weights: (layers, heads, t, t) of one image; token 0 is the class token.
      grid: patches (down, across); None means square.

    Raises:
      UserError: there is no class token to read, or `grid` does not fit.
    """
    weights = np.asarray(weights, np.float64)
    tokens = weights.shape[-1]
    if grid is None:
        side = round((tokens - 1) ** 0.5)
        grid = (side, side)
    if grid[0] * grid[1] + 1 != tokens:
        raise UserError(
            f"Attention rollout reads the row of the class token; {tokens} tokens are not a class "
            f"token and {grid[0]}x{grid[1]} patches."
        )
    joint = np.eye(tokens)
    for layer in weights:
        joint = rollout_step(layer) @ joint
    return joint[0, 1:].reshape(grid)


def rollout_step(weights: np.ndarray) -> np.ndarray:
    """One layer of a rollout: (..., heads, t, t) to (..., t, t) with rows that sum to 1."""
    mixed = weights.mean(axis=-3) + np.eye(weights.shape[-1], dtype=weights.dtype)
    return mixed / mixed.sum(axis=-1, keepdims=True)
