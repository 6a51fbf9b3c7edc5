"""A source under the class numbers of another: the one way in which classes of data meet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.data.labels import match_classes
from vit_jax.data.source import Record, Source, digest
from vit_jax.errors import UserError


class Relabelled(Source):
    """A source whose classes are numbered otherwise: label i becomes numbers[i]."""

    def __init__(self, source: Source, numbers: np.ndarray, class_names: Sequence[str]):
        self.source, self.numbers = source, numbers
        self.spec, self.notes = source.spec, source.notes
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.fingerprint = digest(source.fingerprint.encode(), b"classes", numbers.tobytes())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = record["label"]
        if label >= len(self.numbers):
            raise UserError(
                f"The record {record['name']} has the label {label}, outside "
                f"0..{len(self.numbers) - 1}."
            )
        return record | {"label": label if label < 0 else int(self.numbers[label])}

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]  # it is made, not kept
        found = self.source.labels
        if found is None:
            return None
        return np.where(found < 0, found, self.numbers[np.clip(found, 0, len(self.numbers) - 1)])

    def name(self, index: int) -> str:
        return self.source.name(index)

    def names(self) -> list[str]:
        return self.source.names()

    def find(self, names: set[str]) -> np.ndarray:
        return self.source.find(names)

    def origins(self) -> list[tuple[str, np.ndarray]]:
        return self.source.origins()

    def holds(self, store: str, numbers: np.ndarray) -> np.ndarray:
        return self.source.holds(store, numbers)


def with_classes(source: Source, class_names: Sequence[str], of: str) -> Source:
    """`source` with its labels as numbers of `class_names`, matched by name; itself if it has them.

    Raises:
      UserError: it has a class that is not among them; names the first.
    """
    found = match_classes(class_names, source.class_names, here=of, there=source.spec)
    if found.by == "same":
        return source
    return Relabelled(source, found.numbers, class_names)
