"""Several runs on one page: their curves in one chart, and a table of differences."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from vit_jax.config import flatten
from vit_jax.errors import UserError
from vit_jax.files import runs_in
from vit_jax.pages import charts
from vit_jax.pages.document import document, footer, header
from vit_jax.pages.report import (
    FILE_NAME,
    REFRESH,
    Records,
    accuracies_of,
    is_finished,
    read_json,
    records_of,
    series_of,
    words,
)
from vit_jax.runtime.logbook import duration_text

#: Number of distinguishable lines: four colours, three dash styles.
MOST = 12
#: Settings that do not describe a run.
NO_DIFFERENCE = ("name", "format")


class One(NamedTuple):
    """A run: its name on the page, its settings by dotted keys, and its log."""

    name: str
    config: dict[str, object]
    records: Records
    series: dict[str, charts.Points]


def render(runs: Sequence[str | Path]) -> str:
    """The whole page as text.

    Args:
      runs: working directories, finished or not, in the order of the page.

    Raises:
      UserError: one is not a run, is given twice or is damaged, or there are too many.
    """
    places = [check_run(run) for run in runs]
    if len({place.resolve() for place in places}) < len(places):
        raise UserError("A run is given twice; give each once.")
    if len(places) > MOST:
        raise UserError(
            f"{len(places)} runs are too many: at most {MOST} lines are distinguishable."
        )
    found = [_read(name, place) for name, place in zip(_names(places), places, strict=True)]
    title = " · ".join(one.name for one in found)
    facts = f"{len(found)} runs: {title}" if len(found) > 3 else title
    heading = f"{len(found)} runs side by side"
    parts = [
        header("Comparison", heading, escape(facts)),
        f"<section><div class=charts>{''.join(_charts(found))}</div></section>",
        f"<section><h2>Results</h2>{_table(found, _results(found))}</section>",
        f"<section><h2>What differs</h2>{_settings(found)}</section>",
        footer(f"{FILE_NAME} and config.json"),
    ]
    going_on = any(not is_finished(one.records) for one in found)
    return document(heading, parts, script="charts.js", refresh=REFRESH if going_on else None)


def check_run(run: str | os.PathLike[str]) -> Path:
    """The working directory of a run.

    Raises:
      UserError: it is not one; names the runs in it, if any.
    """
    place = Path(run).expanduser()
    if not str(run) or not place.is_dir():
        raise UserError(f"There is no working directory {str(run)!r} to report on.")
    if (place / FILE_NAME).exists():
        return place
    config = read_json(place / "config.json")
    if "data" in config:
        return place
    if config:
        raise UserError(f"{run} is not a run but a model, or something else; name its run.")
    raise UserError(
        f"{run} is not a run: it has neither config.json nor {FILE_NAME}.{runs_in(place)}"
    )


def _names(places: Sequence[Path]) -> list[str]:
    """The shortest distinct suffixes of the paths."""
    parts = [place.resolve().parts for place in places]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [str(place) for place in places]


def _read(name: str, place: Path) -> One:
    records = records_of(place)
    return One(name, flatten(read_json(place / "config.json")), records, series_of(records))


def _charts(runs: Sequence[One]) -> list[str]:
    """Losses, every accuracy, learning rates and speeds, each with a line per run."""
    accuracies = dict.fromkeys(key for one in runs for key in accuracies_of(one.series))
    rows: list[tuple[str, str, Callable[[float], str] | None]] = [
        ("Training loss", "train/loss", None),
        *((words(key).capitalize(), key, charts.percent) for key in accuracies),
        ("Evaluation loss", "eval/loss", None),
        ("Learning rate", "train/learning_rate", charts.scientific),
        ("Images per second", "train/images_per_second", None),
    ]
    return [
        charts.chart(
            title,
            [_curve(one, key) for one in runs],
            show,
            may_be_log=key.endswith("/loss"),
            from_zero=key == "train/images_per_second",
        )
        for title, key, show in rows
    ]


def _curve(one: One, key: str) -> charts.Curve:
    points = one.series.get(key, [])
    noisy = key.startswith("train/") and key != "train/learning_rate"
    return charts.Curve(one.name, (charts.smooth(points) if noisy else []) or points)


def _results(runs: Sequence[One]) -> dict[str, list[str]]:
    """{row: a cell per run} for progress and results."""
    rows = {
        "state": [
            "finished" if is_finished(one.records) else "not finished" if one.records else "–"
            for one in runs
        ],
        "step": [f"{one.records[-1]['step']:,}" if one.records else "–" for one in runs],
        "time": [_time(one.records) for one in runs],
    }
    for key in dict.fromkeys(key for one in runs for key in accuracies_of(one.series)):
        found = [charts.finite(one.series.get(key, [])) for one in runs]
        rows[f"{words(key)}, last"] = [charts.percent(p[-1][1]) if p else "–" for p in found]
        rows[f"{words(key)}, best"] = [_best(points) for points in found]
    for key in ("eval/loss", "train/loss"):
        found = [charts.finite(one.series.get(key, [])) for one in runs]
        rows[f"{words(key)}, last"] = [charts.number(p[-1][1]) if p else "–" for p in found]
    speeds = [charts.finite(one.series.get("train/images_per_second", [])) for one in runs]
    rows["images/s, median"] = [
        f"{statistics.median(v for _, v in points):,.1f}" if points else "–" for points in speeds
    ]
    return rows


def _time(records: Records) -> str:
    seconds = max((record.get("seconds") or 0 for record in records), default=0)
    return duration_text(seconds) if seconds else "–"


def _best(points: charts.Points) -> str:
    if not points:
        return "–"
    step, value = max(points, key=lambda point: point[1])
    return f"{charts.percent(value)} at step {step:,}"


def _settings(runs: Sequence[One]) -> str:
    """The settings in which the runs differ; – where a run lacks one."""
    keys = sorted({key for one in runs for key in one.config})
    rows: dict[str, list[str]] = {}
    for key in keys:
        cells = [_shown(one.config, key) for one in runs]
        if len(set(cells)) > 1 and key not in NO_DIFFERENCE:
            rows[key] = cells
    if not any(one.config for one in runs):
        return "<p class=empty>None of them has a config.json.</p>"
    return _table(runs, rows) if rows else "<p class=empty>No setting differs.</p>"


def _shown(config: dict[str, object], key: str) -> str:
    if key not in config:
        return "–"
    value = config[key]
    return value if isinstance(value, str) and value else json.dumps(value)


def _table(runs: Sequence[One], rows: dict[str, list[str]]) -> str:
    head = "".join(f"<th scope=col>{escape(text)}</th>" for text in ["", *(o.name for o in runs)])
    body = "".join(
        f"<tr><th scope=row>{escape(name)}</th>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, cells in rows.items()
    )
    return (
        f"<div class=scroll><table class=wide><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )
