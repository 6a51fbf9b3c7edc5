"""The files of a run: what it finds at the start, and what it writes at the end."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Container, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import config as configuration, files, models
from vit_jax.config import ConfigDict
from vit_jax.data.batches import read
from vit_jax.data.source import digest
from vit_jax.errors import UserError
from vit_jax.interop import unfinished
from vit_jax.models import saved
from vit_jax.models.fingerprints import Record
from vit_jax.models.variants import RESNET_ROWS
from vit_jax.pages import image_strips
from vit_jax.runtime.distributed import say
from vit_jax.runtime.logbook import FILE_NAME, read_metrics
from vit_jax.training import state as train_state
from vit_jax.training.best import Best, of_model
from vit_jax.training.checkpoint import SAVED, Checkpoints
from vit_jax.training.setup import Setup
from vit_jax.training.sources import Data

#: Values of newer settings for older runs of format 2, where not the default.
BEFORE = {"dropout_bits": "threefry"}


def as_begun(workdir: Path, config: ConfigDict) -> ConfigDict:
    """`config` with the meaning it had when the run in `workdir` began.

    Raises:
      UserError: see `as_written`.
    """
    there = read_config(workdir)
    if there is None:
        return config
    return as_written(there, config, workdir, finished=finished_metrics(workdir) is not None)


def as_written(
    there: Mapping, config: ConfigDict, where: Path, *, finished: bool = False
) -> ConfigDict:
    """`config` with the meaning that `there`, a config.json, had when it was written.

    It may lack newer settings; runs continue with their own arithmetic where that still exists.

    Raises:
      UserError: that arithmetic no longer exists, or the format is newer.
    """
    found = there.get("format", 1)
    if found == configuration.FORMAT:
        stages = {"": there} | ({"pretrain.": there["pretrain"]} if there.get("pretrain") else {})
        return with_values(
            config,
            {p + k: v for p, of in stages.items() for k, v in BEFORE.items() if k not in of},
        )
    if found not in (1, configuration.FORMAT):
        raise UserError(
            f"{where} has the format {found}, newer than {configuration.FORMAT} of this vit_jax; "
            "update vit_jax."
        )
    gone = {
        "augment.name": ("inception_crop", "its boxes were drawn from another distribution"),
        "schedule.decay": ("staircase", "its steps came one step earlier"),
    }
    flat = configuration.flatten(there)
    for key, (value, why) in gone.items():
        if flat.get(key) == value and not finished:
            raise UserError(
                f"{where} was begun by the first version with config.{key}={value!r}, which has "
                f"changed since: {why}. Start again with another --workdir; its finished model "
                "can still be used."
            )
    return with_values(config, BEFORE | first_values(config))


#: Maximum size of a config.json, in bytes.
LARGEST_CONFIG = 2**20


def config_of(file: Path, given: Container[str] = ()) -> ConfigDict:
    """The configuration of a run from its config.json, read as data, with its original meaning.

    Args:
      given: dotted keys that will be overridden.

    Raises:
      UserError: there is no such file, it is not from a run, or has invalid settings.
    """
    if not file.exists():
        raise UserError(f"There is no config file {file}.")
    files.check_regular(file)
    values = files.read_json(file) if file.stat().st_size <= LARGEST_CONFIG else None
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise UserError(
            f"{file} is not the config.json of a run, which has all settings; give weights as "
            "--config.init_from."
        )
    found = values.get("format", 1)
    if not isinstance(found, int) or isinstance(found, bool):
        raise UserError(f"{file} has the unknown format {str(found)[:40]!r}.")
    config = as_written(values, configuration.from_values(values, str(file), given), file)
    configuration.check(config, str(file))
    return config


def with_values(config: ConfigDict, values: Mapping[str, object]) -> ConfigDict:
    """A copy with other values at dotted keys; the configuration itself without changes."""
    if not values:
        return config
    config = config.copy_and_resolve_references()
    for key, value in values.items():
        *sections, name = key.split(".")
        section = config
        for part in sections:
            section = section[part] if section else section
        if section:  # no pre-training stage any more: one difference
            section[name] = value
    return config


def first_values(config: ConfigDict) -> dict[str, object]:
    """Values of newer settings for runs of format 1, by dotted key."""
    values: dict[str, object] = {
        "polyak_ramp": config.polyak_decay is not None,
        "data.orient": False,
    }
    variant = config.model.variant
    if variant in RESNET_ROWS or variant == "Axial-R50x1":
        values["model.pool_padding"] = config.model.pool_padding or "lowest"
    if variant == "R+Ti/16":
        values["model.patch_size"] = config.model.patch_size or 4
    return values


def read_config(workdir: Path) -> dict | None:
    """The content of `WORKDIR/config.json`; None if there is none."""
    file = workdir / "config.json"
    try:
        found = files.read_json(file)
    except UserError as error:
        raise UserError(f"{error} Use another --workdir.") from error
    if found is not None and not isinstance(found, dict):
        raise UserError(f"{file} is not a configuration. Use another --workdir.")
    return found


def changes(workdir: Path, config: ConfigDict) -> dict[str, tuple[object, object]]:
    """{dotted key: (there, here)} for changes that affect results; {} if the workdir is new."""
    there = read_config(workdir)
    if there is None:
        return {}
    here = json.loads(configuration.to_json(config))
    found = configuration.flatten(there)
    if "format" in there:  # a missing key is newer than the run, which had its default
        default = json.loads(configuration.to_json(configuration.default()))
        stages = ["", "pretrain."] if there.get("pretrain") else [""]
        default = configuration.flatten(default) | BEFORE
        known = {p + key: v for p in stages for key, v in default.items()}
    else:  # it has its original value, set by `as_begun`
        known = configuration.flatten(here)
    there = {**known, **found}
    return configuration.differences(there, here)


#: Of many settings that differ, these say best that it is another experiment.
TELLING = ("data.dataset", "model.variant", "name")


#: Orbax takes the path of a checkpoint for a pattern, and a backslash for a slash.
NOT_IN_NAMES = r"[\[*?\\]"


def check_workdir(workdir: Path, config: ConfigDict, allow_change: bool) -> None:
    """Raises UserError if `workdir` has another run, or no usable name; changes nothing."""
    if odd := re.search(NOT_IN_NAMES, str(workdir)):
        raise UserError(
            f"{workdir} has {odd[0]} in its path, and no checkpoint there could be read again; use "
            "another --workdir."
        )
    there = read_config(workdir)
    if there is None:
        if has_checkpoint(workdir) or (workdir / "model").exists():
            raise UserError(f"{workdir} has checkpoints but no config.json; use another --workdir.")
        return
    changed = changes(workdir, config)
    if set(changed) == {"data.dataset"}:  # compared by its content, once open
        return
    if changed and not allow_change:
        key = min(changed, key=lambda key: (key not in TELLING, key))
        old, new = changed[key]
        more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
        raise UserError(
            f"{workdir} has a run with another configuration: {key} is {old!r} there and "
            f"{new!r} here{more}. Use another --workdir, or with `vit-jax train` "
            "--allow_config_change."
        )


def write_config(workdir: Path, config: ConfigDict) -> None:
    """Writes `WORKDIR/config.json`, after all checks.

    A run keeps the format that it began with, so that the same command always resumes it.
    """
    if jax.process_index() == 0:
        there = read_config(workdir)
        begun = configuration.FORMAT if there is None else there.get("format", 1)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            files.write_text(workdir / "config.json", configuration.to_json(config, begun))
        except OSError as error:
            raise UserError(
                f"Cannot write to {workdir} ({error.strerror}); use another --workdir."
            ) from error


def finished_metrics(workdir: Path) -> dict[str, float] | None:
    """The final record of a complete run, otherwise None; its metrics are of the exported model."""
    log = workdir / FILE_NAME
    if not saved.is_native(workdir / "model") or not log.is_file():
        return None
    records = read_metrics(log)
    return of_model(records[-1]) if records and records[-1].get("final") else None


def damage_of_model(workdir: Path) -> str:
    """The damage of the exported model of a finished run; "" if it is intact."""
    try:
        saved.load(workdir / "model")
    except UserError as error:
        return str(error)
    return ""


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run can resume in `workdir`."""
    return bool(unfinished.steps_of(workdir))


def run_meta(setup: Setup) -> Record:
    """The run's record in every checkpoint: its data, which must stay the same, and its model."""
    weights = setup.data.class_weights
    of_loss: Record = {}
    if weights is not None:
        of_loss["class_weights"] = [setup.config.class_weights, digest(weights.tobytes())]
    return of_loss | {
        "format": configuration.FORMAT,
        "train_data": [setup.data.train.spec, setup.data.train.fingerprint],
        "eval_data": [setup.data.evaluation.spec, setup.data.evaluation.fingerprint],
        "jax": jax.__version__,
        "total_steps": setup.plan.total_steps,
        "model": saved.config_to_json(models.at_rest(setup.program.model)),
    }


def check_data(
    setup: Setup, checkpoints: Checkpoints, allow_change: bool, *, finished: bool = False
) -> None:
    """Raises UserError if a run would resume with other data; changes nothing.

    Data are compared by content; their location may differ.
    """
    meta, now = checkpoints.latest_meta(), run_meta(setup)
    if meta is None:
        return
    none = ["none", ""]
    for key, (there, old), (here, new) in (
        ("train_data", meta["train_data"], now["train_data"]),
        ("eval_data", meta["eval_data"], now["eval_data"]),
        ("class_weights", meta.get("class_weights", none), now.get("class_weights", none)),
    ):
        if old == new:
            continue
        what = f"{key} is {here} ({new}), but was {there} ({old})"
        if finished:
            raise UserError(
                f"The run has finished, and other data would have no effect: {what}. Raise "
                "config.total_steps, or use another --workdir."
            )
        if not allow_change:
            raise UserError(
                f"The data changed since this run began: {what}. Restore the data, use another "
                "--workdir, or continue with --allow_config_change."
            )
        say(f"the data differ from those that this run began with: {what}")


def recorded(workdir: Path, step: int) -> dict[str, float]:
    """The log record of a step."""
    file = workdir / FILE_NAME
    found: dict[str, float] = {}
    for record in read_metrics(file) if step and file.exists() else ():
        if record["step"] == step:
            found |= {key: value for key, value in record.items() if "/" in key}
    return found


def check_history(workdir: Path) -> None:
    """Raises UserError if a run has lost its checkpoints: it never restarts by itself."""
    if has_checkpoint(workdir):
        return
    damaged = workdir / "damaged"
    record = files.read_json(workdir / SAVED)
    if record is None and not (damaged.is_dir() and any(damaged.iterdir())):
        return
    known = isinstance(record, dict) and "step" in record
    step = f"step {record['step']}" if known else "a damaged step"
    raise UserError(
        f"{workdir} has lost its checkpoints: it saved {step}, but there is none in "
        f"{workdir / 'checkpoints'} (see also {damaged}). Restore them, or start again with "
        "another --workdir."
    )


def export(
    setup: Setup, state: train_state.TrainState, workdir: Path, last_step: int, best: Best
) -> None:
    """Writes the weights of `state` to `WORKDIR/model`, from any sharding.

    Its config.json has their step, the last step of the run, and why they differ.
    """
    every: Mapping = train_state.evaluated_params(state)
    if jax.process_count() > 1:
        every = multihost_utils.process_allgather(every, tiled=True)
    every = {path: np.asarray(jax.device_get(value)) for path, value in every.items()}
    params: models.Params = {p: v for p, v in every.items() if not p.startswith("objective/")}
    if own := sorted(every.keys() - params.keys()):
        say(f"  export  without the objective's own parameters: {', '.join(own)}")
    if jax.process_index() == 0:
        run: dict[str, object] = {"step": int(state.step), "last_step": last_step}
        if best.rule and best.step is not None:
            run |= {"best": best.rule.metric, "value": best.values[best.rule.metric]}
        saved.save(workdir / "model", models.at_rest(setup.program.model), params, run)
        if show := setup.program.objective.show:
            rows = show(
                every, jax.numpy.asarray(first_images(setup.data, 8))
            )  # not jitted: jit would sort them
            image_strips.write({name: np.asarray(row) for name, row in rows.items()}, workdir)


def first_images(data: Data, count: int) -> np.ndarray:
    """The first readable evaluation images, (b, h, w, c) uint8."""
    found: list[np.ndarray] = []
    for index in range(len(data.evaluation)):
        if len(found) == count:
            break
        with contextlib.suppress(UserError):
            found.append(read(data.evaluation, index, data.eval_transform)[0])
    return np.stack(found)


def write_evaluation(workdir: Path, record: dict[str, float], step: int, setup: Setup) -> None:
    """Writes `evaluation.json` of the final weights on the evaluation split."""
    summary = {
        key.removeprefix("eval/"): value for key, value in record.items() if key.startswith("eval/")
    }
    content = {"classification": {"data": setup.data.evaluation.spec, "step": step, **summary}}
    files.write_json(workdir / "evaluation.json", content)
