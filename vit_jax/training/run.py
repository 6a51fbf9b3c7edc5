"""Training: pre-training and fine-tuning are the same run with different configurations."""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import shlex
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import jax

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.data import image_check
from vit_jax.data.batches import BadImages, train_batches
from vit_jax.errors import Diverged, UserError
from vit_jax.pages import report
from vit_jax.runtime import profiling, sharding
from vit_jax.runtime.distributed import StopRequest, say
from vit_jax.runtime.logbook import Logbook
from vit_jax.runtime.pace import Clock, Paced
from vit_jax.runtime.watchdog import Watchdog
from vit_jax.training import auto_memory, events, kernel_check, live, memory, process_checks
from vit_jax.training.best import Best, of_model
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.evaluators import evaluators, sources
from vit_jax.training.loop import Run, loop
from vit_jax.training.plan import show_plan
from vit_jax.training.prepared import Evaluator
from vit_jax.training.setup import OF_CHECKPOINT, Setup, check, set_up
from vit_jax.training.spikes import Spikes, rule_of
from vit_jax.training.state import TrainState
from vit_jax.training.workdir import (
    as_begun,
    changes,
    check_data,
    check_history,
    check_workdir,
    damage_of_model,
    export,
    finished_metrics,
    has_checkpoint,
    read_config,
    recorded,
    run_meta,
    write_config,
    write_evaluation,
)


def train(
    config: ConfigDict,
    workdir: str | os.PathLike,
    *,
    allow_config_change: bool = False,
) -> dict[str, float]:
    """Runs an experiment in `workdir` to its end, resuming if possible; returns the last metrics.

    Raises:
      UserError: the configuration, the data or the workdir is not usable; nothing was changed.
      Preempted: asked to stop; the state is saved, and the same call resumes.
    """
    workdir = Path(workdir).expanduser().resolve()
    configuration.check(config)
    process_checks.agree(workdir, config, allow_config_change=allow_config_change)
    config = as_begun(workdir, config)
    check_workdir(workdir, config, allow_config_change)
    whole = config
    finished = finished_metrics(workdir)
    if finished is not None and (problem := damage_of_model(workdir)):
        say(f"{problem} It is made again from the last checkpoint.")
        finished = None
    if finished is not None and not changes(workdir, whole):
        say(f"{workdir} has finished at step {finished['step']}; nothing to do.")
        return finished
    check_history(workdir)
    resuming = has_checkpoint(workdir)
    if config.pretrain is not None:
        config = config.copy_and_resolve_references()
        config.pretrain = None
        of_checkpoint = config.model.variant == OF_CHECKPOINT
        if not resuming:
            check(config)  # errors in this stage are reported before the first one runs
        if not resuming or of_checkpoint:  # a stage that has begun does not need the first one
            train(whole.pretrain, workdir / "pretrain", allow_config_change=allow_config_change)
        config.init_from = str(workdir / "pretrain")
    setup = set_up(config, resuming=resuming)
    process_checks.check_equal(process_checks.of_data(setup.data))
    if finished is not None and is_over(setup, whole, workdir, finished):
        return still_finished(setup, whole, workdir, finished)
    setup, attention = kernel_check.check_kernel(setup, workdir)
    show_plan(setup)
    if not resuming:
        check_images(setup)
    setup, compiled, expected = auto_memory.choose_setup(setup, workdir, resuming=resuming)
    checkpoints = hold(setup, workdir)
    try:
        check_data(setup, checkpoints, allow_config_change)
        state, best, spikes = restore_or_initialise(setup, checkpoints)
        write_config(workdir, whole)  # no more checks that refuse
        auto_memory.write(workdir, setup)
        kernel_check.write(workdir, attention)
        return under_way(setup, compiled, workdir, state, best, spikes, checkpoints, expected)
    finally:
        checkpoints.close()


def under_way(
    setup: Setup,
    compiled: jax.stages.Compiled,
    workdir: Path,
    state: TrainState,
    best: Best,
    spikes: Spikes,
    checkpoints: Checkpoints,
    expected_memory: int | None,
) -> dict[str, float]:
    """Trains from `state`, whose arrays are donated, to the end, and exports; the last metrics.

    expected_memory: bytes, see `memory.expected_bytes`.
    """
    config, total, start = setup.config, setup.plan.total_steps, int(state.step)
    on_bad = BadImages(config.data.max_bad_images)
    measures = evaluators(setup, on_bad)
    measured_memory = functools.partial(memory.measured_memory, expected_memory)
    with contextlib.ExitStack() as stack:
        shared = instruments(
            setup, compiled, workdir, start, best, spikes, checkpoints, expected_memory, stack
        )
        request = stack.enter_context(StopRequest())
        stop = events.saves_and_stops(shared, workdir, total)
        periods = setup.plan.periods_during_training

        fed = functools.partial(live.fed, workdir, setup.data.train.class_names)

        def over(step: int) -> bool:
            return step >= total or best.is_over

        lines = events.every(config.log_every_steps, first=start + 1, last=total)
        run = Run(
            over,
            shared.pace,
            stack.enter_context(
                contextlib.closing(training_batches(setup, start, shared.clock, on_bad, fed))
            ),
            (
                events.logged(
                    shared,
                    measured_memory,
                    due=lines,
                    max_skipped_steps=config.max_skipped_steps,
                ),
                events.rolled_back(shared, setup.program.abstract_state),
                events.saved(shared, every_steps=config.checkpoint_every_steps, total_steps=total),
                events.evaluated(shared, measures, periods, total, request, stop),
                live.page(workdir, lines),
                events.ended_early(shared),
                events.stopped(request, stop, over),
            ),
        )
        due = events.due_evaluators(start, periods, total) if start else []
        if left := not_evaluated(due, shared.results):
            again = {name: measures[name] for name in left}
            events.evaluate(shared, again, start, state, request, stop)
        events.keep_if_best(shared, due, start, state)
        state = loop(run, state)
        last = int(state.step)
        if last < total:
            shared.log.say(
                f"stops at step {last} of {total}: {best.since} evaluations without improvement "
                f"on {best} (config.patience)"
            )
        finish(setup, state, workdir, shared, measures, measured_memory())
    if jax.process_index() == 0:
        page = report.write_report(workdir)
        which = f" ({best})" if best.rule else ""
        say(f"model in {workdir / 'model'}{which}, curves in {page}")
        checkpoint = shlex.quote(f"--checkpoint={workdir}")
        say(f"look inside: vit-jax inspect {checkpoint} --images=FOLDER --out=DIR")
    return of_model({"step": last, **shared.results})


def instruments(
    setup: Setup,
    compiled: jax.stages.Compiled,
    workdir: Path,
    start: int,
    best: Best,
    spikes: Spikes,
    checkpoints: Checkpoints,
    expected_memory: int | None,
    stack: contextlib.ExitStack,
) -> events.Instruments:
    """The log, pace and watchdog of a run, until `stack` is left."""
    config = setup.config
    log = Logbook(
        workdir,
        total_steps=setup.plan.total_steps,
        start_step=start,
        wandb=config.wandb,
        enabled=jax.process_index() == 0,
    )
    results = recorded(workdir, start)
    profile = profiling.Profile(workdir / "profile", config.profile_steps)
    watchdog = Watchdog(config.watchdog_seconds)
    pace = Paced(
        compiled, start, expected_memory=expected_memory, profile=profile, watchdog=watchdog
    )
    for each in (contextlib.closing(profile), log, watchdog, pace):
        stack.enter_context(each)
    clock = Clock(config.batch_size, start)
    meta = run_meta(setup)
    return events.Instruments(log, results, clock, pace, watchdog, checkpoints, meta, best, spikes)


def not_evaluated(due: list[str], results: Mapping[str, float]) -> list[str]:
    """The evaluators that were `due` at the resumed step and are missing in its log.

    As read by process 0.
    """
    there = [any(key.startswith(f"{name}/") for key in results) for name in due]
    left = sharding.gathered(sum(1 << i for i, found in enumerate(there) if not found))[0]
    return [name for i, name in enumerate(due) if left >> i & 1]


def finish(
    setup: Setup,
    state: TrainState,
    workdir: Path,
    shared: events.Instruments,
    measures: Mapping[str, Evaluator],
    peak: Mapping[str, float],
) -> None:
    """Writes the exported model, evaluation.json and the last line of the log.

    Raises:
      Diverged: no step was ever taken.
      CheckpointError: the best checkpoint cannot be used.
    """
    last = int(state.step)
    if (skipped := int(state.skipped)) >= last:
        raise Diverged(
            f"None of the {skipped} updates was finite: none was made, and no model is "
            "exported. Lower config.schedule.learning_rate, and start again."
        )
    state, record = events.best_state(
        shared, setup.plan, measures, state, setup.program.abstract_state
    )
    shared.results.update(record)
    export(setup, state, workdir, last, shared.best)
    if jax.process_index() == 0:
        write_evaluation(workdir, of_model(shared.results), int(state.step), setup)
    shared.results.update(peak)
    shared.log.write(last, {**record, **peak}, final=True)


def restore_or_initialise(
    setup: Setup, checkpoints: Checkpoints
) -> tuple[TrainState, Best, Spikes]:
    """The newest checkpoint of this run, or its initial state; the best, and the losses, so far.

    Raises:
      UserError: it belongs to another run, or is beyond the end of this one.
      CheckpointError: it cannot be used, or the best one is missing.
    """
    total, rule = setup.plan.total_steps, rule_of(setup.config)
    restored = checkpoints.restore(setup.program.abstract_state)
    if restored is None:
        return setup.program.initialise(), Best(setup.plan.keep), Spikes(rule)
    state, meta = restored
    if int(meta["step"]) > total:
        raise UserError(
            f"The run in {checkpoints.directory.parent} has a checkpoint of step "
            f"{int(meta['step'])}, beyond config.total_steps={total}; raise it, or use another "
            "--workdir."
        )
    best = Best(setup.plan.keep, meta.get("best"))
    checkpoints.check_best(best.step)
    say(f"resumed from step {int(meta['step'])}")
    return state, best, Spikes(rule, meta.get("roll_back"))


def training_batches(
    setup: Setup,
    start_step: int,
    clock: Clock,
    on_bad: Callable[[str], None] | None = None,
    on_first: Callable[[Mapping], None] = lambda batch: None,
) -> Generator[dict[str, jax.Array], None, None]:
    """Batches on the devices, with two prefetched; `clock` measures the wait for input."""
    config, mesh = setup.config, setup.program.mesh
    batches = train_batches(
        setup.data.train,
        setup.data.train_transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        rows=sharding.host_rows(mesh, config.batch_size),
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
        on_bad=on_bad,
        balanced=config.data.sampling == "balanced",
    )
    ahead: collections.deque = collections.deque()
    try:
        while True:
            with clock.waiting():
                batch = next(batches)
            if not ahead:
                on_first(batch)
            with profiling.phase(profiling.TO_DEVICES):
                ahead.append(sharding.to_devices(batch, mesh))
            if len(ahead) > 2:
                yield ahead.popleft()
    finally:
        batches.close()


def hold(setup: Setup, workdir: Path) -> Checkpoints:
    """The checkpoints of `workdir`, locked by this job until they are closed."""
    return Checkpoints(
        workdir / "checkpoints",
        keep=setup.config.keep_checkpoints,
    )


#: Seconds for checking the images of each part of the data before a run.
LOOK_SECONDS = 5.0


def check_images(setup: Setup) -> None:
    """Raises UserError if more images than allowed are unreadable, before step 1.

    Evaluators need all of theirs: on a part of the data a protocol's numbers are not comparable.
    """
    allowed = setup.config.data.max_bad_images
    own: list[str] = []
    others: list[str] = []
    looked = 0
    if jax.process_index() == 0:
        seconds, threads = LOOK_SECONDS, setup.config.data.num_threads
        parts = [(source, own) for source in (setup.data.train, setup.data.evaluation)]
        parts += [(source, others) for source in sources(setup.config)]
        for source, problems in parts:
            found, count = image_check.unreadable(
                source, setup.data.eval_transform, seconds=seconds, num_threads=threads
            )
            problems += found
            looked += count
    if max(sharding.gathered(int(len(own) > allowed or len(others) > 0))) == 0:
        return
    if others:
        raise UserError(f"{others[0]} An evaluator of config.evaluators needs all of its images.")
    if not own:
        raise UserError("Process 0 found unreadable images; its output names them.")
    raise UserError(
        f"{own[0]} Of {looked:,} images checked, {len(own):,} cannot be read; set "
        f"config.data.max_bad_images={len(own)} to continue without them."
    )


def is_over(setup: Setup, config: ConfigDict, workdir: Path, finished: dict[str, float]) -> bool:
    """Whether a finished run has nothing to do although its configuration changed."""
    if finished["step"] >= setup.plan.total_steps:
        return True
    may_have_ended_early = bool((read_config(workdir) or {}).get("patience"))
    return may_have_ended_early and changes(workdir, config).keys() <= {"data.dataset"}


def still_finished(
    setup: Setup, config: ConfigDict, workdir: Path, finished: dict[str, float]
) -> dict[str, float]:
    """The last metrics of a run that has nothing to do although its configuration changed.

    Raises:
      UserError: more than the location of its data changed, or the data themselves.
    """
    if changed := [key for key in changes(workdir, config) if key != "data.dataset"]:
        raise UserError(
            f"{workdir} has finished at step {finished['step']}: changing "
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
