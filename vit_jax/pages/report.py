"""`WORKDIR/report.html`: the curves and numbers of a run on one self-contained page.

Style, curves and a few lines of JavaScript are inline; its content policy forbids network access.
"""

from __future__ import annotations

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from vit_jax import files
from vit_jax.config import flatten
from vit_jax.errors import UserError
from vit_jax.pages import charts, image_strips, paper_section
from vit_jax.pages.document import document, footer, header
from vit_jax.pages.evaluation import table
from vit_jax.runtime.logbook import FILE_NAME, duration_text, read_metrics, words

Records = list[dict[str, float]]  # see runtime/logbook.py
Stage = tuple[str, Records]  # heading, records
#: Scale of accuracies, if they are not in the middle.
PLACES = {"eval/accuracy": 0, "train_eval/accuracy": 2, "train_eval/top5_accuracy": 3}
#: Ends of metrics in percent.
SHARES = ("accuracy", "mAP")
#: Seconds after which a browser reloads the page of an unfinished run.
REFRESH = 30


def write_report(workdir: str | os.PathLike[str]) -> Path:
    """Writes `report.html` from the log of the run in `workdir`, finished or not.

    It reads `metrics.jsonl`, `config.json` and `evaluation.json`, and `pretrain/metrics.jsonl` of a
    run in two stages; each may be missing.

    Raises:
      UserError: there is no such directory, or one of these files is damaged.
    """
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"There is no working directory {str(workdir)!r} to report on.")
    page = workdir / "report.html"
    files.write_text(page, render(workdir))
    return page


def render(workdir: Path) -> str:
    """The whole page as text."""
    config = read_json(workdir / "config.json")
    evaluation = read_json(workdir / "evaluation.json")
    title = title_of(config, workdir)
    stages = [("", records_of(workdir))]
    if (workdir / "pretrain" / FILE_NAME).exists():
        stages = [
            ("Pre-training", records_of(workdir / "pretrain")),
            ("Fine-tuning", records_of(workdir)),
        ]
    parts = [_header(title, config, stages)]
    parts += [_stage(name, records) for name, records in stages]
    parts += [image_strips.fed_section(workdir), image_strips.section(workdir)]
    if evaluation:
        parts.append(f"<section><h2>Evaluation</h2>{table(evaluation)}</section>")
        parts.append(paper_section.section(workdir, evaluation))
    if config:
        text = json.dumps(config, indent=2)
        parts.append(_details("Configuration", f"<pre>{escape(text)}</pre>"))
    parts.append(footer(FILE_NAME))
    refresh = None if is_finished(stages[-1][1]) else REFRESH
    return document(title, parts, script="charts.js", refresh=refresh)


# --- what is known of the run ---


def read_json(path: Path) -> dict[str, object]:
    """The content of a file of a run; {} if there is no such file."""
    content = files.read_json(path)
    if not isinstance(content, dict | None):
        raise UserError(f"{path} is not a JSON object; restore or delete it.")
    return content or {}


def records_of(directory: Path) -> Records:
    path = directory / FILE_NAME
    return read_metrics(path) if path.exists() else []


def is_finished(records: Records) -> bool:
    return bool(records and records[-1].get("final"))


def series_of(records: Iterable[Mapping[str, float]]) -> dict[str, charts.Points]:
    """{metric: [(step, value), ...]} in the order in which the metrics first appear."""
    series: dict[str, charts.Points] = {}
    for record in records:
        for key, value in record.items():
            if key in ("step", "final", "seconds") or not isinstance(value, int | float):
                continue
            if key.startswith(("best/", "roll_back/")):  # sentences, not curves
                continue
            series.setdefault(key, []).append((int(record["step"]), float(value)))
    return series


def accuracies_of(series: Mapping[str, charts.Points]) -> dict[str, charts.Points]:
    """The curves `eval/*accuracy`, top-1 first, and `eval/mAP`; then those of training images."""
    parts = ("eval/", "train_eval/")
    found = {k: v for k, v in series.items() if k.startswith(parts) and k.endswith(SHARES)}
    return dict(sorted(found.items(), key=lambda item: PLACES.get(item[0], 1)))


def title_of(config: Mapping[str, object], workdir: Path) -> str:
    flat = flatten(config)
    variant, dataset = flat.get("model.variant"), flat.get("data.dataset")
    described = " on ".join(str(part) for part in (variant, dataset) if part)
    return str(flat.get("name") or described or workdir.resolve().name)


# --- the parts of the page ---


def _header(title: str, config: Mapping[str, object], stages: Sequence[Stage]) -> str:
    flat = flatten(config)
    facts = {
        "variant": flat.get("model.variant"),
        "data": flat.get("data.dataset"),
        "starts from": flat.get("init_from"),
        "seed": flat.get("seed"),
    }
    line = " · ".join(
        f"{name} <b>{escape(str(value))}</b>"
        for name, value in facts.items()
        if value not in (None, "") and (name == "seed" or str(value) not in title)
    )
    last = stages[-1][1][-1] if stages[-1][1] else {}
    if not last:
        state = "Nothing has been logged in this stage yet." if len(stages) > 1 else ""
    elif is_finished(stages[-1][1]):
        state = f"Finished.{_kept(flat, last)}"
    else:
        state = f"Not finished: last record at step {last['step']:,}."
    return header("Training report", title, "<br>".join(filter(None, (line, state))))


def _kept(flat: Mapping[str, object], last: Mapping[str, float]) -> str:
    """The step of the model, if the best was kept (training/best.py)."""
    if "best/step" not in last:
        return ""
    metric = str(flat.get("keep_best") or "").removeprefix("min:").removeprefix("max:")
    value = last.get(f"best/{metric}", math.nan)
    shown = charts.percent(value) if metric.endswith(SHARES) else charts.number(value)
    return f" The model is from step {last['best/step']:,}, with the best {metric}: {shown}."


def _stage(name: str, records: Records) -> str:
    heading = f"<h2>{escape(name)}</h2>" if name else ""
    if not records:
        return f"<section>{heading}<p class=empty>Nothing has been logged.</p></section>"
    series = series_of(records)
    accuracies = accuracies_of(series)

    def curve(key: str, label: str = "") -> charts.Curve:
        label, points = label or words(key), series.get(key, [])
        is_noisy = key.startswith("train/") and key != "train/learning_rate"
        smooth = charts.smooth(points) if is_noisy else []
        return charts.Curve(label, smooth, raw=points) if smooth else charts.Curve(label, points)

    names = [
        words(key.removeprefix("eval/").replace("train_eval/", "training images: "))
        for key in accuracies
    ]
    main = [
        charts.chart("Training loss", [curve("train/loss")], may_be_log=True),
        charts.chart("Evaluation accuracy", list(map(curve, accuracies, names)), charts.percent),
        charts.chart("Learning rate", [curve("train/learning_rate")], charts.scientific),
        charts.chart("Images per second", [curve("train/images_per_second")], from_zero=True),
    ]
    shown = {"train/loss", "train/learning_rate", "train/images_per_second", *accuracies}
    if "train_eval/loss" in series:
        plain = {"eval/loss": "evaluation", "train_eval/loss": "training images"}
        curves = [curve(key, name) for key, name in plain.items()]
        main.insert(2, charts.chart("Plain loss of both", curves, may_be_log=True))
        shown |= plain.keys()
    rest = [key for key in series if key not in shown]
    more = ""
    if rest:
        others = [
            charts.chart(words(key).capitalize(), [curve(key)], may_be_log="loss" in key)
            for key in rest
        ]
        heading_of_more = f"{len(rest)} more: {', '.join(map(words, rest))}"
        more = _details(heading_of_more, f"<div class=charts>{''.join(others)}</div>")
    return (
        f"<section>{heading}{_summary(records, series)}{_rolled_back(records)}"
        f"<div class=charts>{''.join(main)}</div>{more}</section>"
    )


def _summary(records: Records, series: Mapping[str, charts.Points]) -> str:
    """The row of main numbers."""
    cells: list[tuple[str, str, str]] = []  # name, value, note
    for key, points in list(accuracies_of(series).items())[:1]:
        if finite := charts.finite(points):
            best = max(finite, key=lambda point: point[1])
            last = finite[-1][1]
            note = f"best {charts.percent(best[1])} at step {best[0]:,}"
            if last == best[1]:
                note = f"the best of {len(finite)}" if len(finite) > 1 else ""
            cells.append((words(key), charts.percent(last), note))
    if finite := charts.finite(series.get("train/loss", [])):
        lost = len(series["train/loss"]) - len(finite)
        note = f"{lost} not finite" if lost else f"from {charts.number(finite[0][1])}"
        cells.append(("train loss", charts.number(finite[-1][1]), note))
    cells.append(("steps", f"{records[-1]['step']:,}", ""))
    if finite := charts.finite(series.get("train/images_per_second", [])):
        median = statistics.median(value for _, value in finite)
        cells.append(("images/s", f"{median:,.{0 if median >= 10 else 1}f}", "median"))
    if seconds := max((record.get("seconds") or 0 for record in records), default=0):
        cells.append(("time", duration_text(seconds), ""))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>"
        + (f"<dd class=note>{escape(note)}</dd>" if note else "")
        + "</div>"
        for name, value, note in cells
    )
    return f"<dl class=summary>{items}</dl>"


def _rolled_back(records: Records) -> str:
    """A sentence for each roll-back after a loss spike (training/spikes.py)."""
    lines = []
    for record in records:
        if "roll_back/from" in record:
            first, last = record["roll_back/from"], record["roll_back/to"]
            loss, usual = (charts.number(record[f"roll_back/{key}"]) for key in ("loss", "usual"))
            lines.append(
                f"<p>Rolled back after a loss spike ({loss}, usually {usual}): the updates of "
                f"steps {first:,} to {last:,} were undone.</p>"
            )
    return "".join(lines)


def _details(summary: str, content: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"
