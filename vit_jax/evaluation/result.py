"""What a protocol finds, and the files that `vit-jax evaluate` makes of it."""

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
    """record: for evaluation.json. table: lines to print. metrics: what a training run logs.
    rows: for a CSV, if there is one, named `csv` or as the protocol is. pictures: name -> function
    that draws it, or gives None. model: settings of the model that were found, and are saved with
    it by request. tables: name -> columns of another CSV. images: gives the table of all images.
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
    """Adds a protocol's record to `evaluation.json`; rows, pictures and a page lie beside it."""
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
        with open(directory / f"evaluation_{result.csv or name}.csv", "w", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(result.rows[0]))
            writer.writeheader()
            writer.writerows(result.rows)
    for table, columns in result.tables.items():
        with files.replacing(directory / f"evaluation_{table}.csv") as partial:
            per_image.write_csv(partial, columns)
    page.write(directory)
    return file
