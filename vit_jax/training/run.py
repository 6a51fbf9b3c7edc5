"""Training: pre-training and fine-tuning are the same run under different configurations."""

from __future__ import annotations

import os
from pathlib import Path

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.runtime.distributed import say
from vit_jax.training import auto_memory, plan
from vit_jax.training.loop import loop
from vit_jax.training.setup import OF_CHECKPOINT, set_up
from vit_jax.training.workdir import (
    as_begun,
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
    configuration.check_keys(config)
    config = as_begun(workdir, config)
    check_workdir(workdir, config, allow_config_change)
    whole = config
    if config.pretrain is not None:
        config = config.copy_and_resolve_references()
        config.pretrain = None
        if config.model.variant != OF_CHECKPOINT:
            set_up(config)  # a mistake in this stage is said before the first one runs
        train(whole.pretrain, workdir / "pretrain", allow_config_change=allow_config_change)
        config.init_from = str(workdir / "pretrain")
    finished = finished_metrics(workdir)
    if finished is not None:
        say(f"{workdir} has finished at step {finished['step']}; nothing to do.")
        return finished
    resuming = has_checkpoint(workdir)
    setup = set_up(config, resuming=resuming)
    plan.show_plan(setup)
    setup, compiled, expected = auto_memory.settle(setup, workdir, resuming=resuming)
    write_config(workdir, whole)
    auto_memory.write(workdir, setup)
    return loop(setup, compiled, workdir, expected)
