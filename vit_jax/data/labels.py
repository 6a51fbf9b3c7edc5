"""Class names: deriving them from labels, and matching those of two data sets."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np

from vit_jax.errors import UserError, nearest

#: A withheld label, as in TFDS and Hugging Face.
NO_LABEL = -1
NUMBER = re.compile("0|[1-9][0-9]*")


class Matched(NamedTuple):
    """numbers: (n,) int32, our class index for each of theirs. by: "same", "name" or "number"."""

    numbers: np.ndarray
    by: str


def match_classes(
    ours: Sequence[str], theirs: Sequence[str], *, here: str = "the model", there: str
) -> Matched:
    """Matches their classes to ours by name, in any order; theirs may be fewer.

    Plain numbers stand for classes of unknown name: matched with names they are indices from 0, if
    there is a 0 among them.

    Args:
      here, there: what has our and their classes, for the message.

    Raises:
      UserError: they have a class that we lack (names the first), or a name is ambiguous.
    """
    ours, theirs = tuple(map(normal, ours)), tuple(map(normal, theirs))
    if ours == theirs:
        return Matched(np.arange(len(theirs), dtype=np.int32), "same")
    position = {name: number for number, name in enumerate(ours)}
    unknown = [name for name in theirs if name not in position]
    counted = "0" in theirs and unnamed(theirs)  # counting from 1, all would be off by one
    if unknown and counted and not unnamed(ours) and max(map(int, theirs)) < len(ours):
        return Matched(np.array(list(map(int, theirs)), np.int32), "number")
    if unknown and unnamed(ours) and not unnamed(theirs) and len(ours) == len(theirs):
        numbers = np.array([int(name) for name in ours])
        if np.array_equal(numbers, np.arange(len(ours))):
            return Matched(numbers.astype(np.int32), "number")
    if unknown:
        raise UserError(
            f"{there} has the class {unknown[0]!r}, which {here} does not know "
            f"({len(unknown)} of {len(theirs)} are unknown).{nearest(unknown[0], ours)}"
        )
    for which, names in ((here, ours), (there, theirs)):
        twice = [name for name, count in Counter(names).items() if count > 1 and name in theirs]
        if twice:
            raise UserError(
                f"{which} has two classes called {twice[0]!r}, so the classes of {there} cannot be "
                f"matched by name; match them by number: {there.split('[')[0]}?match=number"
            )
    return Matched(np.array([position[name] for name in theirs], np.int32), "name")


def normal(name: str) -> str:
    """A name in Unicode's composed form (NFC), the same on every operating system."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def unnamed(class_names: Sequence[str]) -> bool:
    """Whether classes have numbers instead of names."""
    return all(map(NUMBER.fullmatch, class_names))


#: Advice on a label that lists several classes.
ONE = (
    "a record has one. Keep one, or give the combination a name of its own, or see multi-label "
    "data in docs/data.md."
)


def class_names_of(
    labels: Iterable[str], where: Callable[[str], str], advice: str = ONE
) -> list[str]:
    """The classes of text labels, sorted: numerically if they are 0, 1, ... without a gap.

    Args:
      labels: any order, any number of times.
      where: (label) -> where it first occurs, for the message.
      advice: on a label that lists several classes; "": do not check for them.

    Raises:
      UserError: a label that lists several classes, or two labels that differ in case only, or
        are 1 and 1.0.
    """
    distinct = set(labels)
    for name in sorted(distinct):
        whole = re.sub(r"(?<=\d)\.0+$", "", name)
        if whole != name and whole in distinct:
            raise UserError(
                f"The classes {whole!r} ({where(whole)}) and {name!r} ({where(name)}) are the same "
                "number; write it in one way."
            )
    if distinct and unnamed(sorted(distinct)):
        return sorted(distinct, key=int)
    if advice:
        _check_single(distinct, where, advice)
    check_case(distinct, where)
    return sorted(distinct)


def check_case(class_names: Iterable[str], where: Callable[[str], str]) -> None:
    """Raises UserError for two classes that differ in case only, e.g. "Cat" and "cat"."""
    seen: dict[str, str] = {}
    for name in sorted(class_names):
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise UserError(
                f"The classes {other!r} ({where(other)}) and {name!r} ({where(name)}) differ in "
                "case only; give them one name, or distinct names."
            )


#: Names may contain other names ("ski mask" contains ImageNet's "ski" and "mask"): up to this
#: fraction of the classes it is coincidence. In WordNet's 21,241 names it is 3.3%.
BY_CHANCE = 0.04


def _check_single(labels: set[str], where: Callable[[str], str], advice: str) -> None:
    """Raises UserError for a label such as "cat,dog" if cat or dog are classes too.

    A comma and a space, or a space alone, are part of a name ("tench, Tinca tinca") unless every
    part is a class more often than by coincidence.
    """
    for separator in (",", ";", "|"):
        parts = _parts(labels, re.escape(separator))
        count = Counter(part for mine in parts.values() for part in set(mine))
        for label, mine in parts.items():
            if separator + " " in label:
                continue
            if any(part in labels or count[part] > 1 for part in mine):
                raise _several(label, where, advice)
    for pattern, shared in ((r"[,;|] ", 1), (r"\s+|[/+&]", len(labels))):
        parts = _parts(labels, pattern)
        count = Counter(part for mine in parts.values() for part in set(mine))
        listed = [
            label
            for label, mine in parts.items()
            if all(part in labels or count[part] > shared for part in mine)
        ]
        if len(listed) > BY_CHANCE * len(labels):
            raise _several(listed[0], where, advice)
    for label in sorted(labels):
        if re.fullmatch(r"\[.*\]", label):
            raise _several(label, where, advice)


def _parts(labels: set[str], separator: str) -> dict[str, list[str]]:
    """{label: its parts} for the labels that a pattern splits."""
    found = {
        label: [part.strip() for part in re.split(separator, label)] for label in sorted(labels)
    }
    return {label: mine for label, mine in found.items() if len(mine) > 1}


def _several(label: str, where: Callable[[str], str], advice: str) -> UserError:
    return UserError(f"{where(label)}: the label {label!r} lists several classes; {advice}")
