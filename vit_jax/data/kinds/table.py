"""Tables that list images and their classes: CSV and similar formats."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax.data import multilabel
from vit_jax.data.image_files import image_suffixes, is_hidden, shown
from vit_jax.data.kinds.cells import Table, read_table
from vit_jax.data.labels import NO_LABEL, class_names_of, normal
from vit_jax.data.splits import one_each, split_of
from vit_jax.errors import UserError, nearest

SUFFIXES = (".csv", ".tsv")
COLUMNS = {
    "image": ("path", "file", "filename", "image"),
    "label": ("label", "class"),
    "split": ("split",),
}
#: Other names of these columns, in lower case.
ALIASES = {
    "image": ("file_name", "filepath", "file_path", "image_path", "image_name", "img", "image_id"),
    "label": ("class_name", "category", "target"),
    "split": (),
}
#: The same for a column that lists several labels.
PLURALS = ("labels", "classes", "categories", "tags")
#: Cells of a withheld label; the last is how pandas writes -1 in a column with gaps.
WITHHELD = ("", str(NO_LABEL), f"{NO_LABEL}.0")


Numbers = int | set[int] | None


class Listed(NamedTuple):
    """The content of tables: {split: [(path, label)]}, all classes, and notes.

    A label is a class index; for multi-label data a set of them, None: withheld.
    """

    records: dict[str, list[tuple[str, Numbers]]]
    class_names: list[str]
    notes: list[str]


class Found(NamedTuple):
    """files: (split, file) of the tables of a folder. passed: why each other is skipped."""

    files: list[tuple[str, str]]
    passed: list[UserError | str]

    @property
    def notes(self) -> list[str]:
        return [f"skipped, not a table of this data set: {reason}" for reason in self.passed]


def column_of(table: Table, what: str, asked: str | None, base: str) -> int | None:
    """The index of the column of "image", "label" or "split", by case-insensitive name.

    Raises:
      UserError: the given column does not exist, or several are candidates.
    """
    folded = [column.lower() for column in table.columns]
    names = (asked.lower(),) if asked else COLUMNS[what] + ALIASES[what]
    if asked and table.columns.count(asked) == 1:
        return table.columns.index(asked)
    found = [number for number, column in enumerate(folded) if column in names]
    if len(found) > 1:
        choices = [table.columns[number] for number in found]
        if len(set(choices)) == 1:
            raise UserError(
                f"{shown(table.file)} has two columns called {choices[0]!r}; rename one."
            )
        raise UserError(
            f"{shown(table.file)} has several columns that could be the {what}: "
            f"{', '.join(choices)}; choose one, e.g. {naming(base, what, asked, choices[0])}"
        )
    if found:
        return found[0]
    if asked or what != "split":
        advice = f"Name another with {naming(base, what, asked, 'COLUMN')}."
        if any(Path(column).suffix.lower() in image_suffixes() for column in table.columns):
            advice = "Its first line seems to be an image: put a line with the names before it."
        wanted = repr(asked) if asked else " or ".join(COLUMNS[what])
        raise UserError(
            f"{shown(table.file)} needs a column {wanted}; it has "
            f"{', '.join(table.columns) or 'none'}.{nearest(asked or what, table.columns)} "
            + advice
        )
    return None


def naming(base: str, what: str, asked: str | None, column: str) -> str:
    """The spec with another column for "image", "label" or "split", quoted for a shell."""
    if asked:
        return shlex.quote(base.replace(f"{what}={asked}", f"{what}={column}"))
    return shlex.quote(f"{base}{'&' if '?' in base else '?'}{what}={column}")


def find_tables(root: str, options: Mapping[str, str], base: str) -> Found:
    """The tables of a folder: those named after splits, otherwise all that list images.

    Raises:
      UserError: two are the same split.
    """
    passed: list[UserError | str] = []
    usable = []
    for name in sorted(os.listdir(root)):
        if Path(name).suffix.lower() not in SUFFIXES:
            continue
        if is_hidden(name) or "submission" in name.lower():
            passed.append(shown(name))
            continue
        try:
            table = read_table(os.path.join(root, name), options.get("encoding", ""))
            image = column_of(table, "image", options.get("image"), base)
            if multilabel.asked(options, base):
                label_columns(table, options, base)
            else:
                column_of(table, "label", options.get("label"), base)
            for line, cells in table.rows[:1]:
                find(root, cells[image or 0], table.encoding, f"{shown(table.file)}, line {line}")
            usable.append(name)
        except UserError as error:
            passed.append(error)
    named = one_each((Path(name).stem for name in usable), shown(root))
    stems = set(named.values()) or {Path(name).stem for name in usable}
    passed += [shown(name) for name in usable if Path(name).stem not in stems]
    files = [(Path(name).stem, name) for name in usable if Path(name).stem in stems]
    if len(files) == 1 and not named:
        files = [("train", files[0][1])]
    return Found(
        [(split_of(stem) or stem, os.path.join(root, name)) for stem, name in files], passed
    )


def read_all(
    files: Sequence[tuple[str, str]],
    options: Mapping[str, str],
    base: str,
    notes: Sequence[str] = (),
) -> Listed:
    """Reads tables: one per split, or one with a column that names the split.

    Paths are relative to the table. In a split whose labels are all empty or -1 they are withheld.

    Raises:
      UserError: an invalid row; names its line.
    """
    notes = list(notes)
    rows: dict[str, list[tuple[str, str, str]]] = {}  # split -> (path, label, where)
    for of, file in files:
        table = read_table(file, options.get("encoding", ""))
        notes += table.notes
        column_of(table, "image", options.get("image"), base)  # the image column is reported first
        column = column_of(table, "label", options.get("label"), base)
        assert column is not None
        for split, path, (label,), line in records_of(table, of, options, base, notes, [column]):
            rows.setdefault(split, []).append((path, label, line))
    labelled = {
        split: mine
        for split, mine in rows.items()
        if any(label not in WITHHELD for _, label, _ in mine)
    }
    if not rows:
        raise UserError(f"{', '.join(shown(file) for _, file in files)} has no rows.")
    where: dict[str, str] = {}
    for mine in (labelled or rows).values():
        for _, label, line in mine:
            if not label:
                raise UserError(f"{line}: the label is empty; fill it in or remove the row.")
            where.setdefault(label, line)
    if all(re.fullmatch("-?[0-9]+", label) for label in where):
        for label, line in where.items():
            if label.startswith("-"):
                raise UserError(f"{line}: the label {label} is negative; labels count from 0.")
    class_names = class_names_of(where, where.__getitem__)
    number = {name: i for i, name in enumerate(class_names)}
    for mine in labelled.values():
        _check_one_class(mine)
    return Listed(
        {
            split: [(path, number.get(label, NO_LABEL)) for path, label, _ in mine]
            for split, mine in rows.items()
        },
        class_names,
        notes,
    )


def label_columns(
    table: Table, options: Mapping[str, str], base: str
) -> tuple[list[int], list[str] | None]:
    """The columns of labels of a multi-label table, and the classes that they name.

    One column that lists labels names none. A 0/1 matrix has one per class: those of ?label=A,B,C,
    or all remaining columns if none has a label column's name.

    Raises:
      UserError: no such column, a missing one, or two of one name.
    """
    asked, file = options.get("label"), shown(table.file)
    if twice := [name for name in table.columns if table.columns.count(name) > 1]:
        raise UserError(f"{file} has two columns called {twice[0]!r}; rename one.")
    if asked and (asked in table.columns or "," not in asked):
        column = column_of(table, "label", asked, base)
        assert column is not None
        return [column], None
    called = {*COLUMNS["label"], *ALIASES["label"], *PLURALS}
    found = [i for i, name in enumerate(table.columns) if name.lower() in called and not asked]
    if len(found) > 1:
        raise UserError(
            f"{file} has several columns that could be the labels: "
            f"{', '.join(table.columns[i] for i in found)}; choose one, e.g. "
            f"{multilabel.how(base, f'label={table.columns[found[0]]}')}"
        )
    if found:
        return found, None
    used = {column_of(table, what, options.get(what), base) for what in ("image", "split")}
    names = [name for i, name in enumerate(table.columns) if name and i not in used]
    if asked:
        wanted = [normal(name.strip()) for name in asked.split(",")]
        if lacking := [name for name in wanted if name not in names]:
            raise UserError(
                f"{file} has no column {lacking[0]!r}; it has {', '.join(table.columns)}."
                f"{nearest(lacking[0], names)}"
            )
        names = wanted
    if not names:
        raise UserError(
            f"{file} needs a column of labels, or a column of 0 and 1 per class; it has "
            f"{', '.join(table.columns) or 'none'}."
        )
    return [table.columns.index(name) for name in names], names


def records_of(
    table: Table,
    of: str,
    options: Mapping[str, str],
    base: str,
    notes: list[str],
    labels: Sequence[int],
) -> Iterable[tuple[str, str, list[str], str]]:
    """(split, path, cells of the columns `labels`, where) for the rows of a table."""
    image, split = (column_of(table, what, options.get(what), base) for what in ("image", "split"))
    assert image is not None
    used = {image, split, *labels}
    others = [(i, name) for i, name in enumerate(table.columns) if i not in used]
    file, root = shown(table.file), os.path.dirname(table.file)
    for number, name in others if split is None else ():
        values = {cells[number] if number < len(cells) else "" for _, cells in table.rows}
        of_one = name.lower().startswith("is_") and split_of(name[3:]) and len(values) > 1
        if of_one:
            raise UserError(
                f"{file}: the column {name} seems to name the split; make it a column split of "
                "train, validation and test."
            )
        if len({split_of(value) for value in values}) > 1 and all(map(split_of, values)):
            raise UserError(
                f"{file}: the column {name} seems to name the split ({', '.join(sorted(values))}); "
                f"say so with {base}{'&' if '?' in base else '?'}split={name}"
            )
    if others:
        names = ", ".join(name or "(unnamed)" for _, name in others)
        notes.append(f"{file}: unused columns: {names}")
    for line, cells in table.rows:
        cells = cells + [""] * (len(table.columns) - len(cells))
        where = f"{file}, line {line}"
        if split is not None and not cells[split]:
            raise UserError(f"{where}: the split is empty; fill it in or remove the row.")
        named = of if split is None else split_of(cells[split]) or cells[split]
        found = [normal(cells[number]) for number in labels]
        yield named, find(root, cells[image], table.encoding, where), found, where


def find(root: str, path: str, encoding: str, where: str) -> str:
    """The path of an image on disk, trying slashes and other Unicode forms.

    Raises:
      UserError: there is no such file, or it is not one.
    """
    if not path:
        raise UserError(f"{where}: the path is empty; fill it in or remove the row.")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path):
        raise UserError(f"{where}: {shown(path)} is a URL; download it, and list the file.")
    for spelled in (path, path.replace("\\", "/")):
        forms = [spelled, *(unicodedata.normalize(form, spelled) for form in ("NFC", "NFD"))]
        if not encoding.lower().startswith("utf"):  # file names in the table's encoding
            with contextlib.suppress(UnicodeError):  # not all that it decodes can be encoded
                forms.append(os.fsdecode(spelled.encode(encoding)))
        for form in forms:
            if os.path.isfile(os.path.join(root, form)):
                return form
    raise UserError(f"{where}: there is no file {shown(os.path.join(root, path))}.")


def _check_one_class(rows: Iterable[tuple[str, str, str]]) -> None:
    """Raises UserError for an image that a split lists with two classes."""
    seen: dict[str, tuple[str, str]] = {}
    for path, label, where in rows:
        other, there = seen.setdefault(os.path.normpath(path), (label, where))
        if other != label:
            raise UserError(
                f"{where}: {shown(path)} is a {label!r}, but a {other!r} in {there}; an image "
                "has one class (for several see multi-label data in docs/data.md)."
            )
