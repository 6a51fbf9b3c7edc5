"""Mixup and CutMix over the whole batch: every example with its mirror position.

Pairs depend on the position alone and shares on seed and step, so mixing is the same for any number
of devices, processes and micro-batches, and after a resume.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

Pair = tuple[jax.Array, jax.Array]


def mix(
    images: jax.Array,
    targets: jax.Array,
    key: jax.Array,
    *,
    mixup_alpha: float = 0.0,
    cutmix_alpha: float = 0.0,
) -> Pair:
    """`mixup` or `cutmix`, whichever alpha is above 0; with both, each in half the steps.

    images: (b, h, w, c). targets: (b, k). Shapes stay as they are.
    """
    if not cutmix_alpha:
        return mixup(images, targets, mixup_alpha, key)
    if not mixup_alpha:
        return cutmix(images, targets, cutmix_alpha, key)
    which, key = jax.random.split(key)
    one = mixup(images, targets, mixup_alpha, key)
    other = cutmix(images, targets, cutmix_alpha, key)
    first = jax.random.bernoulli(which)
    return jnp.where(first, one[0], other[0]), jnp.where(first, one[1], other[1])


def mixup(images: jax.Array, targets: jax.Array, alpha: float, key: jax.Array) -> Pair:
    """Mixes every example with its mirror position in the batch (arXiv 1710.09412), as BiT does.

    One share, drawn from Beta(alpha, alpha), for the whole batch; shapes stay as they are.
    """
    share = jax.random.beta(key, alpha, alpha)
    return (
        share * images + (1 - share) * images[::-1],
        share * targets + (1 - share) * targets[::-1],
    )


def cutmix(images: jax.Array, targets: jax.Array, alpha: float, key: jax.Array) -> Pair:
    """Replaces a box of each image by that of its mirror position (arXiv 1905.04899, algorithm 1).

    One box for the whole batch: its area is 1 - Beta(alpha, alpha) of the image, its centre
    uniform, clipped at the border. Targets are mixed by the remaining share.
    """
    area, down, across = jax.random.split(key, 3)
    side = jnp.sqrt(1 - jax.random.beta(area, alpha, alpha))

    def within(size: int, key: jax.Array) -> jax.Array:
        """The rows, or columns, (size,) that the box covers."""
        half = (side * size).astype(jnp.int32) // 2
        centre = jax.random.randint(key, (), 0, size)
        place = jnp.arange(size)
        return (place >= centre - half) & (place < centre + half)

    box = within(images.shape[1], down)[:, None] & within(images.shape[2], across)
    left = 1 - box.mean(dtype=jnp.float32)
    return (
        jnp.where(box[None, :, :, None], images[::-1], images),
        left * targets + (1 - left) * targets[::-1],
    )
