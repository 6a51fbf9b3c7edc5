"""The result of a protocol, and the files that `vit-jax evaluate` writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.evaluation import per_image
from vit_jax.evaluation.per_image import Columns
from vit_jax.pages import evaluation as page
from vit_jax.pages.figures import Figure

FILE = "evaluation.json"


class Result(NamedTuple):
    """record: for evaluation.json. table: lines to print. metrics: for the log of a training run.
    rows: for a CSV, if any, named `csv` or after the protocol. pictures: name -> function that
    draws it, or returns None. model: fitted settings of the model, saved with it on request.
    tables: name -> columns of another CSV. images: returns the table of all images.
    """

    record: Mapping[str, object]
    table: Sequence[str]
    metrics: Mapping[str, float]
    rows: Sequence[Mapping[str, object]] = ()
    csv: str = ""
    pictures: Mapping[str, Callable[[], Figure | None]] = {}
    model: Mapping[str, object] = {}
    tables: Mapping[str, Columns] = {}
    images: Callable[[], Columns] | None = None


def earlier(directory: Path) -> dict[str, object]:
    """The content of `evaluation.json`; {} if there is none.

    Raises:
      UserError: it is damaged, or something else.
    """
    found = files.read_json(directory / FILE)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise UserError(f"{directory / FILE} has no results; move it away, or set another --out.")
    return found


def write(directory: Path, name: str, record: Mapping[str, object], result: Result) -> Path:
    """Adds a protocol's record to `evaluation.json`; writes rows, pictures and a page beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / FILE
    files.write_json(file, earlier(directory) | {name: record})
    for picture, draw in result.pictures.items():
        figure = draw()
        target = directory / f"evaluation_{picture}.png"
        if figure is None:
            target.unlink(missing_ok=True)
        else:
            with files.replacing(target) as partial:
                figure.savefig(partial, format="png", dpi=130)
    tables = dict(result.tables)
    if result.rows:
        keys = dict.fromkeys(key for row in result.rows for key in row)
        tables[result.csv or name] = {key: [row.get(key) for row in result.rows] for key in keys}
    for table, columns in tables.items():
        with files.replacing(directory / f"evaluation_{table}.csv") as partial:
            per_image.write_csv(partial, columns)
    page.write(directory)
    return file
