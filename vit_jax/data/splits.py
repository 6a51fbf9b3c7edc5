"""Split expressions in TFDS' syntax: "train[:90%]+validation"."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from vit_jax.data.source import Subset, Union
from vit_jax.errors import UserError, nearest

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}


def slice_split(split: str, sizes: dict[str, int], spec: str) -> list[tuple[str, range]]:
    """ "train[:90%]+test" as [("train", range(...)), ("test", range(...))].

    Bounds are percents or counts and may be negative, as in TFDS; percents are rounded.

    Raises:
      UserError: no such split, or bounds that make no sense.
    """
    parts = []
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\[(-?\d+%?)?:(-?\d+%?)?\])?\s*", part)
        if not match:
            raise UserError(f"{spec}: the split {part!r} is not NAME or NAME[a:b] (with % or not).")
        name = match[1] if match[1] in sizes else SPLIT_NAMES.get(match[1], match[1])
        if name not in sizes:
            raise UserError(
                f"{spec} has no split {match[1]!r}; there are {', '.join(sizes)}."
                f"{nearest(match[1], sizes)}"
            )
        size = sizes[name]

        def bound(text: str | None, default: int, size: int = size) -> int:
            if text is None:
                return default
            value = round(int(text[:-1]) / 100 * size) if text.endswith("%") else int(text)
            return min(max(value + size if value < 0 else value, 0), size)

        parts.append((name, range(bound(match[2], 0), bound(match[3], size))))
    return parts


class Splits:
    """The named splits of a data set: call it with a split expression to get a source."""

    def __init__(self, base: str, splits: dict[str, Any]):
        self.base, self.splits = base, splits

    def names(self) -> list[str]:
        return list(self.splits)

    def __call__(self, split: str) -> Any:
        sizes = {name: len(source) for name, source in self.splits.items()}
        parts = slice_split(split, sizes, self.base)
        pieces = [
            Subset(self.splits[name], np.arange(rows.start, rows.stop), f"{self.base}[{split}]")
            for name, rows in parts
        ]
        if len(pieces) == 1:
            name, rows = parts[0]
            whole = self.splits[name]
            return whole if len(rows) == len(whole) else pieces[0]
        return Union(pieces, f"{self.base}[{split}]")
