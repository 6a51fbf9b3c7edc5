"""`evaluation.html`: the results of `vit-jax evaluate`, on one page.

It is built from the files of its directory only: evaluation.json, pictures, links to CSV files.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from html import escape
from pathlib import Path

from vit_jax import files
from vit_jax.config import flatten
from vit_jax.errors import UserError
from vit_jax.pages import charts, paper_section
from vit_jax.pages.document import document, footer, header

FILE = "evaluation.html"
#: Headings of protocols and captions of pictures.
TITLES = {
    "classification": "Classification",
    "fewshot": "Few-shot linear accuracy",
    "knn": "Nearest neighbours",
    "probe": "Linear probe",
    "real": "ImageNet ReaL",
    "objectnet": "ObjectNet",
    "vtab": "VTAB-1k",
}
CAPTIONS = {
    "confusion": "Confusion matrix",
    "reliability": "Calibration: accuracy against confidence",
    "mistakes": "Mistakes with the highest confidence",
    "wrong_labels": "Wrong labels, by the loss of an image",
}
#: More classes than this are folded.
FOLDED = 20
#: Numbers shown in percent.
SHARES = ("accuracy", "calibration_error", "mAP", "precision", "recall", "f1")


def write(directory: Path) -> Path:
    """Writes `evaluation.html` beside the `evaluation.json` of a directory.

    Raises:
      UserError: there is none, or it is damaged.
    """
    page = directory / FILE
    files.write_text(page, render(directory))
    return page


def render(directory: Path) -> str:
    """The whole page as text."""
    evaluation = files.read_json(directory / "evaluation.json")
    if not isinstance(evaluation, dict):
        raise UserError(f"{directory} has no evaluation.json to show.")
    records = {k: v for k, v in evaluation.items() if isinstance(v, Mapping)}
    named = [str(record["checkpoint"]) for record in records.values() if record.get("checkpoint")]
    models = dict.fromkeys(named or [str(directory)])
    title = " and ".join(Path(name).name or name for name in models)
    parts = [header("Evaluation", title, escape(", ".join(models)))]
    for name, record in records.items():
        own = {key: value for key, value in record.items() if key != "checkpoint"}
        heading = escape(TITLES.get(name, name))
        parts.append(f"<section><h2>{heading}</h2>{table(own)}</section>")
    parts.append(paper_section.section(directory, records))
    parts += [_picture(file) for file in sorted(directory.glob("evaluation_*.png"))]
    links = "".join(
        f'<li><a href="{escape(file.name)}">{escape(file.name)}</a></li>'
        for file in sorted(directory.glob("evaluation_*.csv"))
    )
    if links:
        parts.append(f"<section><h2>Tables</h2><ul>{links}</ul></section>")
    parts.append(footer("evaluation.json"))
    return document(title, parts)


def _picture(file: Path) -> str:
    name = file.stem.removeprefix("evaluation_")
    caption = escape(CAPTIONS.get(name, name.replace("_", " ")))
    encoded = base64.b64encode(file.read_bytes()).decode()
    return (
        f"<h2>{caption}</h2><figure>"
        f'<img alt="{caption}" src="data:image/png;base64,{encoded}"></figure>'
    )


def table(evaluation: Mapping[str, object]) -> str:
    """The numbers of an evaluation, one per row, fractions in percent."""
    rows, classes = [], ""
    for key, value in flatten(evaluation).items():
        if isinstance(value, list) and all(isinstance(row, Mapping) for row in value) and value:
            if key.endswith("per_class"):
                classes += _classes(value)
            else:
                rows += [_row(*named) for named in _results(value)]
            continue
        elif isinstance(value, list) and len(value) > 12:
            text = f"{len(value)} values"
        else:
            text = _shown(key, value)
        rows.append(_row(key.replace("/", " ").replace("_", " ").replace(".", ": "), text))
    return (
        "<div class=scroll><table>"
        "<thead><tr><th scope=col>measure</th><th scope=col>value</th></tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></div>{classes}"
    )


def _shown(key: str, value: object) -> str:
    """A number or a word as text."""
    if value is None:
        return "not measured"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        is_share = key.removesuffix("_before").endswith(SHARES) and 0 <= value <= 1
        return f"{100 * value:.2f}%" if is_share else charts.number(value)
    return str(value)


def _row(name: str, text: str) -> str:
    return f"<tr><th scope=row>{escape(name)}</th><td>{escape(text)}</td></tr>"


def _classes(rows: list[Mapping[str, object]]) -> str:
    """A table with a row per class, folded if there are many."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f"<th scope=col>{escape(key)}</th>" for key in columns)
    body = []
    for row in rows:
        first, *others = (_shown(key, row.get(key)) for key in columns)
        cells = "".join(f"<td>{escape(text)}</td>" for text in others)
        body.append(f"<tr><th scope=row>{escape(first)}</th>{cells}</tr>")
    return (
        f"<details{' open' if len(rows) <= FOLDED else ''}><summary>Every class: {len(rows):,}"
        f"</summary><div class=scroll><table class=wide><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _results(rows: list[Mapping[str, object]]) -> list[tuple[str, str]]:
    """Rows of results: ("tfds:pets, shots 5, ...", "93.20%")."""
    found = []
    for row in rows:
        of = ", ".join(
            str(value) if key == "data" else f"{key} {value:g}"
            for key, value in row.items()
            if key not in ("accuracy", "std") and isinstance(value, str | int | float)
            if key == "data" or not isinstance(value, str)
        )
        accuracy, deviation = row.get("accuracy"), row.get("std")
        text = f"{100 * accuracy:.2f}%" if isinstance(accuracy, float) else str(accuracy)
        if isinstance(deviation, float):
            text += f" ± {100 * deviation:.2f}"
        found.append((of, text))
    return found
