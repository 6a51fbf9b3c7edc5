"""A study: named trials, each an ordinary run that `vit-jax train` could have made.

A study is a Python file like a config. It defines `trials(argument="") -> {name: ConfigDict}` and
`draw(outcomes) -> matplotlib Figure` for `{name: Outcome}`. Optional are `METRICS`, patterns of the
metrics on its page, `PAPER`, {column: {group of trials: the published value}}, and
`table(outcomes)`, lines to print instead of accuracies.

The trial NAME is the run in WORKDIR/NAME; finished ones return at once, so the same command
resumes. A trial with `init_from = "trial:NAME"` starts from the weights of another one.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from vit_jax import config as configuration, files
from vit_jax.config import ConfigDict
from vit_jax.errors import Diverged, Preempted, UserError, nearest
from vit_jax.runtime.logbook import FILE_NAME, read_metrics
from vit_jax.studies import record
from vit_jax.studies.record import Outcome, digest, parent_of
from vit_jax.training.run import train
from vit_jax.training.setup import check
from vit_jax.training.workdir import changes, finished_metrics, has_checkpoint, read_config

Say = Callable[[str], None]
Trials = Mapping[str, ConfigDict]


def trial(config: ConfigDict, workdir: Path) -> dict[str, float] | None:
    """The last metrics of a run; None if it diverged."""
    try:
        return train(config, workdir)
    except Diverged:
        return None


def load(source: str, overrides: Mapping[str, str]) -> dict[str, ConfigDict]:
    """The trials of a study file, e.g. "FILE.py" or "FILE.py:ARGUMENT", parents first.

    Args:
      overrides: dotted settings and their values as text, for every trial.

    Raises:
      UserError: no such file, no trials, or invalid names or settings; names the trial.
    """
    path, colon, argument = source.partition(":")
    found = files.call_in(configuration.find_file(path), "trials", *([argument] if colon else []))
    if not isinstance(found, Mapping) or not found:
        raise UserError(
            f"{path}: trials() must return {{name: ConfigDict}}, with at least one trial."
        )
    for name, config in found.items():
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.,=+-]*", name):
            raise UserError(
                f"{path}: the trial {name!r} has a name that is not a valid folder name."
            )
        if not isinstance(config, ConfigDict):
            kind = type(config).__name__
            raise UserError(f"{path}: the trial {name} is a {kind} instead of a ConfigDict.")
        for key, text in overrides.items():
            configuration.override(config, key, text)
    return parents_first(found, path)


def parents_first(trials: Trials, path: str) -> dict[str, ConfigDict]:
    """The trials in topological order: each after its parent.

    Raises:
      UserError: a parent does not exist, or there is a cycle.
    """
    found: dict[str, ConfigDict] = {}

    def add(name: str, children: tuple[str, ...]) -> None:
        if name in children:
            raise UserError(f"{path}: the trial {name} starts from itself.")
        if (parent := parent_of(trials[name])) and parent not in found:
            if parent not in trials:
                raise UserError(
                    f"{path}: the trial {name} starts from {parent!r}, which is not one of its "
                    f"trials.{nearest(parent, trials)}"
                )
            add(parent, (*children, name))
        found[name] = trials[name]

    for name in trials:
        if name not in found:
            add(name, ())
    return found


def line_of(name: str, trials: Trials) -> list[str]:
    """A trial and its ancestors."""
    parent = parent_of(trials[name])
    return [name, *(line_of(parent, trials) if parent else [])]


def chosen(trials: Trials, only: str = "", part: tuple[int, int] = (1, 1)) -> dict[str, ConfigDict]:
    """The trials for this machine to run, with their ancestors.

    Args:
      only: a glob pattern of names: "depth-*".
      part: (I, N) is the I-th of N parts, to share a study among N machines, round-robin. Trials
        that start from each other are in one part, so that no machine waits for another.

    Raises:
      UserError: none is left.
    """
    named = [name for name in trials if fnmatch.fnmatchcase(name, only or "*")]
    if not named:
        raise UserError(f"--only={only} matches no trial; there are {', '.join(trials)}.")
    needed = {one for name in named for one in line_of(name, trials)}
    first = {name: line_of(name, trials)[-1] for name in trials if name in needed}
    index, count = part
    mine = list(dict.fromkeys(first.values()))[index - 1 :: count]
    return {name: trials[name] for name, root in first.items() if root in mine}


def run(
    trials: Trials, mine: Trials, workdir: Path, source: str, say: Say = print
) -> dict[str, str]:
    """Runs the trials of `mine` in `workdir`, one after the other, resuming them.

    Each is added to study.csv when it ends.

    Args:
      trials: all of the study, parents first.

    Returns:
      {name: error} for failed trials, which do not stop others.

    Raises:
      UserError: an invalid trial; all are checked before the first one runs.
      Preempted: asked to stop; the same call resumes.
    """
    todo = to_run(trials, mine, workdir, say)
    for name, config in todo.items():
        if finished_metrics(workdir / name) is None:
            try:
                check(config)
            except UserError as error:
                raise UserError(f"The trial {name}: {error}") from error
    failed: dict[str, str] = {}
    for number, (name, config) in enumerate(todo.items(), start=1):
        say(f"trial {number} of {len(todo)}: {name}")
        try:
            config = with_parent(config, workdir, name, failed)
            metrics = trial(config, workdir / name)
        except Preempted:
            raise
        except Exception as error:
            first = (str(error).strip().splitlines() or [""])[0]
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            failed[name] = f"{kind}{first}"
            say(f"trial {name} failed: {failed[name]}")
        else:
            write(source, trials, workdir, {name: Outcome(config, metrics, [])})
    return failed


def to_run(trials: Trials, mine: Trials, workdir: Path, say: Say) -> dict[str, ConfigDict]:
    """The trials of `mine` that study.csv does not show as done; prints the reasons."""
    rows = record.read(workdir)
    recorded = by_row(trials, workdir, rows)
    todo: list[str] = []
    needed: set[str] = set()
    for name in reversed(list(mine)):
        there, here = rows.get(name, {}).get("config"), digest(name, trials)
        parent, folder = parent_of(mine[name]), workdir / name
        is_done = name in recorded
        if is_done and (name not in needed or rows[name]["diverged"] == "True"):
            say(f"trial {name}: done, by its row in {record.FILE} ({here})")
            continue
        if is_done:
            say(f"trial {name}: runs again, since others need its weights, which are missing")
        elif there is not None and there != here and not folder.exists():
            say(
                f"trial {name}: runs again, since its row in {record.FILE} has another "
                f"configuration ({there} there, {here} here)"
            )
        todo.append(name)
        if parent and not has_checkpoint(folder) and finished_metrics(folder) is None:
            needed.add(parent)
    return {name: mine[name] for name in reversed(todo)}


def with_parent(
    config: ConfigDict, workdir: Path, name: str, failed: Mapping[str, str]
) -> ConfigDict:
    """The configuration of the trial `name` with the path of its parent.

    A run in progress keeps the path that it began with, even if the workdir has moved.

    Raises:
      UserError: the parent has no weights.
    """
    if not (parent := parent_of(config)):
        return config
    config = config.copy_and_resolve_references()
    config.init_from = str(workdir / parent)
    if has_checkpoint(workdir / name) or finished_metrics(workdir / name) is not None:
        begun = str((read_config(workdir / name) or {}).get("init_from", ""))
        config.init_from = begun if Path(begun).name == parent else config.init_from
    elif finished_metrics(workdir / parent) is None:
        why = "failed" if parent in failed else "diverged"
        raise UserError(f"it starts from the trial {parent}, which {why}.")
    return config


def by_row(
    trials: Trials, workdir: Path, rows: Mapping[str, Mapping[str, str]]
) -> dict[str, Outcome]:
    """Outcomes from study.csv for trials of the same configuration, diverged or without folder."""
    curves = record.read_curves(workdir)
    return {
        name: record.outcome_of(config, rows[name], curves.get(name, ()))
        for name, config in trials.items()
        if name in rows
        and rows[name].get("config") == digest(name, trials)
        and (rows[name].get("diverged") == "True" or not (workdir / name).exists())
    }


def outcomes(trials: Trials, workdir: Path) -> dict[str, Outcome]:
    """The outcomes of the trials on all machines, from their folders and study.csv.

    A folder with another configuration does not count.
    """
    found = by_row(trials, workdir, record.read(workdir))
    for name, config in trials.items():
        folder = workdir / name
        metrics = finished_metrics(folder)
        if metrics is not None and not other_settings(config, workdir, name):
            found[name] = Outcome(config, metrics, read_metrics(folder / FILE_NAME))
    return {name: with_best(found[name]) for name in trials if name in found}


def other_settings(config: ConfigDict, workdir: Path, name: str) -> list[str]:
    """The settings in which the run in a trial's folder differs."""
    found = dict(changes(workdir / name, with_parent(config, workdir, name, {})))
    found.pop("data.dataset", None)  # compared by its content, when opened
    return list(found)


def with_best(outcome: Outcome) -> Outcome:
    """Adds the best value of every accuracy, or mAP, that was measured repeatedly."""
    if outcome.metrics is None:
        return outcome
    best = {}
    for key in outcome.metrics:
        values = [each[key] for each in outcome.records if each.get(key) is not None]
        if (
            key.endswith(("accuracy", "mAP", "_shots"))
            and "best/" not in key
            and len(set(values)) > 1
        ):
            best[f"best/{key}"] = max(values)
    return outcome._replace(metrics=best | outcome.metrics)


def write(
    source: str, trials: Trials, workdir: Path, new: Mapping[str, Outcome]
) -> dict[str, Outcome]:
    """Writes and returns the known outcomes; `new` are of trials that have just ended."""
    import jax

    workdir.mkdir(parents=True, exist_ok=True)
    if jax.process_index():
        return {**outcomes(trials, workdir)}
    with record.locked(workdir):
        found = outcomes(trials, workdir)
        diverged = {name: outcome for name, outcome in new.items() if outcome.metrics is None}
        found = {name: (found | diverged)[name] for name in trials if name in found | diverged}
        record.write(source, workdir, record.rows(trials, found), record.evaluations(found))
        return found


def lines(source: str, outcomes: Mapping[str, Outcome]) -> list[str]:
    """The lines to print at the end: the study's own `table(outcomes)`, if it has one.

    Raises:
      UserError: any error in the file, with its line.
    """
    path = configuration.find_file(source.partition(":")[0])
    if "table" not in files.values_in(path):
        return table(outcomes)
    found = files.call_in(path, "table", outcomes)
    given = found if isinstance(found, list) else [found]
    return [line.expandtabs() for text in given for line in str(text).splitlines()]


def table(outcomes: Mapping[str, Outcome]) -> list[str]:
    """The lines to print: one per trial."""
    width = max(map(len, outcomes), default=0)
    lines = []
    for name, (_, metrics, _) in outcomes.items():
        shown = ("eval/accuracy", "eval/mAP", "eval/loss")
        found = {k: v for k, v in (metrics or {}).items() if k in shown}
        text = "  ".join(
            f"{key.removeprefix('eval/')} {100 * value:.2f}%"
            if key.endswith(("accuracy", "mAP"))
            else f"{key.removeprefix('eval/')} {value:.4f}"
            for key, value in found.items()
        )
        lines.append(f"  {name:<{width}}  {text if metrics else 'diverged'}")
    return lines
