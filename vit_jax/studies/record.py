"""`study.csv`: a row per trial, used as its result if its folder is absent.

A row has the trial's name, the hash of its configuration, its seed, the settings in which trials
differ, and its last metrics. The file is replaced atomically, under a lock, from the folders and
the existing rows, so that two machines in one workdir keep each other's rows.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import NamedTuple

from vit_jax import config as configuration, files
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError

FILE = "study.csv"
#: Prefix of `init_from` for another trial of the study.
TRIAL = "trial:"
#: Columns that are neither settings nor metrics.
FIXED = ("trial", "config", "seed", "diverged", "step")
#: Settings that may change on resume but affect the row.
MATTERS = ("evaluators.", "eval_every_")


class Outcome(NamedTuple):
    """The result of a trial. metrics: the last ones; None if it diverged. records: its log.

    `best/KEY` in metrics is the highest value of an accuracy, or mAP, that was measured repeatedly.
    A trial known from its row in study.csv only has no records.
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


def read(workdir: Path) -> dict[str, dict[str, str]]:
    """{trial: row} of `WORKDIR/study.csv`; {} if there is none.

    Raises:
      UserError: it is damaged.
    """
    file = workdir / FILE
    try:
        with open(file, newline="", encoding="utf-8") as opened:
            reader = csv.DictReader(opened, strict=True)
            found = {}
            for row in reader:
                name = row.get("trial")
                if not name or None in row or None in row.values() or name in found:
                    what = "a second row of its trial" if name in found else "no row of a trial"
                    raise UserError(
                        f"{file}, line {reader.line_num}: {what}; restore it or move it away."
                    )
                found[name] = row
            return found
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, csv.Error) as error:
        raise UserError(f"{file} is damaged ({error}); restore it or move it away.") from error


def outcome_of(config: ConfigDict, row: Mapping[str, str]) -> Outcome:
    """The outcome of a trial from its row."""
    if row.get("diverged") == "True":
        return Outcome(config, None, [])
    metrics = {}
    for key, text in row.items():
        if text and (key == "step" or "/" in key):
            try:
                metrics[key] = int(text) if key == "step" else float(text)
            except ValueError:
                raise UserError(
                    f"{FILE}: {key} of the trial {row['trial']} is {text!r} instead of a number."
                ) from None
    return Outcome(config, metrics, [])


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks the table, figure and page of a study, if the file system supports locks."""
    with open(workdir / ".study.lock", "a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a bucket: the next write repairs lost rows
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write(source: str, workdir: Path, table: list[dict[str, object]]) -> None:
    """Writes `study.csv` with these rows and existing ones of other trials; and `study.json`.

    Call under the lock.
    """
    merged: dict[str, dict[str, object]] = {str(row["trial"]): row for row in table}
    for name, row in read(workdir).items():
        merged.setdefault(name, dict(row))
    columns = dict.fromkeys([*FIXED, *(key for row in merged.values() for key in row)])
    with (
        files.replacing(workdir / FILE) as partial,
        open(partial, "w", newline="", encoding="utf-8") as out,
    ):
        writer = csv.DictWriter(out, fieldnames=list(columns))
        writer.writeheader()
        writer.writerows(merged.values())
    finite = [
        {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        for row in table
    ]
    files.write_json(workdir / "study.json", {"study": source, "trials": finite})
