"""Tables of images with several labels: a list in a cell, a row per label, or a 0/1 matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from vit_jax.data import multilabel
from vit_jax.data.image_files import shown
from vit_jax.data.kinds.cells import read_table
from vit_jax.data.kinds.table import WITHHELD, Listed, Numbers, label_columns, records_of
from vit_jax.data.labels import class_names_of
from vit_jax.errors import UserError, nearest

#: Values of a matrix cell, as programs write them.
CELLS = {"0": False, "1": True, "0.0": False, "1.0": True}
#: The names of an image's labels; None: withheld.
Names = set[str] | None
#: {split: {path: the names of its labels}}
Splits = dict[str, dict[str, Names]]


def read_all(
    files: Sequence[tuple[str, str]],
    options: Mapping[str, str],
    base: str,
    notes: Sequence[str] = (),
) -> Listed:
    """Reads tables as `table.read_all`; an image has the labels of all its rows.

    An image without a label has none of the classes. In a split without any label they are
    withheld.

    Raises:
      UserError: an invalid row (names its line), or a label missing from the training split.
    """
    notes, splits, where = list(notes), Splits(), dict[str, str]()
    declared: tuple[str, list[str]] | None = None  # the first table, and the classes of its matrix
    files = sorted(files, key=lambda each: each[0] != "train")  # which defines the classes
    for number, (of, file) in enumerate(files):
        table = read_table(file, options.get("encoding", ""))
        notes += table.notes
        columns, classes = label_columns(table, options, base)
        if number and (classes is None) != (declared is None):
            raise UserError(
                f"{shown(file)} and {shown(files[0][1])} differ in format: one has a column of "
                "labels, the other a column per class; use one format."
            )
        if classes is not None and multilabel.SEPARATOR in options:
            raise UserError(
                f"{shown(file)} has a column per class, and {multilabel.SEPARATOR}= is for one "
                "that lists labels; leave it out, or name that column: label=COLUMN."
            )
        if classes is not None:
            first, wanted = declared = declared or (shown(file), classes)
            check_same(wanted, first, classes, shown(file))
        for split, path, cells, line in records_of(table, of, options, base, notes, columns):
            mine = splits.setdefault(split, {})
            if classes is not None:
                add_row(mine, path, of_matrix(classes, cells, line, base), line)
                continue
            names = of_cell(cells[0], options.get(multilabel.SEPARATOR, ""))
            there = mine.get(path)
            mine[path] = there if names is None else names | (there or set())
            for name in names or ():
                where.setdefault(name, line)
    hide_unlabelled(splits, base)
    if declared:
        class_names = declared[1]
    else:
        separator = options.get(multilabel.SEPARATOR, "")
        named = multilabel.how(base, f"{multilabel.SEPARATOR}=")
        advice = "" if separator else f"set the separator by {named}"
        check_numbers(where, options, base)
        class_names = class_names_of(where, where.__getitem__, advice)
        check_known(splits, where)
        notes += suspicions(splits, separator)
    position = {name: i for i, name in enumerate(class_names)}
    return Listed({split: numbered(mine, position) for split, mine in splits.items()},
                  class_names, notes)  # fmt: skip


def numbered(names: Mapping[str, Names], position: Mapping[str, int]) -> list[tuple[str, Numbers]]:
    """[(path, the indices of its labels)]."""
    return [
        (path, None if mine is None else {position[name] for name in mine})
        for path, mine in names.items()
    ]


def of_cell(text: str, separator: str) -> Names:
    """The labels that a cell lists."""
    if text and text in WITHHELD:
        return None
    parts = text.split(separator) if separator else [text]
    return {part.strip() for part in parts if part.strip()}


def of_matrix(classes: Sequence[str], cells: Sequence[str], where: str, base: str) -> set[str]:
    """The classes whose cell is 1.

    Raises:
      UserError: a cell is neither 0 nor 1; names its column.
    """
    for name, cell in zip(classes, cells, strict=True):
        if cell not in CELLS:
            raise UserError(
                f"{where}: the column {name!r} has {cell!r}, not 0 or 1; name the class columns by "
                f"{multilabel.how(base, 'label=A,B,C')}"
            )
    return {name for name, cell in zip(classes, cells, strict=True) if CELLS[cell]}


def add_row(mine: dict[str, Names], path: str, names: set[str], where: str) -> None:
    """Raises UserError for an image that a matrix lists twice with different labels."""
    if mine.setdefault(path, names) != names:
        raise UserError(f"{where}: {shown(path)} is listed twice with different labels; keep one.")


def check_same(wanted: Sequence[str], first: str, classes: Sequence[str], file: str) -> None:
    """Raises UserError for a matrix whose classes differ from the first one's."""
    for names, others, lacks, has in (
        (wanted, classes, file, first),
        (classes, wanted, first, file),
    ):
        if lacking := [name for name in names if name not in others]:
            raise UserError(
                f"{lacks} has no column {lacking[0]!r}, which {has} has; every table needs one per "
                f"class.{nearest(lacking[0], others)}"
            )


def hide_unlabelled(splits: Splits, base: str) -> None:
    """Marks the labels of a split without any as withheld.

    Raises:
      UserError: no split has any.
    """
    for mine in splits.values():
        if not any(mine.values()):
            mine.update(dict.fromkeys(mine))
    if not any(any(mine.values()) for mine in splits.values()):
        raise UserError(f"{base}: no image has a label.")


def check_numbers(where: Mapping[str, str], options: Mapping[str, str], base: str) -> None:
    """Raises UserError for negative numbers among numeric labels, and for labels 0 and 1 alone.

    Those could be a matrix column whose class has a label column's name.
    """
    if where.keys() <= CELLS.keys() and "label" not in options:
        line = next(iter(where.values()))
        raise UserError(
            f"{line}: all labels are 0 or 1. If the table is a 0/1 matrix, name its columns, "
            f"{multilabel.how(base, 'label=A,B,C')}; otherwise name the label column."
        )
    if where and all(re.fullmatch("-?[0-9]+", label) for label in where):
        for label, line in where.items():
            if label.startswith("-"):
                raise UserError(f"{line}: the label {label} is negative; labels count from 0.")


def check_known(splits: Splits, where: Mapping[str, str]) -> None:
    """Raises UserError for a label that no training image has, e.g. a misspelled one."""
    trained = {name for names in splits.get("train", {}).values() for name in names or ()}
    for split, mine in splits.items():
        found = {name for names in mine.values() for name in names or ()}
        if trained and (unknown := sorted(found - trained)):
            raise UserError(
                f"{where[unknown[0]]}: no training image has the label {unknown[0]!r} of {split}; "
                f"correct it, or leave it out.{nearest(unknown[0], trained)}"
            )


def suspicions(splits: Splits, separator: str) -> list[str]:
    """Notes on probable mistakes."""
    several = any(len(names or ()) > 1 for mine in splits.values() for names in mine.values())
    if several:
        return []
    what = f", and {separator!r} does not occur in any" if separator else ""
    return [f"no image has more than one label{what}: is this multi-label data?"]
