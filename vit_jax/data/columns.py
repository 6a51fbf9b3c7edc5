"""Image and label of a row of a table, by the names of their columns."""

from __future__ import annotations

import numpy as np

from vit_jax.data.image_files import read_image_file
from vit_jax.data.labels import NO_LABEL
from vit_jax.data.source import Stored


class Columns:
    """Takes image and label from a row of a table; picklable."""

    def __init__(self, image: str, label: str):
        self.image, self.label = image, label

    def __call__(self, row: dict) -> tuple[Stored, int | np.ndarray]:
        label = row[self.label]
        return self.image_of(row), NO_LABEL if label is None else int(label)

    def image_of(self, row: dict) -> Stored:
        image = row[self.image]
        if isinstance(image, dict):  # Hugging Face: {"bytes": ..., "path": ...}
            image = image["bytes"] or read_image_file(image["path"])
        return image


class ManyColumns(Columns):
    """The same for several labels: as indices of `classes`, or as stored if that is 0."""

    def __init__(self, image: str, label: str, classes: int = 0):
        super().__init__(image, label)
        self.classes = classes

    def __call__(self, row: dict) -> tuple[Stored, np.ndarray]:
        labels = np.asarray(row[self.label])
        if self.classes:
            wide = np.zeros(self.classes, np.int8)
            wide[labels.astype(np.int64)] = 1
            labels = wide
        return self.image_of(row), labels.astype(np.int8)
