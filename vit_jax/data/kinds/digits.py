"""`digits`: handwritten digits from scikit-learn, so that a first run needs no download."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vit_jax.data.source import ArraySource
from vit_jax.data.splits import Splits


def open_digits(name: str, data_dir: str | None, options: Mapping[str, str]) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8: every fifth is a test digit, 360 in all."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat((digits.images * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
    names = tuple(map(str, range(10)))
    return Splits(
        "digits",
        {
            split: ArraySource(
                images[rows],
                labels[rows],
                names,
                spec=f"digits[{split}]",
                names=np.flatnonzero(rows).astype(str),
            )
            for split, rows in (("train", ~is_test), ("test", is_test))
        },
    )
