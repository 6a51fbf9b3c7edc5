"""`study.csv` and `curves.csv`: the results of trials, also of those whose folders are absent.

A row of study.csv has the trial's name, the hash of its configuration, its seed, the settings in
which trials differ, and its last metrics; curves.csv has a row per trial and evaluation, for the
figures. The files are replaced atomically, under a lock, from the folders and the existing rows, so
that two machines in one workdir keep each other's rows.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from vit_jax import config as configuration, files
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError

FILE = "study.csv"
CURVES = "curves.csv"
#: Prefix of `init_from` for another trial of the study.
TRIAL = "trial:"
#: Columns that are neither settings nor metrics.
FIXED = ("trial", "config", "seed", "diverged", "step")
#: Settings that may change on resume but affect the row.
MATTERS = ("evaluators.", "eval_every_")


class Outcome(NamedTuple):
    """The result of a trial. metrics: the last ones; None if it diverged. records: its log.

    `best/KEY` in metrics is the highest value of an accuracy, or mAP, that was measured repeatedly.
    The records of a trial without a folder are its evaluations in curves.csv.
    """

    config: ConfigDict
    metrics: dict[str, float] | None
    records: list[dict[str, float]]


def parent_of(config: ConfigDict) -> str:
    """The trial whose weights a trial starts from; "" for none."""
    source = config.init_from or ""
    return source.removeprefix(TRIAL) if source.startswith(TRIAL) else ""


def digest(name: str, trials: Mapping[str, ConfigDict], *, seed: bool = True) -> str:
    """The hash of what determines a trial's result: 12 hexadecimal digits.

    It covers settings that differ from the default, and the hash of the parent trial. Settings that
    may change on resume are left out, except evaluators and their intervals; of the path of a
    folder of images only the last name counts.

    Args:
      seed: False: trials that differ only in their seed have the same hash.
    """
    config, default = trials[name].to_dict(), configuration.default().to_dict()
    flat = configuration.flatten(config)
    before = configuration.flatten(default)
    more = [k for k in flat if k.startswith(MATTERS) and flat[k] != before.get(k)]
    kept = {
        key: _without_place(key, flat.get(key))
        for key in (*configuration.differences(default, config), *more)
        if seed or key != "seed"
    }
    if parent := parent_of(trials[name]):
        kept["init_from"] = digest(parent, trials, seed=seed)
    text = json.dumps(kept, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:12]


def _without_place(key: str, value: object) -> object:
    """folder:/data/pets as folder:pets."""
    if key.rpartition(".")[2] not in ("data", "dataset") or not isinstance(value, str):
        return value
    parts = (part.partition("folder:") for part in value.split(","))
    return ",".join(f"{kind}{PurePath(path).name}" if kind else spec for spec, kind, path in parts)


def _anywhere(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of data at folder:/data/pets as those of folder:pets, the same on any machine."""
    named = [re.sub(r"folder:[^,]*/(?=[^/]+/[^/]+$)", "folder:", key) for key in metrics]
    keys = named if len(set(named)) == len(metrics) else metrics
    return dict(zip(keys, metrics.values(), strict=True))


def groups(trials: Mapping[str, ConfigDict]) -> dict[str, list[str]]:
    """{name: trials} that differ only in their seed; "none" for none_0, none_1, none_2."""
    same: dict[str, list[str]] = {}
    for name in trials:
        same.setdefault(digest(name, trials, seed=False), []).append(name)
    named = {}
    for names in same.values():
        short = re.sub(r"_\d+$", "", names[0])
        named[names[0] if short in named else short] = names
    return named


def rows(
    trials: Mapping[str, ConfigDict], outcomes: Mapping[str, Outcome]
) -> list[dict[str, object]]:
    """A row per trial: the settings in which trials differ, and the last metrics."""
    values = [config.to_dict() for config in trials.values()]
    flat = {name: configuration.flatten(v) for name, v in zip(trials, values, strict=True)}
    differ = sorted({k for v in values for k in configuration.differences(values[0], v)} - {"seed"})
    measured = {name: _anywhere(outcome.metrics or {}) for name, outcome in outcomes.items()}
    metrics = sorted({key for found in measured.values() for key in found if "/" in key})
    return [
        {
            "trial": name,
            "config": digest(name, trials),
            "seed": trials[name].seed,
            "diverged": outcome.metrics is None,
            "step": (outcome.metrics or {}).get("step"),
        }
        | {key: flat[name].get(key) for key in differ}
        | {key: measured[name].get(key) for key in metrics}
        for name, outcome in outcomes.items()
    ]


def evaluations(outcomes: Mapping[str, Outcome]) -> list[dict[str, object]]:
    """A row per evaluation of each trial: trial, step, and all metrics but those of training."""
    found: list[dict[str, object]] = []
    for name, outcome in outcomes.items():
        for each in outcome.records:
            named = _anywhere({k: v for k, v in each.items() if "/" in k and _measures(k)})
            if named and "step" in each:
                found.append({"trial": name, "step": int(each["step"])} | named)
    return found


def _measures(key: str) -> bool:
    return not key.startswith(("train/", "best/")) and not key.endswith("/num_examples")


def _rows_of(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of a table of trials; none if there is no such file.

    Raises:
      UserError: it is damaged.
    """
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened, strict=True)
            for row in reader:
                if not row.get("trial") or None in row or None in row.values():
                    raise UserError(
                        f"{file}, line {reader.line_num}: no row of a trial; "
                        f"restore it or move it away."
                    )
                yield reader.line_num, row
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} is damaged ({error}); restore it or move it away.") from error


def read(workdir: Path) -> dict[str, dict[str, str]]:
    """{trial: row} of `WORKDIR/study.csv`; {} if there is none.

    Raises:
      UserError: it is damaged.
    """
    found: dict[str, dict[str, str]] = {}
    for line, row in _rows_of(workdir / FILE):
        if row["trial"] in found:
            raise UserError(
                f"{workdir / FILE}, line {line}: a second row of its trial; "
                f"restore it or move it away."
            )
        found[row["trial"]] = row
    return found


def read_curves(workdir: Path) -> dict[str, list[dict[str, str]]]:
    """{trial: its rows} of `WORKDIR/curves.csv`, in their order; {} if there is none.

    Raises:
      UserError: it is damaged.
    """
    found: dict[str, list[dict[str, str]]] = {}
    for _, row in _rows_of(workdir / CURVES):
        found.setdefault(row["trial"], []).append(row)
    return found


def _numbers(file: str, row: Mapping[str, str]) -> dict[str, float]:
    """The step and the metrics of a row."""
    found = {}
    for key, text in row.items():
        if text and (key == "step" or "/" in key):
            try:
                found[key] = int(text) if key == "step" or text.isdecimal() else float(text)
            except ValueError:
                raise UserError(
                    f"{file}: {key} of the trial {row['trial']} is {text!r} instead of a number."
                ) from None
    return found


def outcome_of(
    config: ConfigDict, row: Mapping[str, str], curve: Sequence[Mapping[str, str]] = ()
) -> Outcome:
    """The outcome of a trial from its row and its evaluations."""
    if row.get("diverged") == "True":
        return Outcome(config, None, [])
    return Outcome(config, _numbers(FILE, row), [_numbers(CURVES, each) for each in curve])


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the table, figure and page of a study, if the file system supports locks."""
    with open(workdir / ".study.lock", "a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a bucket: the next write repairs lost rows
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(
    source: str,
    workdir: Path,
    table: list[dict[str, object]],
    curves: Sequence[dict[str, object]] = (),
) -> None:
    """Writes `study.csv` and `curves.csv` with these rows and existing ones of other trials; and
    `study.json`.

    Call under the lock.
    """
    merged: dict[str, dict[str, object]] = {str(row["trial"]): row for row in table}
    evaluated = list(curves)
    for name, row in read(workdir).items():
        merged.setdefault(name, dict(row))
    known = {row["trial"] for row in table}
    for name, evaluations_of_trial in read_curves(workdir).items():
        evaluated += [dict(row) for row in evaluations_of_trial if name not in known]
    _replace(workdir / FILE, FIXED, list(merged.values()))
    _replace(workdir / CURVES, ("trial", "step"), evaluated)
    finite = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in table
    ]
    files.write_json(workdir / "study.json", {"study": source, "trials": finite})


def _replace(file: Path, first: Sequence[str], table: Sequence[Mapping[str, object]]) -> None:
    """Writes a table atomically, with the columns of all its rows, these first."""
    columns = dict.fromkeys([*first, *(key for row in table for key in row)])
    with (
        files.replacing(file) as partial,
        open(partial, "w", newline="", encoding="utf-8") as out,
    ):
        writer = csv.DictWriter(out, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(table)
