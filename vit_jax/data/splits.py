"""Split expressions in TFDS' syntax: "train[:90%]+validation"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import numpy as np

from vit_jax.data.relabel import with_classes
from vit_jax.data.source import Source, Subset, Union
from vit_jax.errors import UserError, nearest

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainset": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "valset": "validation",
    "dev": "validation",
    "devset": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
    "testset": "test",
}
#: Words beside those: training_set, test-images, trainLabels, seg_train, val2017.
BESIDE = {"set", "data", "dataset", "images", "image", "imgs", "img", "labels", "split", "seg"}


def split_of(name: str) -> str | None:
    """The split that a folder, a table or a cell is named after: train for "Training_Set"."""
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+|[^\W\d_]+", name)
    left = [word.lower() for word in words if word.lower() not in BESIDE]
    return SPLIT_NAMES.get(left[0]) if len(left) == 1 else None


def one_each(names: Iterable[str], where: str) -> dict[str, str]:
    """{split: the one of `names` that is named after it}; other names are left out.

    Raises:
      UserError: two of them mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        if split := split_of(name):
            other = found.setdefault(split, name)
            if other != name:
                raise UserError(
                    f"{where} has {other} and {name}, which both mean the split {split}; merge "
                    "them, or rename one."
                )
    return found


#: NAME or NAME[a:b]; a bound is a count or, with %, a percentage, fractions included.
BOUND = r"-?[\d_]*\.?[\d_]*%?"
PART = re.compile(rf"(?P<name>[\w-]+)(?:\[(?P<low>{BOUND}):(?P<high>{BOUND})\])?")
#: A stratified tenth of the training split, and the rest of it.
KEPT, HELD_OUT = "train-kept", "train-held-out"


def slice_split(split: str, sizes: dict[str, int], spec: str) -> list[tuple[str, range]]:
    """ "train[:90%]+test" as [("train", range(...)), ("test", range(...))], as TFDS reads it.

    Bounds are counts or percentages; negative ones count from the end. A percentage is rounded to
    the nearest record, halves to even. Both bounds have the same unit. "all" is every split, one
    after the other.

    Raises:
      UserError: no such split, or bounds out of range.
    """
    parts: list[tuple[str, range]] = []
    for part in (text.strip() for text in split.split("+")):
        match = PART.fullmatch(part)
        if not match or (match["low"] == match["high"] == ""):
            raise UserError(f"{spec}: the split {part!r} is not NAME or NAME[a:b] (% is allowed).")
        if part == "all" and part not in sizes:
            parts += [(name, range(size)) for name, size in sizes.items()]
            continue
        name = match["name"]
        name = name if name in sizes else split_of(name) or name
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
                f"{spec}: {part!r} exceeds the {size} records of {name}; bounds are at most "
                f"{'100%' if percent else size}, and counts are integers."
            ) from None
        parts.append((name, range(low, max(low, high))))
    return parts


def repeats(parts: Iterable[tuple[str, range]], spec: str) -> list[str]:
    """A note on records that a split expression names again: train[:60%]+train[:50%]."""
    again, ends = 0, dict[str, int]()
    for name, rows in sorted(parts, key=lambda part: (part[0], part[1].start)):
        end = ends.get(name, 0)
        again += max(min(end, rows.stop) - rows.start, 0)
        ends[name] = max(end, rows.stop)
    return [f"{spec} names {again:,} records again, and they count again"] if again else []


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


def last_tenth_is_stratified(labels: np.ndarray) -> bool:
    """Whether train[90%:] leaves a training image of each class, and has one of each class of ten.

    labels: (n,), in the order of the split; classes with one image do not count. True for
      multi-label data (n, k).
    """
    if labels.ndim == 2:  # stratification is impossible
        return True
    cut, classes = bound("90%", len(labels), True), int(labels.max(initial=-1)) + 1
    if cut == len(labels):  # there is no tenth
        return False
    kept, held = (np.bincount(part, minlength=classes) for part in (labels[:cut], labels[cut:]))
    size = kept + held
    return not (((size >= 2) & (kept == 0)) | ((size >= 10) & (held == 0))).any()


def stratified_tenth(labels: np.ndarray) -> np.ndarray:
    """Indices of the records to hold out, sorted: a stratified tenth.

    A class of two or more has at least one.

    They are the last of each class, which keeps at least one; the remainder of rounding goes to the
    classes with the largest rounding loss, then to those with the lowest index.
    """
    count = np.bincount(labels)
    share = np.where(count > 1, count // 10, 0)
    rest = np.where(count > 1, count % 10, -1)
    wanted = max(round(len(labels) / 10), 1) - int(share.sum())
    wanted = max(wanted, 0)
    more = [label for label in np.argsort(-rest, kind="stable") if rest[label] > 0][:wanted]
    share[more] += 1
    order = np.argsort(labels, kind="stable")
    place = np.arange(len(labels)) - (np.cumsum(count) - count)[labels[order]]
    return np.sort(order[place >= (count - share)[labels[order]]])


class Splits:
    """The named splits of a data set; call it with a split expression to get a source."""

    def __init__(self, base: str, splits: Mapping[str, Source]):
        self.base, self.splits = base, splits

    def names(self) -> list[str]:
        return list(self.splits)

    def __call__(self, split: str) -> Source:
        spec = f"{self.base}[{split}]"
        if split in (KEPT, HELD_OUT) and "train" in self.splits:
            whole = self.splits["train"]
            if whole.multilabel:
                raise UserError(
                    f"{self.base}: {split} is for data with one label per image; use train[:90%] "
                    "and train[90%:]."
                )
            assert whole.labels is not None  # those of KEPT and HELD_OUT are known
            tenth = stratified_tenth(whole.labels)
            rest = np.delete(np.arange(len(whole)), tenth)
            return Subset(whole, tenth if split == HELD_OUT else rest, spec)
        sizes = {name: len(source) for name, source in self.splits.items()}
        parts = slice_split(split, sizes, self.base)
        pieces = [
            Subset(self.splits[name], np.arange(rows.start, rows.stop), spec)
            for name, rows in parts
        ]
        if len(pieces) == 1:
            name, rows = parts[0]
            whole = self.splits[name]
            return whole if len(rows) == len(whole) else pieces[0]
        most = max(pieces, key=lambda piece: piece.num_classes)
        found = Union([with_classes(piece, most.class_names, most.spec) for piece in pieces], spec)
        found.notes += tuple(repeats(parts, spec))
        return found
