"""The training loop: steps, logs, evaluations, checkpoints."""

from __future__ import annotations

import collections
import shlex
from collections.abc import Callable, Generator
from pathlib import Path

import jax

from vit_jax import data
from vit_jax.errors import Diverged, Preempted, UserError
from vit_jax.pages import report
from vit_jax.runtime import profiling, sharding
from vit_jax.runtime.distributed import StopRequest, say
from vit_jax.runtime.logbook import Logbook
from vit_jax.runtime.pace import Clock, Pace
from vit_jax.runtime.watchdog import Watchdog
from vit_jax.training import memory, state as train_state
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.evaluators import evaluators
from vit_jax.training.setup import Setup
from vit_jax.training.workdir import export, run_meta, write_evaluation


def restore_or_initialise(setup: Setup, checkpoints: Checkpoints) -> train_state.TrainState:
    """The newest checkpoint of this run, or its initial state."""
    restored = checkpoints.restore(setup.abstract_state)
    if restored is None:
        return setup.initialise()
    state, meta = restored
    if int(meta["step"]) > setup.total_steps:
        raise UserError(
            f"The run in {checkpoints.directory.parent} has a checkpoint of step "
            f"{int(meta['step'])}, beyond config.total_steps={setup.total_steps}; raise it, or use "
            "another --workdir."
        )
    say(f"resumed from step {int(meta['step'])}")
    return state


def loop(
    setup: Setup,
    train_step: Callable,
    workdir: Path,
    state: train_state.TrainState,
    checkpoints: Checkpoints,
    expected_memory: int | None,
) -> dict[str, float]:
    """Steps, logs, evaluates and saves until the end; then exports the model.

    `state` is where the run is; its arrays are given to the first step.
    """
    config, total = setup.config, setup.total_steps
    meta = run_meta(setup)
    is_main = jax.process_index() == 0
    on_bad = data.BadImages(config.data.max_bad_images)
    measures = evaluators(setup, on_bad)
    profile = profiling.Profile(workdir / "profile", config.profile_steps)
    batches = None
    try:
        start = int(state.step)
        with (
            Logbook(
                workdir, total_steps=total, start_step=start, wandb=config.wandb, enabled=is_main
            ) as log,
            StopRequest() as stop,
            Watchdog(config.watchdog_seconds) as watchdog,
        ):
            clock = Clock(config.batch_size, start)
            batches = training_batches(setup, start, clock, on_bad)
            metrics: dict[str, jax.Array] = {}
            record: dict[str, float] = {}
            pace = Pace(train_step, expected_memory)
            batch = next(batches) if start < total else {}
            for step in range(start + 1, total + 1):
                pace.begin()
                with profile.begin(step):
                    state, metrics = train_step(state, batch)
                    watchdog.beat(f"step {step}")
                    if step < total:
                        batch = next(batches)  # while the devices compute
                    pace.keep(metrics["train/loss"])
                if traced := profile.end(step, metrics):
                    say(f"profile of {traced}: {profile.directory}")
                last = step == total
                record = {}
                if last or step == start + 1 or step % config.log_every_steps == 0:
                    record |= {key: float(value) for key, value in metrics.items()}
                    record |= clock.read(step)
                    record |= memory.measured_memory(expected_memory)
                    abort_if_stuck(record, config.max_skipped_steps)
                if last:  # before its evaluation, which may fail
                    checkpoints.save(step, state, meta, force=True)
                    checkpoints.wait()
                due = [run for every, run in measures if last or (every and step % every == 0)]
                for run in due:
                    record |= run(train_state.evaluated_params(state), watchdog.on_batch)
                    clock.restart(step)
                if due:
                    pace.interrupted()
                if record and not last:
                    log.write(step, record)
                log.advance(step)
                saving = checkpoints.saving
                if checkpoints.save(step, state, meta):
                    watchdog.beat(f"a checkpoint of step {step}", progress=True)
                if checkpoints.saving != saving:
                    pace.interrupted()
                if not last and stop.requested(step):
                    checkpoints.save(step, state, meta, force=True)
                    checkpoints.wait()
                    raise Preempted(
                        f"asked to stop: saved step {step} of {total} in {workdir}; "
                        "run the same command to go on."
                    )
            if not record:  # resumed at the very end: the last step was saved, not yet exported
                for _, run in measures:
                    record |= run(train_state.evaluated_params(state), watchdog.on_batch)
            if (skipped := int(state.skipped)) >= total:
                raise Diverged(
                    f"None of the {skipped} gradients was finite: no step was taken, and no "
                    "model is exported. Lower config.schedule.learning_rate, and start again."
                )
            record |= memory.measured_memory(expected_memory)
            export(setup, state, workdir)
            if is_main:
                write_evaluation(workdir, record, total, setup)
            log.write(total, record, final=True)
    finally:
        profile.close()
        if batches is not None:
            batches.close()
    if is_main:
        page = report.write_report(workdir)
        say(f"model in {workdir / 'model'}, curves in {page}")
        checkpoint = shlex.quote(f"--checkpoint={workdir}")
        say(f"look inside: vit-jax inspect {checkpoint} --images=FOLDER --out=DIR")
    return {"step": total, **record}


def training_batches(
    setup: Setup, start_step: int, clock: Clock, on_bad: Callable[[str], None] | None = None
) -> Generator[dict[str, jax.Array], None, None]:
    """Batches on the devices, two ahead of the step that uses them; `clock` sees who waits."""
    config = setup.config
    batches = data.train_batches(
        setup.train_source,
        setup.train_transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=sharding.host_rows(setup.mesh, config.batch_size),
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        on_bad=on_bad,
    )
    ahead: collections.deque = collections.deque()
    try:
        while True:
            with clock.waiting():
                batch = next(batches)
            with profiling.phase(profiling.TO_DEVICES):
                ahead.append(sharding.to_devices(batch, setup.mesh))
            if len(ahead) > 2:
                yield ahead.popleft()
    finally:
        batches.close()


def abort_if_stuck(record: dict[str, float], limit: int) -> None:
    """Stops a run whose gradients are not finite any more; its checkpoints are all finite."""
    bad = int(record["train/skipped_in_a_row"])
    if bad >= limit:
        raise Diverged(
            f"The last {bad} gradients were not finite and their updates were skipped; lower "
            "config.schedule.learning_rate, or set config.gradient_clip_norm, and start again."
        )
