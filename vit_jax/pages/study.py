"""`WORKDIR/study.html`: the figure of a study, its table over seeds, and links to its runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from vit_jax.pages import charts
from vit_jax.pages.document import document, footer, header
from vit_jax.runtime.logbook import words


class Trial(NamedTuple):
    """link: of its own page, or "". state: "" if it has a result."""

    name: str
    link: str
    state: str


class Row(NamedTuple):
    """Trials that differ only in their seed. cells: {metric: ((mean, deviation), trials)}."""

    group: str
    cells: Mapping[str, tuple[tuple[float, float | None], int]]
    trials: Sequence[Trial]


def render(
    *,
    about: str,
    source: str,
    figure: Path | None,
    columns: Sequence[str],
    rows: Sequence[Row],
    paper: Mapping[str, Mapping[str, object]],
) -> str:
    """The whole page as text.

    Args:
      about: the study's docstring; its first sentence is the title.
      figure: an SVG file; None while trials are missing.
      columns: the metrics of the table.
      paper: {column: {group: a published value}}, beside ours.
    """
    title, _, rest = about.partition("\n\n")
    title = " ".join(title.split())
    trials = [trial for row in rows for trial in row.trials]
    left = [trial for trial in trials if trial.state]
    facts = f"{len(trials) - len(left)} of {len(trials)} trials"
    parts = [
        header("Study", title, f"{escape(facts)} · <b>{escape(source)}</b>"),
        _figure(figure, title),
        _table(columns, rows, paper),
        _trials(rows),
        f"<details><summary>About this study</summary><pre>{escape(rest)}</pre></details>",
        footer("study.csv"),
    ]
    return document(title, parts)


def _figure(figure: Path | None, title: str) -> str:
    if figure is None:
        return "<p class=empty>The figure is drawn when all trials have a result.</p>"
    address = base64.b64encode(figure.read_bytes()).decode()
    return f'<figure><img src="data:image/svg+xml;base64,{address}" alt="{escape(title)}"></figure>'


def _table(
    columns: Sequence[str], rows: Sequence[Row], paper: Mapping[str, Mapping[str, object]]
) -> str:
    heads = [*(words(key) for key in columns), *paper]
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in ["trials", *heads])
    body = []
    for row in rows:
        cells = [_cell(key, *row.cells[key]) if key in row.cells else "–" for key in columns]
        cells += [str(values.get(row.group, "–")) for values in paper.values()]
        texts = "".join(f"<td>{escape(text)}</td>" for text in cells)
        body.append(f"<tr><th scope=row>{escape(row.group)}</th>{texts}</tr>")
    note = "Mean ± standard deviation over seeds."
    if paper:
        note += " The paper's values are for its own data and models; – where it has none."
    return (
        f"<section><h2>Results</h2><div class=scroll><table class=wide><thead><tr>{head}</tr>"
        f"</thead><tbody>{''.join(body)}</tbody></table></div><p>{escape(note)}</p></section>"
    )


def _cell(key: str, value: tuple[float, float | None], count: int) -> str:
    """ "81.25% ± 0.31 (3)"."""
    mean, deviation = value
    is_share = key.endswith(("accuracy", "mAP", "_shots"))
    scale = 100 if is_share else 1
    text = f"{100 * mean:.2f}%" if is_share else charts.number(mean)
    if deviation is not None:
        text += f" ± {scale * deviation:.2f}" if is_share else f" ± {charts.number(deviation)}"
    return f"{text} ({count})"


def _trials(rows: Sequence[Row]) -> str:
    items = []
    for row in rows:
        links = ", ".join(
            (f'<a href="{escape(t.link)}">{escape(t.name)}</a>' if t.link else escape(t.name))
            + (f" ({escape(t.state)})" if t.state else "")
            for t in row.trials
        )
        items.append(f"<tr><th scope=row>{escape(row.group)}</th><td>{links}</td></tr>")
    return (
        "<section><h2>Trials</h2><div class=scroll><table><tbody>"
        f"{''.join(items)}</tbody></table></div></section>"
    )
