"""A kind of data in one file: stripes that are made, across or along the image."""

import numpy as np

from vit_jax.data.source import ArraySource
from vit_jax.data.splits import Splits


def open_splits(name, data_dir, options) -> Splits:
    """`toy_data.py:SIZE`, squares of SIZE pixels: 48 to train on and 24 to test."""
    size, parts = int(name), {}
    for split, count in (("train", 48), ("test", 24)):
        labels = np.arange(count, dtype=np.int32) % 2
        rows = 255 * (np.arange(size) // 2 + np.arange(count)[:, None] // 2 & 1).astype(np.uint8)
        images = np.broadcast_to(rows[:, :, None, None], (count, size, size, 3)).copy()
        images[labels == 1] = images[labels == 1].swapaxes(1, 2)
        spec = f"stripes:{name}[{split}]"
        parts[split] = ArraySource(images, labels, ("across", "along"), spec=spec)
    return Splits(f"stripes:{name}", parts)
