"""Examines the images and labels of a data set, as many as time allows."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from typing import NamedTuple

import numpy as np

from vit_jax import data
from vit_jax.data.labels import NO_LABEL
from vit_jax.data.source import ArraySource, Record, Source
from vit_jax.dedup import search
from vit_jax.errors import UserError

#: Seconds for all splits together, and maximum number of images per split.
SECONDS, IMAGES = 60.0, 10_000
BLOCK = 64


class Seen(NamedTuple):
    """The examined images of one split.

    rows: their indices, sorted, (n,), without unreadable ones. sizes: (n, 2), width and height.
    small: (n, 32, 32, 3) uint8. broken: the error of each unreadable image. counts: (k,), number of
    images per class. counted: whether counts are over all images, not only the examined ones.
    """

    source: Source
    rows: np.ndarray
    sizes: np.ndarray
    small: np.ndarray
    broken: list[str]
    counts: np.ndarray
    counted: bool

    @property
    def examined(self) -> int:
        return len(self.rows) + len(self.broken)


def look(source: Source, seconds: float, images: int = IMAGES) -> Seen:
    """Examines a random part of a split, limited in time and number; in a fixed order."""
    deadline = time.monotonic() + seconds
    order = np.random.default_rng(0).permutation(len(source))[:images]
    found: dict[int, tuple[np.ndarray, tuple[int, int], object]] = {}
    broken: dict[int, str] = {}

    def one(row: int) -> None:
        try:
            record = source[row]
            image = decoded(record)
            size = image.shape[1], image.shape[0]
            found[row] = search.thumbnail(image), size, record["label"]
        except UserError as error:
            broken[row] = str(error)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(order), BLOCK):
            if start and time.monotonic() > deadline:
                break
            list(pool.map(one, map(int, order[start : start + BLOCK])))
    rows = sorted(found)
    labels = source.labels
    counted = labels is not None
    if labels is None:
        labels = np.array([found[row][2] for row in rows])
    return Seen(
        source,
        np.array(rows, np.int64),
        np.array([found[row][1] for row in rows]).reshape(-1, 2),
        np.stack([found[row][0] for row in rows]) if rows else np.zeros((0, 32, 32, 3), np.uint8),
        [broken[row] for row in sorted(broken)],
        count(labels, source.num_classes),
        counted,
    )


def decoded(record: Record) -> np.ndarray:
    """The image of a record, (h, w, 3) uint8."""
    return data.picture(record["image"], record["name"])


def count(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Number of records per class, (num_classes,); labels are (n,) or (n, k) of 0 and 1."""
    if labels.ndim == 2:
        return (labels == 1).sum(axis=0)
    return np.bincount(labels[labels != NO_LABEL].astype(np.int64), minlength=num_classes)


def near_duplicates(one: Seen, other: Seen) -> list[search.Pair]:
    """Pairs of near-duplicates in two splits, as in `vit-jax dedup`, most similar first.

    Indices refer to `rows`. Equal thumbnails of 32 pixels are an exact pair.
    """
    if not len(one.rows) or not len(other.rows):
        return []
    sources = [ArraySource(seen.small, np.zeros(len(seen.rows), int)) for seen in (one, other)]
    pairs = search.find(*sources, floor=search.THRESHOLD)
    return sorted(pairs, key=lambda pair: -pair.score)


# --- names of classes ---------------------------------------------------------------------------


def alike(names: Iterable[str]) -> list[tuple[str, str, str]]:
    """(name, name, why) for class names that may be two spellings of one class.

    They differ in case, blanks, _ and -, or Unicode form; or by one letter, in names of four
    letters or more. Names that are numbers, or differ in digits only, are distinct.
    """
    distinct = sorted(set(names))
    found: dict[tuple[str, str], str] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    for name in distinct:
        groups[folded(name)].append(name)
    for group in groups.values():
        found |= dict.fromkeys(combinations(group, 2), "except for case, blanks or Unicode form")
    near: dict[str, list[str]] = defaultdict(list)
    for name in groups:
        for part in {name, *(name[:i] + name[i + 1 :] for i in range(len(name)))}:
            near[part].append(name)
    for several in near.values():
        for a, b in combinations(sorted(several), 2):
            if min(len(a), len(b)) >= 4 and one_letter(a, b):
                pair = sorted((groups[a][0], groups[b][0]))
                found.setdefault((pair[0], pair[1]), "except for one letter")
    return [(a, b, why) for (a, b), why in sorted(found.items())]


def folded(name: str) -> str:
    """A name, normalised for case, blanks and Unicode form."""
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", name).casefold()).strip()


def one_letter(a: str, b: str) -> bool:
    """Whether two different names are one letter (not a digit) apart."""
    if len(a) > len(b):
        a, b = b, a
    at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    rest = a[at + 1 :] if len(a) == len(b) else a[at:]
    changed = b[at : at + 1] + (a[at : at + 1] if len(a) == len(b) else "")
    return rest == b[at + 1 :] and not any(letter.isdigit() for letter in changed)


def names_of(sources: Sequence[Source]) -> list[str]:
    """The classes of all splits, each once, in their order."""
    return list(dict.fromkeys(name for source in sources for name in source.class_names))
