"""The files of a run: what is there when it begins, and what it leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import config as configuration, files, models
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.models import saved
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import state as train_state
from vit_jax.training.setup import Setup


def check_workdir(workdir: Path, config: ConfigDict, allow_change: bool) -> None:
    """Raises UserError if `workdir` holds another run; changes nothing."""
    file = workdir / "config.json"
    if not file.exists():
        if any((workdir / name).exists() for name in ("checkpoints", "model")):
            raise UserError(
                f"{workdir} holds checkpoints but no config.json; use another --workdir."
            )
        return
    try:
        there = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); use another --workdir.") from error
    changed = configuration.differences(there, json.loads(configuration.to_json(config)))
    if changed and not allow_change:
        key, (old, new) = next(iter(changed.items()))
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} holds a run with another configuration: {key} is {old!r} there and "
            f"{new!r} here{more}. Use another --workdir, or --allow_config_change."
        )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `WORKDIR/config.json`, when all that can be checked is checked."""
    if jax.process_index() == 0:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_text(workdir / "config.json", configuration.to_json(config))
        except OSError as error:
            raise UserError(f"Cannot write to {workdir}: {error.strerror}.") from error


def finished_metrics(workdir: Path) -> dict[str, float] | None:
    """The final record of a run that is complete, otherwise None."""
    if not saved.is_native(workdir / "model"):
        return None
    records = read_metrics(workdir / "metrics.jsonl")
    return records[-1] if records and records[-1].get("final") else None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run can go on in `workdir`: finished checkpoints have a number as their name."""
    return any(entry.name.isdigit() for entry in (workdir / "checkpoints").glob("*"))


def run_meta(setup: Setup) -> dict[str, Any]:
    """What must be the same when a run goes on: kept in every checkpoint."""
    return {
        "train_data": [setup.train_source.spec, setup.train_source.fingerprint],
        "eval_data": [setup.eval_source.spec, setup.eval_source.fingerprint],
        "jax": jax.__version__,
    }


def export(setup: Setup, state: train_state.TrainState, workdir: Path) -> None:
    """Writes the final weights to `WORKDIR/model`, from whatever sharding they have."""
    params: models.Params = dict(train_state.evaluated_params(state))
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    params = {path: np.asarray(jax.device_get(value)) for path, value in params.items()}
    if jax.process_index() == 0:
        saved.save(workdir / "model", models.at_rest(setup.model), params)


def write_evaluation(workdir: Path, record: dict[str, float], step: int, setup: Setup) -> None:
    """`evaluation.json` of the final weights on the evaluation split."""
    summary = {
        key.removeprefix("eval/"): value for key, value in record.items() if key.startswith("eval/")
    }
    content = {"classification": {"data": setup.eval_source.spec, "step": step, **summary}}
    files.write_json(workdir / "evaluation.json", content)
