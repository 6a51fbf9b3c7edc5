"""The data of a run, as the default for evaluating it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.data import specs
from vit_jax.data.remarks import withheld
from vit_jax.errors import UsageError, UserError


class Remembered(NamedTuple):
    """workdir: of the run. spec: with its split. why: which part of the run's data it is.
    watched: what it was evaluated on during training, with its split.
    """

    workdir: Path
    spec: str
    data_dir: str | None
    why: str
    watched: str


def data_of(checkpoint: str, data_dir: str | None = None) -> Remembered:
    """The data to evaluate a run's model on: its test split, or else its evaluation data.

    A test split that was used for training does not count.

    Raises:
      UsageError: the checkpoint does not belong to a run.
      UserError: its data can no longer be opened, or are a plug-in.
    """
    workdir, config = _run_of(checkpoint)
    section = config["data"]
    base, data_dir = section["dataset"], data_dir or section.get("data_dir")
    if specs.PLUG_IN.match(base):
        raise UserError(
            f"{checkpoint} was trained on {base}, which is a program, and {workdir}/config.json is "
            "read as data; to run it, give --data=SPEC."
        )
    train, watched = section.get("train_split") or "", section.get("eval_split") or ""
    try:
        _, splits, _ = specs.open_splits(base, data_dir)
        seen = re.findall(r"[\w-]+", re.sub(r"\[.*?\]", "", train))
        if watched:
            watched = f"{base}[{watched}]"
        else:
            watched = specs.choose_splits(base, data_dir=data_dir, watch=True).evaluation
        is_new = "test" in splits.names() and not {"test", "all"} & set(seen)
        if is_new and not withheld(splits("test")):
            why = "the test split of the data of this run"
            return Remembered(workdir, f"{base}[test]", data_dir, why, watched)
    except UserError as error:
        raise UserError(
            f"{checkpoint} was trained on {base}, which cannot be opened here: {error} Give data "
            "with --data=SPEC."
        ) from error
    why = "the evaluation data of this run, which has no other test split"
    return Remembered(workdir, watched, data_dir, why, watched)


def _run_of(checkpoint: str) -> tuple[Path, dict]:
    """The run of a checkpoint, and its configuration."""
    path = Path(checkpoint).expanduser()
    for place in (path, path.parent, path.parent.parent):  # a run, its model/, checkpoints/STEP
        found = files.read_json(place / "config.json") if place.is_dir() else None
        if not isinstance(found, dict):
            continue
        section = found.get("data")
        if isinstance(section, dict) and isinstance(section.get("dataset"), str):
            return place, found
    if inside := files.runs_in(path):
        raise UserError(f"{checkpoint} is not a run.{inside}")
    raise UsageError(
        f"--data=SPEC is required: {checkpoint} is not part of a run that has its own data."
    )
