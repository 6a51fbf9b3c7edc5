"""A source with the class indices of another data set."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vit_jax.data.labels import NO_LABEL, match_classes
from vit_jax.data.multilabel import withheld
from vit_jax.data.source import Record, Source, digest
from vit_jax.errors import UserError


class Relabelled(Source):
    """A source with renumbered classes: label i becomes numbers[i]."""

    def __init__(self, source: Source, numbers: np.ndarray, class_names: Sequence[str]):
        self.source, self.numbers = source, numbers
        self.spec, self.notes, self.multilabel = source.spec, source.notes, source.multilabel
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.fingerprint = digest(source.fingerprint.encode(), b"classes", numbers.tobytes())

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Record:
        record = self.source[index]
        label = record["label"]
        if isinstance(label, np.ndarray):
            return record | {"label": self.scattered(label[None])[0]}
        if label >= len(self.numbers):
            raise UserError(
                f"The record {record['name']} has the label {label}, outside "
                f"0..{len(self.numbers) - 1}."
            )
        return record | {"label": label if label < 0 else int(self.numbers[label])}

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]  # computed, not stored
        found = self.source.labels
        if found is None:
            return None
        if self.multilabel:
            return self.scattered(found)
        return np.where(found < 0, found, self.numbers[np.clip(found, 0, len(self.numbers) - 1)])

    def scattered(self, labels: np.ndarray) -> np.ndarray:
        """Multi-label targets (n, theirs) as (n, ours); classes that they lack are 0."""
        found = np.zeros((len(labels), self.num_classes), np.int8)
        found[:, self.numbers] = labels
        found[withheld(labels)] = NO_LABEL
        return found

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
    """`source` with labels as indices into `class_names`, matched by name; itself if equal.

    Raises:
      UserError: it has a class that is not among them; names the first.
    """
    found = match_classes(class_names, source.class_names, here=of, there=source.spec)
    if found.by == "same":
        return source
    return Relabelled(source, found.numbers, class_names)
