"""The output of a study: its figure, when complete, and a page with the table of its groups."""

from __future__ import annotations

import ast
import fnmatch
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import jax

from vit_jax import config as configuration, files
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.pages import study as page
from vit_jax.studies import record
from vit_jax.studies.record import Outcome

#: Default metrics of the page.
METRICS = ("eval/accuracy",)


def show(
    source: str,
    trials: Mapping[str, ConfigDict],
    outcomes: Mapping[str, Outcome],
    workdir: Path,
    failed: Mapping[str, str],
) -> None:
    """Writes `study.html`, and for a complete study `study.png` and `study.svg`.

    Raises:
      UserError: any error in the study's draw().
    """
    if jax.process_index() or not outcomes:
        return
    path = configuration.find_file(source.partition(":")[0])
    values = files.values_in(path)
    with record.locked(workdir):
        if len(outcomes) == len(trials):
            figure = files.call_in(path, "draw", outcomes)
            if not hasattr(figure, "savefig"):
                kind = type(figure).__name__
                raise UserError(f"{path}: draw() returns {kind} instead of a Figure.")
            for suffix in ("png", "svg"):
                with files.replacing(workdir / f"study.{suffix}") as partial:
                    figure.savefig(partial, format=suffix, dpi=130)
        files.write_text(
            workdir / "study.html",
            page.render(
                about=_docstring(path),
                source=source,
                figure=workdir / "study.svg" if len(outcomes) == len(trials) else None,
                columns=(shown := metrics(outcomes, values.get("METRICS", METRICS))),
                rows=page_rows(trials, outcomes, shown, workdir, failed),
                paper=values.get("PAPER", {}),
            ),
        )


def _docstring(path: str) -> str:
    with open(path, encoding="utf-8") as file:
        return ast.get_docstring(ast.parse(file.read())) or os.path.basename(path)


def metrics(outcomes: Mapping[str, Outcome], patterns: Sequence[str]) -> list[str]:
    """The metrics of any trial that match one of the patterns, in the order of patterns."""
    there = dict.fromkeys(key for outcome in outcomes.values() for key in outcome.metrics or {})
    return list(
        dict.fromkeys(
            key for pattern in patterns for key in there if fnmatch.fnmatchcase(key, pattern)
        )
    )


def page_rows(
    trials: Mapping[str, ConfigDict],
    outcomes: Mapping[str, Outcome],
    columns: Sequence[str],
    workdir: Path,
    failed: Mapping[str, str],
) -> list[page.Row]:
    """A row per group of trials that differ only in their seed."""
    found = []
    for group, names in record.groups(trials).items():
        values = {
            key: [
                value
                for name in names
                if name in outcomes
                and (value := (outcomes[name].metrics or {}).get(key)) is not None
            ]
            for key in columns
        }
        cells = {key: (mean_and_deviation(v), len(v)) for key, v in values.items() if v}
        states = [
            page.Trial(
                name,
                f"{quote(name)}/report.html" if (workdir / name / "report.html").exists() else "",
                state(name, outcomes, failed),
            )
            for name in names
        ]
        found.append(page.Row(group, cells, states))
    return found


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation for two or more."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def state(name: str, outcomes: Mapping[str, Outcome], failed: Mapping[str, str]) -> str:
    """A remark on a trial besides its result."""
    if name in failed:
        return "failed"
    if name not in outcomes:
        return "not finished"
    return "diverged" if outcomes[name].metrics is None else ""
