"""`hf:ORG/NAME`: data sets of the Hugging Face hub, and those saved on disk by its library."""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.data import multilabel
from vit_jax.data.columns import Columns, ManyColumns
from vit_jax.data.image_files import read_image_file
from vit_jax.data.kinds.table import ALIASES, COLUMNS
from vit_jax.data.labels import NO_LABEL, ONE, class_names_of, normal
from vit_jax.data.source import TableSource
from vit_jax.data.splits import SPLIT_NAMES, Splits
from vit_jax.errors import UserError, first_line, nearest, need

if TYPE_CHECKING:
    import datasets

#: A class index or its text; None: withheld.
Label = int | str | None
#: The same for a record with several.
Labels = list[int] | list[str] | None
#: Single files that the library reads.
FILES = {".parquet": "parquet", ".arrow": "arrow", ".json": "json", ".jsonl": "json"}
#: Value types that can be labels, by prefix.
LABEL_TYPES = ("int", "uint", "float", "string", "large_string", "bool")


def open_hf(name: str, data_dir: str | None, options: Mapping[str, str]) -> Splits:
    """A data set of the hub (from its cache when offline), or a local directory or file.

    Args:
      options: "image" and "label", the columns, where there are several; "config", the hub's name
        for one of several data sets under one name; "multilabel" and "separator", see
        multilabel.py.
    """
    query = "&".join(f"{key}={value}" for key, value in options.items())
    base = f"hf:{name}{'?' if query else ''}{query}"
    tables, notes = {}, []
    for split, table in _load(name, options.get("config")).items():
        key = SPLIT_NAMES.get(split.lower(), split)
        if key in tables:
            raise UserError(f"{base} has two splits that both mean {key}; one of them is {split}.")
        tables[key] = table
    first = tables.get("train", next(iter(tables.values())))
    image, label = choose_columns(first.features, options, base)
    for split, table in list(tables.items()):
        if missing := [column for column in (image, label) if column not in table.features]:
            notes.append(f"skipped {base}[{split}]: it has no column {missing[0]}")
            del tables[split]
    if others := [key for key in first.features if key not in (image, label)]:
        notes.append(f"{base}: unused columns: {', '.join(others)}")
    several, separator = multilabel.asked(options, base), options.get(multilabel.SEPARATOR, "")
    values = {
        split: _read_several(table, label, separator, f"{base}[{split}]")
        if several
        else _read_labels(table, label, f"{base}[{split}]")
        for split, table in tables.items()
    }
    where = {
        str(value): f"hf:{name}[{split}], row {row}"
        for split, (found, names) in values.items()
        if names is None
        for row, mine in reversed(list(enumerate(found)))
        for value in (mine if isinstance(mine, list) else [mine])
        if value is not None
    }
    named = multilabel.how(base, f"{multilabel.SEPARATOR}=")
    advice = f"set the separator by {named}" if several else ONE
    common = class_names_of(where, where.__getitem__, "" if separator else advice)
    if any(value.startswith("-") for value in where) and all(map(_is_number, where)):
        value = min(where)
        raise UserError(f"{where[value]}: the label {value} is negative; labels count from 0.")
    return Splits(
        base,
        {
            split: _source(
                *(table, image, values[split], common),
                *(f"{base}[{split}]", _root(name), notes, several),
            )
            for split, table in tables.items()
        },
    )


def _load(name: str, config: str | None) -> dict[str, datasets.Dataset]:
    """{split: table} of anything that `datasets` saved or can load."""
    need("hf: data", "datasets")
    import datasets

    path = os.path.expanduser(name)
    saved = ("dataset_dict.json", "state.json")
    try:
        if os.path.isdir(path) and any(os.path.exists(os.path.join(path, f)) for f in saved):
            found = datasets.load_from_disk(path)
        elif os.path.isfile(path):
            suffix = Path(path).suffix.lower()
            if suffix not in FILES:
                raise ValueError(f"a file of {', '.join(FILES)} can be; CSV is folder:{name}")
            # It takes a path for a pattern, and would read px.parquet for p[x].parquet.
            found = datasets.load_dataset(FILES[suffix], data_files=glob.escape(path))
        else:
            found = datasets.load_dataset(path, config)
    except Exception as error:
        is_general = isinstance(error, datasets.exceptions.DatasetGenerationError)
        reason = first_line((is_general and error.__cause__) or error)
        advice = "; rename it, as [, * and ? make a pattern" if glob.has_magic(path) else ""
        raise UserError(f"hf:{name} cannot be loaded ({reason.rstrip('.')}){advice}.") from error
    if isinstance(found, datasets.Dataset):  # one split, which may have a name
        found = {str(found.split or "train"): found}
    return dict(found)


def _root(name: str) -> str:
    """The folder that paths in a table are relative to."""
    path = os.path.abspath(os.path.expanduser(name))
    return path if os.path.isdir(path) else os.path.dirname(path)


def choose_columns(
    features: Mapping[str, object], options: Mapping[str, str], base: str
) -> tuple[str, str]:
    """The columns of image and label: the given ones, or the only candidates.

    An image is an Image column, otherwise bytes; a label is a ClassLabel, otherwise a number or
    text column with a label's name.

    Raises:
      UserError: none, or several; lists them.
    """
    kinds = {key: _kind(feature) for key, feature in features.items()}
    named = {what: {*COLUMNS[what], *ALIASES[what], f"{what}s"} for what in COLUMNS}
    ranked: dict[str, list[Callable[[str], bool]]] = {
        "image": [lambda key: kinds[key] == "Image", lambda key: kinds[key] == "bytes"],
        "label": [
            lambda key: kinds[key] == "ClassLabel",
            lambda key: key.lower() in named["label"] and kinds[key] == "value",
        ],
    }
    there = ", ".join(f"{key} ({_described(feature)})" for key, feature in features.items())
    mark = "&" if "?" in base else "?"
    chosen = []
    for what, ranks in ranked.items():
        if asked := options.get(what):
            if asked not in features:
                raise UserError(
                    f"{base} has no column {asked!r}; it has {there}.{nearest(asked, features)}"
                )
            chosen.append(asked)
            continue
        found = next(
            (keys for rank in ranks if (keys := [key for key in features if rank(key)])), []
        )
        if len(found) != 1:
            kind = "an image" if what == "image" else "a class-label"
            need = f"{base} needs {kind} column"
            if found:
                need = f"{base} has several columns that could be the {what}: {', '.join(found)}"
            elif what == "image":
                need += " and a class-label column"
            raise UserError(f"{need}; it has {there}. Name it: {base}{mark}{what}=COLUMN")
        chosen.append(found[0])
    return chosen[0], chosen[1]


def _kind(feature: object) -> str:
    """ "Image", "bytes", "ClassLabel", "value" (number or text), or "" for others."""
    import datasets

    if isinstance(feature, dict):
        return "bytes" if "bytes" in feature else ""
    if isinstance(feature, (datasets.Image, datasets.ClassLabel)):
        return type(feature).__name__
    inner = _element(feature)
    if inner is not None:
        return "" if _kind(inner) not in ("ClassLabel", "value") else _kind(inner)
    dtype = str(getattr(feature, "dtype", ""))
    if dtype in ("binary", "large_binary"):
        return "bytes"
    return "value" if dtype.startswith(LABEL_TYPES) else ""


def _element(feature: object) -> object:
    """The feature of a list's elements; None if it is not a list."""
    return feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)


def _described(feature: object) -> str:
    return type(feature).__name__


def _is_number(text: str) -> bool:
    return text.lstrip("-").isdecimal()


def _read_labels(
    table: datasets.Dataset, column: str, spec: str
) -> tuple[list[Label], list[str] | None]:
    """The labels of a table, and the names of its classes if known.

    With names a label is an index, otherwise text; None: withheld.

    Raises:
      UserError: an invalid label, such as 1.5; names the record.
    """
    names, values = _column(table, column)
    found: list[Label] = []
    for row, value in enumerate(values):
        if isinstance(value, list):
            if len(value) > 1:
                raise UserError(
                    f"{spec}/{row} has {len(value)} labels ({', '.join(map(str, value[:5]))}); "
                    f"a record has one, or several with {multilabel.how(spec.split('[')[0])}"
                )
            value = value[0] if value else None
        if isinstance(value, float) and not math.isnan(value):
            if not value.is_integer():
                raise UserError(f"{spec}/{row}: the label {value} is not a class.")
            value = int(value)
        if value is None or value == "" or value in (NO_LABEL, "-1") or value != value:
            found.append(None)
        elif isinstance(value, (bool, int, str)):
            found.append(value if names else normal(str(value).strip()))
        else:
            raise UserError(
                f"{spec}/{row}: the label in column {column!r} is not a number or text."
            )
    return found, [normal(name) for name in names] if names else None


def _column(table: datasets.Dataset, column: str) -> tuple[list[str] | None, list]:
    """The names of the classes of a column of labels, and its values."""
    feature = table.features[column]
    names = getattr(_element(feature) or feature, "names", None)
    return names, table.with_format(None).select_columns([column])[:][column]


def _read_several(
    table: datasets.Dataset, column: str, separator: str, spec: str
) -> tuple[list[Labels], list[str] | None]:
    """As `_read_labels`, for a column of lists, or of text with a separator.

    An empty list has no class. Lists of only 0 and 1, of the same length in every row, are rows of
    a matrix: floats always, integers if there are more than two.
    """
    names, values = _column(table, column)
    if separator and not any(isinstance(value, str) for value in values):
        raise UserError(
            f"{spec}: {multilabel.SEPARATOR}= is for text, and the column {column!r} has none; "
            f"leave it out, with {multilabel.MULTILABEL}=true."
        )
    if not names and (length := _width_of_matrix(values)):
        names = list(map(str, range(length)))
        values = [row and [i for i, value in enumerate(row) if value] for row in values]
    found: list[Labels] = []
    for row, value in enumerate(values):
        if value is None or value in (NO_LABEL, str(NO_LABEL)):
            found.append(None)
            continue
        if isinstance(value, str):
            value = value.split(separator) if separator else [value]
        value = value if isinstance(value, list) else [value]
        kinds = {type(label) for label in value}
        if not kinds <= {int} and (names or not kinds <= {str}):
            raise UserError(
                f"{spec}/{row}: the labels in column {column!r} are not a list of numbers or text."
            )
        if any(isinstance(label, int) and label < 0 for label in value):
            raise UserError(f"{spec}/{row}: a label is negative; labels count from 0.")
        if names and any(label >= len(names) for label in value):
            raise UserError(f"{spec}/{row}: a label exceeds the {len(names)} classes.")
        found.append(
            value if names else [t for label in value if (t := normal(str(label).strip()))]
        )
    return found, [normal(name) for name in names] if names else None


def _width_of_matrix(values: list) -> int:
    """The length of lists that are rows of a 0/1 matrix; 0 if they are not."""
    rows = [value for value in values if isinstance(value, list)]
    zeros_and_ones = all(value in (0, 1) for row in rows for value in row)
    if len({len(row) for row in rows}) != 1 or not zeros_and_ones:
        return 0
    width, kinds = len(rows[0]), {type(value) for row in rows for value in row}
    return width if kinds in ({float}, {bool}) or width > 2 else 0


class Rows:
    """{"image", "label"} of the rows of a table: bytes in the table, or of the files it names."""

    def __init__(
        self, table: datasets.Dataset, image: str, labels: np.ndarray, root: str, spec: str
    ):
        self.table, self.image, self.labels = table, image, labels
        self.root, self.spec = root, spec

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        image = self.table[index][self.image]
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, str):
            try:
                image = read_image_file(Path(self.root, image))
            except OSError as error:
                raise UserError(
                    f"{self.spec}/{index}: the image {image} cannot be read ({error.strerror})."
                ) from error
        if not isinstance(image, bytes):
            raise UserError(f"{self.spec}/{index} has no image in the column {self.image!r}.")
        return {"image": image, "label": self.labels[index]}


def _source(
    table: datasets.Dataset,
    image: str,
    labels: tuple[list[Label] | list[Labels], list[str] | None],
    common: list[str],
    spec: str,
    root: str,
    notes: list[str],
    several: bool,
) -> TableSource:
    """The source of a table, with its own class names or those of all splits."""
    import datasets

    found, names = labels
    number = {name: i for i, name in enumerate(common)}
    array = _numbers(found, number, names, spec, several)
    rows = table.with_format(None).select_columns([image])
    if isinstance(table.features[image], datasets.Image):
        rows = rows.cast_column(image, datasets.Image(decode=False))
    return TableSource(
        Rows(rows, image, array, root, spec),
        ManyColumns("image", "label") if several else Columns("image", "label"),
        names or common,
        spec=spec,
        version=str(table._fingerprint),
        labels=array,
        notes=notes,
        exif=True,
        multilabel=several,
    )


def _numbers(
    labels: list[Label] | list[Labels],
    number: Mapping[str, int],
    names: list[str] | None,
    spec: str,
    several: bool,
) -> np.ndarray:
    """Labels as indices (n,), or with several each as (n, k)."""
    if several:
        records = [
            None if mine is None else [int(v) if names else number[str(v)] for v in mine]
            for mine in labels
            if mine is None or isinstance(mine, list)
        ]
        if not any(records):
            records = [None] * len(records)
        return multilabel.matrix(records, len(names or number), spec)
    numbers = [NO_LABEL if v is None else v if names else number[str(v)] for v in labels]
    return np.array(numbers, np.int32)
