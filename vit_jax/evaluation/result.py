"""The result of a protocol, and the files that `vit-jax evaluate` writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.evaluation import per_image
from vit_jax.evaluation.per_image import Columns
from vit_jax.pages import evaluation as page
from vit_jax.pages.figures import Figure


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


def write(directory: Path, name: str, record: Mapping[str, object], result: Result) -> Path:
    """Adds a protocol's record to `evaluation.json`; writes rows, pictures and a page beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "evaluation.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content[name] = record
    files.write_json(file, content)
    for picture, draw in result.pictures.items():
        figure = draw()
        target = directory / f"evaluation_{picture}.png"
        if figure is None:
            target.unlink(missing_ok=True)
        else:
            figure.savefig(target, dpi=130)
    if result.rows:
        with open(
            directory / f"evaluation_{result.csv or name}.csv",
            "w",
            newline="",
            encoding="utf-8",
            errors="backslashreplace",
        ) as out:
            writer = csv.DictWriter(out, fieldnames=list(result.rows[0]))
            writer.writeheader()
            writer.writerows(result.rows)
    for table, columns in result.tables.items():
        with files.replacing(directory / f"evaluation_{table}.csv") as partial:
            per_image.write_csv(partial, columns)
    page.write(directory)
    return file
