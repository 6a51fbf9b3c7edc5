"""A table with a row per image: label, predictions and probabilities."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax import files
from vit_jax.data.source import Source
from vit_jax.errors import UserError, need

#: {column: a value per image}. A cell is text, a number, true or false, a list of names, or None
#: for unknown values, as of an unreadable image.
Columns = Mapping[str, Sequence[object]]
SUFFIXES = (".csv", ".parquet")
SEPARATOR = ";"  # between names in a CSV cell, read back by ?separator=;


def check(file: Path, class_names: Sequence[str] = (), *, several: bool = False) -> None:
    """Checks that a table can be written to `file`, before anything is computed.

    Args:
      class_names, several: of the model; a cell lists names if an image has several.

    Raises:
      UserError: it exists, it has another suffix, a package is missing, or a name in a list has the
        separator in it.
    """
    if file.suffix not in SUFFIXES:
        raise UserError(f"{file} must end in .csv or .parquet.")
    files.check_new(file)
    if file.suffix == ".parquet":
        import_pyarrow()
        return
    for name in class_names if several else ():
        if SEPARATOR in name:
            raise UserError(
                f"The class {name!r} contains {SEPARATOR}, which separates the names in a CSV "
                "cell; use a .parquet file."
            )


def import_pyarrow():
    """The modules pyarrow and pyarrow.parquet.

    Raises:
      UserError: they are not installed.
    """
    need("Parquet", "pyarrow", otherwise=", or use .csv")
    import pyarrow
    import pyarrow.parquet

    return pyarrow, pyarrow.parquet


def write(file: Path, columns: Columns) -> None:
    """Writes a table atomically, without overwriting.

    Raises:
      UserError: see `check`, or it cannot be written.
    """
    check(file)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{file} cannot be written ({error.strerror}).") from error
    with files.replacing(file) as partial:
        if file.suffix == ".csv":
            write_csv(partial, columns)
        else:
            arrow, parquet = import_pyarrow()
            arrays = {name: arrow.array(values) for name, values in columns.items()}
            for name, values in arrays.items():
                if arrow.types.is_null(values.type):  # all values are unknown
                    arrays[name] = values.cast(arrow.string())
            parquet.write_table(arrow.table(arrays), partial)


def write_csv(file: Path, columns: Columns) -> None:
    """Writes a table as UTF-8 with a header; lists of names are joined by SEPARATOR."""
    with open(file, "w", newline="", encoding="utf-8", errors="backslashreplace") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        for row in zip(*columns.values(), strict=True):
            writer.writerow(map(_cell, row))


def _cell(value: object) -> object:
    if isinstance(value, bool):
        return "true" if value else "false"
    return SEPARATOR.join(value) if isinstance(value, list) else value


def best(rows: Iterable[Sequence[tuple[str, float]] | None], top_k: int) -> dict[str, list]:
    """Columns class_1, probability_1, class_2, ...: (class, probability) pairs, the best first.

    rows: per image at most `top_k`, or None.
    """
    columns: dict[str, list] = {}
    for k in range(1, top_k + 1):
        columns |= {f"class_{k}": [], f"probability_{k}": []}
    for row in rows:
        for k in range(top_k):
            name, probability = row[k] if row is not None and k < len(row) else (None, None)
            columns[f"class_{k + 1}"].append(name)
            columns[f"probability_{k + 1}"].append(probability)
    return columns


def of_answers(
    source: Source,
    results: Mapping[str, np.ndarray],
    labels: Sequence[str] | Sequence[list[str]],
    said: Sequence[str] | Sequence[list[str]],
    names: Sequence[str],
    *,
    several: bool = False,
) -> Columns:
    """The rows of an evaluation, in the order of `source`, every image once.

    For an unreadable image, everything but its name is None.

    Args:
      results: "index" (n,), and "ranked" and "probabilities" (n, k): the best classes.
      labels, said: label and prediction of each of the n; lists if `several`.
      names: of the classes.
    """
    place = {int(index): row for row, index in enumerate(results["index"])}
    rows = [place.get(index) for index in range(len(source))]

    def spread(values: Sequence) -> list:
        return [None if row is None else values[row] for row in rows]

    pairs = [
        [(names[k], float(p)) for k, p in zip(ranked, chances, strict=True)]
        for ranked, chances in zip(results["ranked"], results["probabilities"], strict=True)
    ]
    lists = {"labels": spread(labels), "predicted": spread(said)}
    return {
        "image": source.names(),
        **(lists if several else {"label": spread(labels)}),
        "correct": spread([a == b for a, b in zip(labels, said, strict=True)]),
        **best(spread(pairs), results["ranked"].shape[1]),
    }
