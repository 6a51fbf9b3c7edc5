"""Training: pre-training and fine-tuning are the same run under different configurations."""

from __future__ import annotations

import os
from pathlib import Path

import jax

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.data import look
from vit_jax.errors import UserError
from vit_jax.runtime import sharding
from vit_jax.runtime.distributed import say
from vit_jax.training import auto_memory, evaluators, plan
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.loop import loop, restore_or_initialise
from vit_jax.training.setup import OF_CHECKPOINT, Setup, set_up
from vit_jax.training.workdir import (
    as_begun,
    changes,
    check_data,
    check_history,
    check_workdir,
    finished_metrics,
    has_checkpoint,
    write_config,
)


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    allow_config_change: bool = False,
) -> dict[str, float]:
    """Runs an experiment in `workdir` to its end, from wherever it is; returns the last metrics.

    Raises:
      UserError: the configuration, the data or the workdir is not usable; nothing was changed.
      Preempted: asked to stop; the state is saved, and the same call goes on.
    """
    workdir = Path(workdir).expanduser().resolve()
    configuration.check(config)
    config = as_begun(workdir, config)
    check_workdir(workdir, config, allow_config_change)
    whole = config
    finished = finished_metrics(workdir)
    if finished is not None and not changes(workdir, whole):
        say(f"{workdir} has finished at step {finished['step']}; nothing to do.")
        return finished
    check_history(workdir)
    resuming = has_checkpoint(workdir)
    if config.pretrain is not None:
        config = config.copy_and_resolve_references()
        config.pretrain = None
        of_checkpoint = config.model.variant == OF_CHECKPOINT
        if not resuming and not of_checkpoint:
            set_up(config)  # a mistake in this stage is said before the first one runs
        if not resuming or of_checkpoint:  # a stage that has begun does not read the first one
            train(whole.pretrain, workdir / "pretrain", allow_config_change=allow_config_change)
        config.init_from = str(workdir / "pretrain")
    setup = set_up(config, resuming=resuming)
    if finished is not None and finished["step"] >= setup.total_steps:
        return still_finished(setup, whole, workdir, finished)
    plan.show_plan(setup)
    if not resuming:
        check_images(setup)
    setup, compiled, expected = auto_memory.settle(setup, workdir, resuming=resuming)
    checkpoints = hold(setup, workdir)
    try:
        check_data(setup, checkpoints, allow_config_change)
        state = restore_or_initialise(setup, checkpoints)
        write_config(workdir, whole)  # nothing refuses any more
        auto_memory.write(workdir, setup)
        return loop(setup, compiled, workdir, state, checkpoints, expected)
    finally:
        checkpoints.close()


def hold(setup: Setup, workdir: Path) -> Checkpoints:
    """The checkpoints of `workdir`, which this job has for itself until they are closed."""
    return Checkpoints(
        workdir / "checkpoints",
        every_steps=setup.config.checkpoint_every_steps,
        keep=setup.config.keep_checkpoints,
    )


#: How long the images of each part of the data are looked at before a run begins.
LOOK_SECONDS = 5.0


def check_images(setup: Setup) -> None:
    """Raises UserError if more images than are allowed are found to be unreadable before step 1.

    Evaluators need all of theirs: a protocol on part of a data set is another one.
    """
    allowed = setup.config.data.max_bad_images
    own: list[str] = []
    others: list[str] = []
    looked = 0
    if jax.process_index() == 0:
        seconds, threads = LOOK_SECONDS, setup.config.data.num_threads
        parts = [(source, own) for source in (setup.train_source, setup.eval_source)]
        parts += [(source, others) for source in evaluators.sources(setup.config)]
        for source, problems in parts:
            found, count = look.unreadable(
                source, setup.eval_transform, seconds=seconds, num_threads=threads
            )
            problems += found
            looked += count
    if max(sharding.gathered(int(len(own) > allowed or len(others) > 0))) == 0:
        return
    if others:
        raise UserError(f"{others[0]} An evaluator of config.evaluators needs all of its images.")
    if not own:
        raise UserError("Process 0 has found images that cannot be read.")
    raise UserError(
        f"{own[0]} Of {looked:,} images looked at, {len(own):,} cannot be read; "
        f"config.data.max_bad_images={len(own)} goes on without them."
    )


def still_finished(
    setup: Setup, config: ConfigDict, workdir: Path, finished: dict[str, float]
) -> dict[str, float]:
    """The last metrics of a run that has nothing left to do, though its configuration changed.

    Raises:
      UserError: more than the place of its data changed, or the data did.
    """
    if changed := [key for key in changes(workdir, config) if key != "data.dataset"]:
        raise UserError(
            f"{workdir} has finished at step {finished['step']}: the change of "
            f"{changed[0]} would have no effect; "
            "raise config.total_steps, or use another --workdir."
        )
    checkpoints = hold(setup, workdir)
    try:
        check_data(setup, checkpoints, allow_change=False, finished=True)
    finally:
        checkpoints.close()
    say(f"{workdir} has finished at step {finished['step']}; nothing to do.")
    return finished
