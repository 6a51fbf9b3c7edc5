"""A study: named trials, each an ordinary run that `vit-jax train` could have made.

A study is a file like a configuration's. It defines `trials(argument="") -> {name: ConfigDict}` and
`draw(outcomes) -> matplotlib Figure`, of `{name: Outcome}`; optional is `table(outcomes)`, lines to
print instead of accuracies. The trial NAME is the run in WORKDIR/NAME; finished ones return at
once, so the same command goes on where it stopped.
"""

from __future__ import annotations

import csv
import fnmatch
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax

from vit_jax import config as configuration, files
from vit_jax.config import ConfigDict
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.runtime.logbook import FILE_NAME, read_metrics
from vit_jax.training.run import train
from vit_jax.training.setup import check
from vit_jax.training.workdir import finished_metrics

Say = Callable[[str], None]


class Outcome(NamedTuple):
    """Of a trial. metrics: the last ones; None if it diverged. records: of its metrics.jsonl."""

    config: ConfigDict
    metrics: dict[str, float] | None
    records: list[dict[str, float]]


def trial(config: ConfigDict, workdir: Path) -> dict[str, float] | None:
    """The last metrics of a run; None if its gradients were not finite any more."""
    try:
        return train(config, workdir)
    except Diverged:
        return None


def load(source: str, overrides: Mapping[str, str]) -> dict[str, ConfigDict]:
    """The trials of a study file, e.g. "FILE.py" or "FILE.py:ARGUMENT".

    Args:
      overrides: dotted settings and their values as text, for every trial.

    Raises:
      UserError: no such file, no trials, or names and settings that cannot be; names the trial.
    """
    path, colon, argument = source.partition(":")
    found = files.call_in(configuration.find_file(path), "trials", *([argument] if colon else []))
    if not isinstance(found, Mapping) or not found:
        raise UserError(f"{path}: trials() returns no trials; it returns {{name: ConfigDict}}.")
    for name, config in found.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.,=+-]*", name):
            raise UserError(f"{path}: the trial {name!r} has no name that a folder can have.")
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise UserError(f"{path}: the trial {name} is a {kind} instead of a ConfigDict.")
        for key, text in overrides.items():
            configuration.override(config, key, text)
    return dict(found)


def chosen(
    trials: Mapping[str, ConfigDict], only: str = "", part: tuple[int, int] = (1, 1)
) -> dict[str, ConfigDict]:
    """The trials that this machine is to run.

    Args:
      only: a pattern of their names, as of files: "depth-*".
      part: (I, N) is the I-th of N parts, taken in turns, so that N machines share a study.

    Raises:
      UserError: none is left.
    """
    named = [name for name in trials if fnmatch.fnmatchcase(name, only or "*")]
    if not named:
        raise UserError(f"--only={only} fits no trial; there are {', '.join(trials)}.")
    index, count = part
    return {name: trials[name] for name in named[index - 1 :: count]}


def run(
    trials: Mapping[str, ConfigDict], workdir: Path, say: Say = print
) -> tuple[dict[str, Outcome], dict[str, str]]:
    """Runs the trials in `workdir`, one after the other, from wherever they are.

    Returns:
      What came out of them, and {name: error} of those that failed, which stop no other.

    Raises:
      UserError: a trial that cannot be; all are looked at before the first one runs.
      Preempted: asked to stop; the same call goes on.
    """
    for name, config in trials.items():
        if finished_metrics(workdir / name) is None:
            try:
                check(config)
            except UserError as error:
                raise UserError(f"The trial {name}: {error}") from error
    outcomes, failed = {}, {}
    for number, (name, config) in enumerate(trials.items(), start=1):
        say(f"trial {number} of {len(trials)}: {name}")
        try:
            outcomes[name] = outcome(config, trial(config, workdir / name), workdir / name)
        except Preempted:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failed[name] = f"{kind}{first}"
            say(f"trial {name} failed: {failed[name]}")
    return outcomes, failed


def finished(trials: Mapping[str, ConfigDict], workdir: Path) -> dict[str, Outcome]:
    """What came out of the trials that another machine has finished in the same directory."""
    found = {name: finished_metrics(workdir / name) for name in trials}
    return {
        name: outcome(trials[name], metrics, workdir / name)
        for name, metrics in found.items()
        if metrics is not None
    }


def outcome(config: ConfigDict, metrics: dict[str, float] | None, workdir: Path) -> Outcome:
    """Of the trial in `workdir`."""
    file = workdir / FILE_NAME
    return Outcome(config, metrics, read_metrics(file) if file.exists() else [])


def rows(outcomes: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """A row of each trial: the settings in which trials differ, and the last metrics."""
    flat = {name: configuration.flatten(o.config.to_dict()) for name, o in outcomes.items()}
    keys = sorted({key for values in flat.values() for key in values})
    differ = [k for k in keys if len({repr(values.get(k)) for values in flat.values()}) > 1]
    metrics = sorted({key for o in outcomes.values() for key in o.metrics or {} if "/" in key})
    return [
        {"trial": name, "diverged": outcome.metrics is None}
        | {key: flat[name].get(key) for key in differ}
        | {key: (outcome.metrics or {}).get(key) for key in metrics}
        for name, outcome in outcomes.items()
    ]


def write(source: str, outcomes: Mapping[str, Outcome], workdir: Path, *, whole: bool) -> None:
    """`study.json`, `study.csv` and what a `whole` study draws, as `study.png` and `study.svg`."""
    if jax.process_index() or not outcomes:
        return
    table = rows(outcomes)
    finite = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in table
    ]
    files.write_json(workdir / "study.json", {"study": source, "trials": finite})
    with files.replacing(workdir / "study.csv") as partial, open(partial, "w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    if not whole:
        return
    path = configuration.find_file(source.partition(":")[0])
    figure = files.call_in(path, "draw", outcomes)
    if not hasattr(figure, "savefig"):
        raise UserError(f"{path}: draw() returns {type(figure).__name__} instead of a Figure.")
    for suffix in ("png", "svg"):
        with files.replacing(workdir / f"study.{suffix}") as partial:
            figure.savefig(partial, format=suffix, dpi=130)


def lines(source: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """What is printed at the end: what the study's own `table(outcomes)` says, if it has one.

    Raises:
      UserError: whatever goes wrong in the file, with its line.
    """
    path = configuration.find_file(source.partition(":")[0])
    if "table" not in files.values_in(path):
        return table(outcomes)
    found = files.call_in(path, "table", outcomes)
    return [str(line) for line in found] if isinstance(found, list) else [str(found)]


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """What is printed: a line for each trial."""
    width = max(map(len, outcomes))
    lines = []
    for name, (_, metrics, _) in outcomes.items():
        found = {k: v for k, v in (metrics or {}).items() if k in ("eval/accuracy", "eval/loss")}
        text = "  ".join(
            f"{key.removeprefix('eval/')} {100 * value:.2f}%"
            if key.endswith("accuracy")
            else f"{key.removeprefix('eval/')} {value:.4f}"
            for key, value in found.items()
        )
        lines.append(f"  {name:<{width}}  {text if metrics else 'diverged'}")
    return lines
