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


#: NAME or NAME[a:b]; a bound is a count or, with %, a percent, fractions included.
BOUND = r"-?[\d_]*\.?[\d_]*%?"
PART = re.compile(rf"(?P<name>[\w-]+)(?:\[(?P<low>{BOUND}):(?P<high>{BOUND})\])?")


def slice_split(split: str, sizes: dict[str, int], spec: str) -> list[tuple[str, range]]:
    """ "train[:90%]+test" as [("train", range(...)), ("test", range(...))], as TFDS reads it.

    Bounds are counts or percents, and count from the end where they are negative. A percent is
    rounded to the nearest record, halves to the even one. Where one bound is a percent, so is the
    other. "all" is every split, one after the other.

    Raises:
      UserError: no such split, or bounds outside of it.
    """
    parts: list[tuple[str, range]] = []
    for part in (text.strip() for text in split.split("+")):
        match = PART.fullmatch(part)
        if not match or (match["low"] == match["high"] == ""):
            raise UserError(f"{spec}: the split {part!r} is not NAME or NAME[a:b] (with % or not).")
        if part == "all" and part not in sizes:
            parts += [(name, range(size)) for name, size in sizes.items()]
            continue
        name = match["name"]
        name = name if name in sizes else SPLIT_NAMES.get(name.lower(), name)
        if name not in sizes:
            raise UserError(
                f"{spec} has no split {match['name']!r}; there are {', '.join(sizes)}."
                f"{nearest(match['name'], sizes)}"
            )
        size = sizes[name]
        texts = match["low"] or "", match["high"] or ""
        percent = any(text.endswith("%") for text in texts)
        try:
            low, high = (
                default if not text else bound(text, size, percent)
                for text, default in zip(texts, (0, size), strict=True)
            )
        except ValueError:
            raise UserError(
                f"{spec}: {part!r} does not fit the {size} records of {name}: bounds are numbers "
                f"of at most {'100%' if percent else size}, counts are whole."
            ) from None
        parts.append((name, range(low, max(low, high))))
    return parts


def bound(text: str, size: int, percent: bool) -> int:
    """The record that a bound of a slice names; ValueError if it lies outside."""
    if percent:
        share = float(text.rstrip("%"))
        if abs(share) > 100:
            raise ValueError
        value = round(share * size / 100.0)
    else:
        value = int(text)
    if abs(value) > size:
        raise ValueError
    return value + size if value < 0 else value


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
