"""Evaluation images as timm and transformers make them: Pillow's antialiased resize, and a crop."""

from __future__ import annotations

import math

import numpy as np

from vit_jax.data.decode import Image

Size = tuple[int, int]
#: Above this number of pixels only the crop is resized: a strip of 1x60,000 would fill gigabytes.
#: Values may then differ by one, or by more where a filter overshoots, since Pillow may do its two
#: passes in another order.
CROP_BEFORE_RESIZE = 2**24


def pillow(
    image: Image,
    size: Size,
    *,
    interpolation: str = "bilinear",
    resize: Size | None = None,
    fit: str = "squash",
    whole: str = "down",
    centre: str = "down",
    fill: tuple[int, ...] = (0, 0, 0),
) -> Image:
    """Evaluation as in timm and transformers: resized by Pillow, antialiased, central crop.

    Args:
      interpolation: nearest, box, bilinear, hamming, bicubic or lanczos.
      resize: (height, width) before the central crop; None is `size`.
      fit: "squash" to it, "cover" it with the aspect ratio kept, or stay inside ("contain").
      whole, centre: rounding of the resized sides and of the crop's corner: "down" or "nearest".
      fill: the colour where the crop is larger than the image.
    """
    import PIL.Image

    full_height, full_width = resize or size
    height, width = image.shape[:2]
    if fit != "squash":
        scale = (max if fit == "cover" else min)(full_height / height, full_width / width)
        nearest = int if whole == "down" else round
        # One side is exact; the other is computed from integers, as in both libraries.
        tall, wide = full_height / height == scale, full_width / width == scale
        full_height, full_width = (
            full_height if tall else max(1, nearest(full_width * height / width)),
            full_width if wide else max(1, nearest(full_height * width / height)),
        )
    new = full_height, full_width
    kept = min(full_height, size[0]), min(full_width, size[1])
    place = int if centre == "down" else round
    corner = place((full_height - kept[0]) / 2), place((full_width - kept[1]) / 2)
    filter_ = PIL.Image.Resampling[interpolation.upper()]
    if (height, width) != new and full_height * full_width > CROP_BEFORE_RESIZE:
        image = _resized_crop(image, new, corner, kept, filter_)
    else:
        if (height, width) != new:
            image = np.asarray(
                PIL.Image.fromarray(image).resize((full_width, full_height), filter_)
            )
        image = _box(image, corner, kept)
    if kept == tuple(size):
        return image
    padded = np.empty((*size, 3), np.uint8)
    padded[:] = fill
    top, left = ((full - side) // 2 for full, side in zip(size, kept, strict=True))
    padded[top : top + kept[0], left : left + kept[1]] = image
    return padded


def _resized_crop(image: Image, new: Size, corner: Size, size: Size, filter_: int) -> Image:
    """The box of `size` at `corner` of `image` resized to `new`, by Pillow."""
    import PIL.Image

    parts, edges = [], []
    for old, full, start, kept in zip(image.shape, new, corner, size, strict=False):
        low, high = start * old / full, (start + kept) * old / full
        margin = 4 * max(old / full, 1)  # more than any filter reads beside the box
        first = max(math.floor(low - margin), 0)
        parts.append(slice(first, math.ceil(high + margin)))
        edges.append((low - first, high - first))
    (top, bottom), (left, right) = edges
    part = PIL.Image.fromarray(np.ascontiguousarray(image[tuple(parts)]))
    return np.asarray(part.resize(size[::-1], filter_, (left, top, right, bottom)))


def _box(image: Image, corner: Size, size: Size) -> Image:
    (top, left), (height, width) = corner, size
    return image[top : top + height, left : left + width]
