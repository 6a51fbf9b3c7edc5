"""`digits`: handwritten digits from scikit-learn, so that a first run needs no download."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import util
from pathlib import Path

import numpy as np

from vit_jax.data.source import ArraySource
from vit_jax.data.splits import Splits
from vit_jax.errors import UserError

#: In scikit-learn: 64 values from 0 to 16, and the label. Importing it takes 3 s of each first run.
TABLE = "datasets/data/digits.csv.gz"


def read_table() -> np.ndarray:
    """(1797, 65) uint8, rows as in TABLE."""
    found = util.find_spec("sklearn")
    if found is None or not found.submodule_search_locations:
        raise UserError("digits come with scikit-learn: pip install scikit-learn")
    return np.loadtxt(Path(found.submodule_search_locations[0]) / TABLE, np.uint8, delimiter=",")


def open_digits(name: str, data_dir: str | None, options: Mapping[str, str]) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8: every fifth is a test digit, 360 in all."""
    if name:
        raise UserError(f"digits has no parts to name, such as {name!r}; images are folder:{name}.")
    table = read_table()
    values = table[:, :64].reshape(-1, 8, 8, 1)
    images = np.repeat((values * (255 / 16)).round().astype(np.uint8), 3, axis=-1)
    labels = table[:, 64].astype(np.int32)
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
