"""Training: pre-training and fine-tuning are the same loop under different configurations."""

from __future__ import annotations

import collections
import contextlib
import functools
import json
import os
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from vit_jax import config as configuration
from vit_jax import data, models
from vit_jax.config import ConfigDict
from vit_jax.errors import Preempted, UserError
from vit_jax.interop import load
from vit_jax.models import adapt, saved
from vit_jax.objectives import losses
from vit_jax.pages import report
from vit_jax.runtime import host_memory, profiling, sharding
from vit_jax.runtime.distributed import StopRequest
from vit_jax.runtime.logbook import Logbook, read_metrics
from vit_jax.runtime.watchdog import Watchdog
from vit_jax.training import auto_memory, evaluators, optim, preflight
from vit_jax.training import state as train_state
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.step import make_eval_step, make_train_step


class Setup(NamedTuple):
    """Everything that a configuration decides, before any array exists."""

    config: ConfigDict
    model: models.ModelConfig
    train_source: Any
    eval_source: Any
    train_transform: Callable
    eval_transform: Callable
    mesh: jax.sharding.Mesh
    total_steps: int
    warmup_steps: int
    periods: evaluators.Periods
    schedule: Callable
    make_train_step: Callable  # (apply, accumulation_steps=...) -> train_step
    train_step: Callable  # (state, batch) -> (state, metrics), not yet jitted
    eval_step: Callable  # (params, batch) -> per-example results, not yet jitted
    initialise: Callable  # () -> TrainState on the mesh
    abstract_state: train_state.TrainState
    notes: list[str]


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
    check_workdir(workdir, config, allow_config_change)
    whole = config
    if config.pretrain is not None:
        config = config.copy_and_resolve_references()
        config.pretrain = None
        if config.model.variant != OF_CHECKPOINT:
            prepare(config)  # a mistake in this stage is said before the first one runs
        train(whole.pretrain, workdir / "pretrain", allow_config_change=allow_config_change)
        config.init_from = str(workdir / "pretrain")
    finished = finished_metrics(workdir)
    if finished is not None:
        say(f"{workdir} has finished at step {finished['step']}; nothing to do.")
        return finished
    resuming = has_checkpoint(workdir)
    setup = prepare(config, resuming=resuming)
    preflight.show_plan(setup)
    setup, compiled, expected = auto_memory.fit(setup, workdir, resuming=resuming)
    write_config(workdir, whole)
    auto_memory.write(workdir, setup)
    return loop(setup, compiled, workdir, expected)


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
            partial = workdir / "config.json.partial"
            partial.write_text(configuration.to_json(config))
            os.replace(partial, workdir / "config.json")
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


def prepare(
    config: ConfigDict,
    *,
    resuming: bool = False,
    sources: tuple[Any, Any] | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Setup:
    """Opens the data and builds the model's functions, steps and shardings from a configuration.

    Args:
      resuming: `init_from` is not read; its weights are not needed any more.
      sources: training and evaluation data that are open already, instead of `config.data`.
      mesh: instead of that of `config.mesh` over the devices here, e.g. of a pod elsewhere.

    Raises:
      UserError: something does not exist or does not fit; says which setting.
    """
    notes: list[str] = []
    if mesh is None:
        mesh = sharding.make_mesh(**configuration.section(config, "mesh"))
    check_batch(config, mesh)
    train_source, eval_source = sources or open_sources(config)
    needed = not resuming or config.model.variant == OF_CHECKPOINT
    initial = load.read(config.init_from) if config.init_from and needed else None
    model = model_config(config, train_source, initial)
    size = model.image_size
    train_transform = data.make_transform(size=size, train=True, **config.augment.to_dict())
    eval_transform = data.make_transform(size=size, train=False, **config.eval_preprocess.to_dict())

    epoch = configuration.steps_per_epoch(len(train_source), config.batch_size)
    in_steps = functools.partial(configuration.duration, steps_per_epoch=epoch)
    total_steps = in_steps(config, "total")
    if not total_steps or total_steps < 1:
        raise UserError("config.total_steps or config.total_epochs must be set and positive.")
    profiling.check_steps(config.profile_steps, total_steps)
    auto_memory.check(config)
    warmup_steps = in_steps(config.schedule, "warmup", total_steps=total_steps) or 0
    schedule = optim.learning_rate_schedule(
        config.schedule.decay,
        config.schedule.learning_rate,
        total_steps,
        warmup_steps,
        config.schedule.final_learning_rate,
        config.schedule.boundaries_percent,
    )
    optimizer = configuration.call(optim.OPTIMIZERS, "config.optimizer", config.optimizer)
    loss = loss_function(config)
    init, apply = models.as_functions(model)
    initialise, abstract_state = train_state.initialise(
        *initial_params(config, model, initial, init, mesh, notes),
        optimizer,
        mesh,
        polyak=config.polyak_decay is not None,
        consume=initial is not None,
    )
    train_step_of = functools.partial(
        make_train_step,
        optimizer=optimizer,
        loss=loss,
        num_classes=model.num_classes,
        schedule=schedule,
        seed=config.seed,
        gradient_clip_norm=config.gradient_clip_norm,
        polyak_decay=config.polyak_decay,
        mixup_alpha=config.mixup_alpha,
    )
    return Setup(
        config=config,
        model=model,
        train_source=train_source,
        eval_source=eval_source,
        train_transform=train_transform,
        eval_transform=eval_transform,
        mesh=mesh,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
        periods=evaluators.periods(config, epoch),
        schedule=schedule,
        make_train_step=train_step_of,
        train_step=train_step_of(apply, accumulation_steps=config.accumulation_steps),
        eval_step=make_eval_step(apply, loss=loss, num_classes=model.num_classes),
        initialise=initialise,
        abstract_state=abstract_state,
        notes=notes,
    )


def loss_function(config: ConfigDict) -> Callable:
    """The configured loss, checked before it is first traced."""
    options = config.loss.to_dict()
    empty = jnp.zeros((1, 2))
    jax.eval_shape(
        lambda: configuration.call(
            losses.LOSSES, "config.loss", options, logits=empty, targets=empty
        )
    )
    return functools.partial(losses.LOSSES[options.pop("name")], **options)


def check_batch(config: ConfigDict, mesh: jax.sharding.Mesh) -> None:
    """The global batch must divide by devices and accumulation steps."""
    divisor = sharding.batch_divisor(mesh) * config.accumulation_steps
    if config.accumulation_steps < 1 or config.batch_size < 1 or config.batch_size % divisor:
        fits = max(divisor, config.batch_size // max(divisor, 1) * divisor)
        raise UserError(
            f"config.batch_size={config.batch_size} does not divide by "
            f"{sharding.batch_divisor(mesh)} devices x {config.accumulation_steps} "
            f"accumulation steps; {fits} would."
        )


def open_sources(config: ConfigDict) -> tuple[Any, Any]:
    """The training and the evaluation source of `config.data`."""
    spec, options = config.data.dataset, {"data_dir": config.data.data_dir}
    if config.data.train_split or config.data.eval_split:
        if not (config.data.train_split and config.data.eval_split):
            raise UserError("config.data.train_split and .eval_split belong together; set both.")
        train_spec = f"{spec}[{config.data.train_split}]"
        eval_spec = f"{spec}[{config.data.eval_split}]"
    else:
        train_spec, eval_spec = data.default_splits(spec, **options)
    train_source = data.open_source(train_spec, exclude=config.data.exclude or None, **options)
    eval_source = data.open_source(eval_spec, **options)
    if train_source.num_classes != eval_source.num_classes:
        raise UserError(
            f"{train_spec} has {train_source.num_classes} classes but {eval_spec} has "
            f"{eval_source.num_classes}; they must be splits of one data set."
        )
    return train_source, eval_source


#: What `config.model.variant` says to take the architecture from `config.init_from`.
OF_CHECKPOINT = "checkpoint"
Checkpoint = tuple[models.ModelConfig, models.Params]


def model_config(config: ConfigDict, source: Any, initial: Checkpoint | None) -> models.ModelConfig:
    """The model of `config.model` for the classes of `source`, in the compute dtype."""
    overrides = configuration.section(config, "model")
    classes = overrides.setdefault("num_classes", source.num_classes)
    if classes < source.num_classes:
        raise UserError(
            f"config.model.num_classes={classes} is less than the {source.num_classes} classes "
            f"of {source.spec}; leave it out to take them from the data."
        )
    if overrides.get("channels", 3) != 3:
        raise UserError(
            f"config.model.channels={overrides['channels']}: data sets are read as RGB, so a model "
            "that is trained on them has 3 channels."
        )
    labels = tuple(source.class_names) if classes == source.num_classes else ()
    overrides |= {
        "labels": labels,
        "preprocessing": tuple(sorted(config.eval_preprocess.to_dict().items())),
        "dtype": compute_dtype(config.compute_dtype),
    }
    if overrides["variant"] != OF_CHECKPOINT:
        return models.get_config(**overrides)
    if initial is None:
        raise UserError(
            f"config.model.variant={OF_CHECKPOINT!r} takes the architecture from "
            "config.init_from, which is not set."
        )
    found, _ = initial
    overrides["variant"] = found.variant
    if isinstance(found, models.ViTConfig):  # a new task: the linear head, unless it is asked for
        found = models.replace(found, representation_size=None)
    return models.override(found, **overrides)


def compute_dtype(name: str) -> str:
    """ "auto" is bfloat16 where there is hardware for it, float32 on CPU."""
    if name == "auto":
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if name not in ("float32", "bfloat16"):
        raise UserError(f"config.compute_dtype={name!r}: choose auto, float32 or bfloat16.")
    return name


def initial_params(
    config: ConfigDict,
    model: models.ModelConfig,
    initial: Checkpoint | None,
    init: Callable,
    mesh: jax.sharding.Mesh,
    notes: list[str],
) -> tuple[Callable[[Any], models.Params], Any]:
    """Where the weights come from, as a function and its argument: `init_from`, or the seed."""
    if initial is None:
        return init, jax.random.key(config.seed)
    found, params = initial
    adapted, changes = adapt.adapt(found, params, model)
    notes.append(f"weights from {config.init_from} ({found.variant})")
    notes.extend(f"adapted {change}" for change in changes)
    return dict, sharding.params_to_devices(adapted, mesh)


def run_meta(setup: Setup) -> dict[str, Any]:
    """What must be the same when a run goes on: kept in every checkpoint."""
    return {
        "train_data": [setup.train_source.spec, setup.train_source.fingerprint],
        "eval_data": [setup.eval_source.spec, setup.eval_source.fingerprint],
        "jax": jax.__version__,
    }


def restore_or_initialise(setup: Setup, checkpoints: Checkpoints) -> train_state.TrainState:
    """The newest checkpoint of this run, or its initial state."""
    meta = checkpoints.latest_meta()
    if meta is not None:
        for key, now in run_meta(setup).items():
            if key.endswith("_data") and list(meta[key]) != now:
                raise UserError(
                    f"The data changed since this run began: {key} is {now[0]} ({now[1]}), it was "
                    f"{meta[key][0]} ({meta[key][1]}). Restore the data or use another --workdir."
                )
    restored = checkpoints.restore(setup.abstract_state)
    if restored is None:
        return setup.initialise()
    state, meta = restored
    say(f"resumed from step {int(meta['step'])}")
    return state


def loop(
    setup: Setup, train_step: Callable, workdir: Path, expected_memory: int | None
) -> dict[str, float]:
    """Steps, logs, evaluates and saves until the end; then exports the model."""
    config, total = setup.config, setup.total_steps
    checkpoints = Checkpoints(
        workdir / "checkpoints",
        every_steps=config.checkpoint_every_steps,
        keep=config.keep_checkpoints,
    )
    meta = run_meta(setup)
    is_main = jax.process_index() == 0
    measures = evaluators.evaluators(setup)
    profile = profiling.Profile(workdir / "profile", config.profile_steps)
    batches = None
    try:
        state = restore_or_initialise(setup, checkpoints)
        start = int(state.step)
        with (
            Logbook(
                workdir, total_steps=total, start_step=start, wandb=config.wandb, enabled=is_main
            ) as log,
            StopRequest() as stop,
            Watchdog(config.watchdog_seconds) as watchdog,
        ):
            clock = Clock(config.batch_size, start)
            batches = training_batches(setup, start, clock)
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
                    record |= preflight.measured_memory(expected_memory)
                    abort_if_stuck(record, config.max_skipped_steps)
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
                if checkpoints.save(step, state, meta, force=last):
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
            checkpoints.wait()
            if not record:  # resumed at the very end: the last step was saved, not yet exported
                for _, run in measures:
                    record |= run(train_state.evaluated_params(state), watchdog.on_batch)
            record |= preflight.measured_memory(expected_memory)
            export(setup, state, workdir)
            if is_main:
                write_evaluation(workdir, record, total, setup)
            log.write(total, record, final=True)
    finally:
        profile.close()
        if batches is not None:
            batches.close()
        checkpoints.close()
    if is_main:
        page = report.write_report(workdir)
        say(f"model in {workdir / 'model'}, curves in {page}")
        say(f"look inside: vit-jax inspect --checkpoint={workdir} --images=FOLDER --out=DIR")
    return {"step": total, **record}


class Pace:
    """Keeps the loop no more than `preflight.steps_ahead()` ahead of the devices.

    On a CPU that keeps freed pages also close to the bytes that the run is expected to hold.
    """

    def __init__(self, train_step: Any, expected_memory: int | None) -> None:
        self.ahead = preflight.steps_ahead()
        self.results: collections.deque = collections.deque()
        self.limit: int | None = None
        if expected_memory and host_memory.freed_pages_are_kept():
            self.limit = int(1.1 * expected_memory)
            self.temporaries = jax.local_device_count() * preflight.temporary_bytes(train_step)

    def begin(self) -> None:
        """Before a step."""
        if self.limit is not None:
            host_memory.make_room(self.temporaries)

    def keep(self, result: jax.Array) -> None:
        """Waits until no more than so many steps are under way; `result` is of the newest."""
        begin = time.perf_counter()
        self.results.append(result)
        if len(self.results) > self.ahead:
            self.results.popleft().block_until_ready()
        if not self.ahead:
            host_memory.let_go(time.perf_counter() - begin)
            if self.limit is not None:
                host_memory.stay_below(self.limit)

    def interrupted(self) -> None:
        """Something else took memory between two steps, or has given it back."""
        if self.limit is not None:
            host_memory.trim()


class Clock:
    """Images per second between two looks, and the share of that time without input.

    Evaluation does not count.
    """

    def __init__(self, batch_size: int, step: int):
        self.batch_size = batch_size
        self.restart(step)

    def restart(self, step: int) -> None:
        self.step, self.time, self.waited = step, time.perf_counter(), 0.0

    @contextlib.contextmanager
    def waiting(self) -> Generator[None, None, None]:
        """The loop waits for a batch inside of this."""
        begin = time.perf_counter()
        with profiling.phase(profiling.WAIT_FOR_INPUT):
            yield
        self.waited += time.perf_counter() - begin

    def read(self, step: int) -> dict[str, float]:
        """`train/images_per_second` and `train/input_wait_percent` since the last look."""
        seconds = time.perf_counter() - self.time
        images, waited = (step - self.step) * self.batch_size, self.waited
        self.restart(step)
        return {
            "train/images_per_second": images / seconds,
            "train/input_wait_percent": 100 * waited / seconds,
        }


def training_batches(
    setup: Setup, start_step: int, clock: Clock
) -> Generator[dict[str, jax.Array], None, None]:
    """Batches on the devices, two ahead of the step that uses them; `clock` sees who waits."""
    config = setup.config
    batches = data.train_batches(
        setup.train_source,
        setup.train_transform,
        batch_size=config.batch_size,
        seed=config.seed,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_threads=config.data.num_threads,
        num_workers=config.data.num_workers,
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
        raise UserError(
            f"The last {bad} gradients were not finite and their updates were skipped; lower "
            "config.schedule.learning_rate, or set config.gradient_clip_norm, and start again."
        )


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
    (workdir / "evaluation.json").write_text(json.dumps(content, indent=2) + "\n")


def say(text: str) -> None:
    """A line for the person who waits; one process speaks."""
    if jax.process_index() == 0:
        print(text, flush=True)
