"""The newest intact checkpoint of an unfinished run, as a model."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.files import read_json
from vit_jax.models import saved
from vit_jax.models.fingerprints import Record, check_rule, digest_of, fingerprints


def steps_of(path: Path) -> list[Path]:
    """The checkpoints at a path, newest first: those of a run, or `checkpoints/STEP`.

    [] if there are none.
    """
    if path.parent.name == "checkpoints" and path.name.isdigit():
        steps = [entry for entry in numbered(path.parent) if int(entry.name) == int(path.name)]
    else:
        steps = numbered(path if path.name == "checkpoints" else path / "checkpoints")
    return sorted(steps, key=lambda step: -int(step.name))


def numbered(directory: Path) -> list[Path]:
    """The complete checkpoints of a directory, whose names are numbers."""
    return [entry for entry in directory.glob("*") if entry.name.isdigit()]


def is_unfinished(workdir: Path) -> bool:
    """Whether a run has a checkpoint newer than its `model/`, or no model."""
    steps = steps_of(workdir)
    if not steps or not saved.is_native(workdir / "model"):
        return bool(steps)
    run = (read_json(workdir / "model" / "config.json") or {}).get("run")
    if run:  # a run that stopped early has the model of another step
        return int(steps[0].name) > run["last_step"]
    record = read_json(steps[0] / "meta" / "metadata") or {}
    return record.get("step", 0) < record.get("total_steps", 0)


def load(path: Path) -> tuple[models.ModelConfig, dict[str, np.ndarray]]:
    """The model of the newest intact checkpoint of `steps_of(path)`.

    It has the weights that an evaluation would use: the average if there is one. Nothing is moved
    or written, as the run may be in progress.

    Raises:
      UserError: none can be read; says why.
    """
    problems: list[str] = []
    tried: set[Path] = set()
    while left := [step for step in steps_of(path) if step not in tried]:
        step = left[0]  # listed each time: a run replaces its oldest by its newest
        tried.add(step)
        try:
            config, params, record = load_step(step)
        except UserError as error:
            problems.append(str(error))
            continue
        except Exception as error:  # Orbax passes on any exception of the storage
            reason = str(error).strip().split("\n")[0][:200]
            problems.append(f"{step} cannot be read ({type(error).__name__}: {reason}).")
            continue
        for problem in problems:
            print(f"warning: {problem} The one before it is read.")
        total = f" of {record['total_steps']}" if record.get("total_steps") else ""
        averaged = ", averaged weights" if _weights(record) == "average" else ""
        print(f"{path}: step {record['step']}{total} of an unfinished run{averaged}")
        return config, params
    raise UserError(" ".join(problems) or f"{path} has no checkpoint.")


def load_step(step: Path) -> tuple[models.ModelConfig, dict[str, np.ndarray], Record]:
    """The configuration, the parameters and the record of one checkpoint.

    Raises:
      UserError: it is damaged, or does not name its model.
    """
    record = read_record(step)
    if "model" not in record:
        raise UserError(
            f"{step} is from an earlier version, without a record of the model. Run the train "
            "command of its run again: it resumes, and its next checkpoint can be read."
        )
    rule = check_rule(record, str(step))
    config = saved.config_from_json(record["model"], str(step))
    prefix = f".{_weights(record)}['"
    names = [key[len(prefix) : -2] for key in record["spec"] if key.startswith(prefix)]
    names = [name for name in names if not name.startswith("objective/")]
    params = read_arrays(step / "state", _weights(record), names)
    found = fingerprints(params, rule)
    for name in names:
        if found[f"['{name}']"] != record["fingerprints"][f"{prefix}{name}']"]:
            raise UserError(f"{step} is damaged ({name} is not what was written).")
    saved.check_params(config, params, str(step))
    return config, params, record


def read_record(step: Path) -> Record:
    """The record of a checkpoint.

    Raises:
      UserError: it is missing or damaged.
    """
    record: Record | None = read_json(step / "meta" / "metadata")
    if not isinstance(record, dict) or "spec" not in record:
        raise UserError(f"{step} has no record; it is not a checkpoint of vit_jax, or damaged.")
    if record.get("digest", digest_of(record)) != digest_of(record):
        raise UserError(f"The record of {step} is damaged.")
    return record


def verify(step: Path) -> int:
    """Reads and verifies every array of a training state; returns their number.

    Raises:
      UserError: one is damaged, or cannot be read.
    """
    import orbax.checkpoint as ocp

    record = read_record(step)
    rule = check_rule(record, str(step))
    state = (step / "state").resolve()
    try:
        # Asked of the handler: a Checkpointer looks for a file of the step in it, and warns.
        tree = ocp.PyTreeCheckpointHandler().metadata(state).tree
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = reader.restore(state, args=ocp.args.PyTreeRestore(restore_args=options))
    except Exception as error:  # Orbax passes on any exception of the storage
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(f"{step} cannot be read ({type(error).__name__}: {reason}).") from error
    found = {keys_of(name): value for name, value in fingerprints(restored, rule).items()}
    for name, value in record["fingerprints"].items():
        if found.get(keys_of(name)) != value:
            raise UserError(f"{step} is damaged ({name} is not what was written).")
    return len(record["fingerprints"])


def keys_of(name: str) -> tuple[str, ...]:
    """The keys in the name of a leaf: Orbax returns tuples as dicts or lists."""
    return tuple("".join(key) for key in re.findall(r"\.(\w+)|\['([^']*)'\]|\[(\d+)\]", name))


def _weights(record: Record) -> str:
    """The part of the state to evaluate."""
    return "average" if any(key.startswith(".average[") for key in record["spec"]) else "params"


def read_arrays(state: Path, part: str, names: list[str]) -> dict[str, np.ndarray]:
    """Reads some arrays of a training state only (the optimizer's are twice as large)."""
    import orbax.checkpoint as ocp

    item = {part: dict.fromkeys(names, 0)}
    options = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        arguments = ocp.args.PyTreeRestore(item, restore_args=options, partial_restore=True)
        restored = reader.restore(state.resolve(), args=arguments)
    return {name: np.asarray(restored[part][name]) for name in names}
