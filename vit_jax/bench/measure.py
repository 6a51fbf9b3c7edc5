"""Runs contenders in turn: starts processes, checks equal logits, measures, makes the table."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vit_jax import config as configuration, files, models
from vit_jax.bench import Row, peers
from vit_jax.bench.jobs import TASKS, Spec
from vit_jax.data.specs import open_splits
from vit_jax.errors import UserError, nearest

#: Tolerance of logits between contenders in one dtype, relative to the largest.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
WITH_MODELS = ("train", "inference", "latency")


class Contender:
    """A worker process, and its answers."""

    def __init__(self, name: str, spec: Spec):
        self.name, self.spec = name, spec
        environment = {
            **os.environ,
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # contenders share the device
            "TF_CPP_MIN_LOG_LEVEL": "3",
            "JAX_ENABLE_COMPILATION_CACHE": "false",  # compile_seconds are of compiling
        }
        if name == "tf.data":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        command = [sys.executable, "-m", "vit_jax.bench.worker", name, json.dumps(spec._asdict())]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if "VIT_JAX_BENCH_DEBUG" not in os.environ else None,
            text=True,
            env=environment,
        )
        self.seconds: list[list[float]] = []
        self.cpu_seconds: list[float] = []
        self.ready: Row = {}

    def answer(self) -> Row:
        """The next answer; a UserError if it is an error, or the process has ended."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = json.loads(line) if line else {"error": "its process ended"}
        if "error" in found:
            self.stop()
            raise UserError(f"{self.name}, {self.spec.task}: {found['error']}")
        return found

    def ask(self, **order: Any) -> Row:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        return self.answer()

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


class Options(NamedTuple):
    """The request of `vit-jax bench`."""

    variant: str
    image_size: int
    batch: int
    dtypes: tuple[str, ...]
    tasks: tuple[str, ...]
    peers: tuple[str, ...]
    rounds: int = 5
    seconds: float = 2.0
    num_classes: int = 1000
    model: tuple[tuple[str, str], ...] = ()
    data: str = ""


def bench(options: Options, say: Callable[[str], None] = print) -> list[Row]:
    """Measures every task in every dtype; one row per contender.

    A peer that cannot run is skipped with a note.

    Raises:
      UserError: no such task or peer, this package itself cannot run, or a peer's logits differ.
    """
    for task in options.tasks:
        if task not in TASKS:
            raise UserError(
                f"There is no task {task!r}; there are {', '.join(TASKS)}.{nearest(task, TASKS)}"
            )
    for name in options.peers:
        peers.find(name)
        if name in peers.SERVING and not any(
            name in contenders_of(options, task, dtype)
            for task in options.tasks
            for dtype in options.dtypes
        ):
            raise UserError(
                f"--peers={name} is a model for inference in float32; add --dtypes=float32 and "
                "--tasks=inference or latency."
            )
    check(options)
    rows = []
    with tempfile.TemporaryDirectory(prefix="vit_jax_bench_") as scratch:
        weights = write_weights(options, Path(scratch))
        for dtype in options.dtypes:
            machine = measure_machine(options, dtype)
            say(machine_text(machine, dtype))
            for number, task in enumerate(options.tasks):
                if number:  # another contender may have run before
                    ceiling = measure_machine(options, dtype)["matmul"]
                    machine["matmul"] = max(machine["matmul"], ceiling)
                found = run_task(options, task, dtype, weights, machine, Path(scratch), say)
                rows += found
                say(table(found))
    return rows


def check(options: Options) -> None:
    """Raises UserError for a model or data that do not exist, before the machine is measured."""
    if set(options.tasks) - {"input"}:
        config = models.get_config(
            options.variant, image_size=options.image_size, num_classes=options.num_classes
        )
        settings = {key: configuration.literal(text) for key, text in options.model}
        models.override(config, **settings)
    if options.data:
        open_splits(options.data)


def write_weights(options: Options, scratch: Path) -> dict[str, str]:
    """One random model with a random head, in the format of every contender."""
    wanted = {name: peers.FORMATS.get(name, "native") for name in ("vit_jax", *options.peers)}
    if not any(task in WITH_MODELS for task in options.tasks):
        return {}
    formats = [(form, file_name(form)) for form in sorted(set(wanted.values()) - {"native"})]
    arguments = [str(scratch), options.variant, options.image_size, options.num_classes, formats]
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax.bench.worker", "weights", json.dumps(arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        reason = (
            lines[-1].removeprefix("vit_jax.errors.UserError: ") if lines else "no reason given"
        )
        raise UserError(f"The weights of the comparison could not be written: {reason}")
    return {name: str(scratch / file_name(form)) for name, form in wanted.items()}


def file_name(form: str) -> str:
    return {"onnx": "model.onnx", "openvino": "model.xml"}.get(form, form)


def measure_machine(options: Options, dtype: str) -> Row:
    """Peak rates of the machine; MFU is relative to its fastest product."""
    worker = Contender("machine", spec_of(options, "inference", dtype, {}, "vit_jax"))
    try:
        found = worker.answer()
        found["matmul"] = max(found["matmul"], *found.get("products", {}).values(), 0.0)
        return found
    finally:
        worker.stop()


def spec_of(options: Options, task: str, dtype: str, weights: dict[str, str], name: str) -> Spec:
    return Spec(
        task=task,
        variant=options.variant,
        image_size=options.image_size,
        batch=1 if task == "latency" else options.batch,
        dtype=dtype,
        weights=weights.get(name, "") if task in WITH_MODELS else "",
        num_classes=options.num_classes,
        options=options.model if name == "vit_jax" else (),
        data=options.data,
    )


def contenders_of(options: Options, task: str, dtype: str) -> list[str]:
    if task in WITH_MODELS:
        names = [name for name in options.peers if name != "tf.data"]
        rounds = () if task == "train" else peers.ROUNDS_PRODUCTS if dtype == "bfloat16" else names
        names = [name for name in names if name not in peers.SERVING or name in rounds]
        return ["vit_jax", *names]
    if task == "input":
        return ["vit_jax", "decode", *(name for name in options.peers if name == "tf.data")]
    return ["vit_jax"]


def run_task(
    options: Options,
    task: str,
    dtype: str,
    weights: dict[str, str],
    machine: Row,
    scratch: Path,
    say: Callable[[str], None],
) -> list[Row]:
    """One task in one dtype: all contenders in turn."""
    running: list[Contender] = []
    try:
        for name in contenders_of(options, task, dtype):
            worker = Contender(name, spec_of(options, task, dtype, weights, name))
            try:
                worker.ready = worker.answer()
            except UserError as error:
                if name == "vit_jax":
                    raise
                say(f"  skipped: {error}")
                continue
            running.append(worker)
        if task in WITH_MODELS and len(running) > 1:
            prove_equal(running, options, dtype, scratch)
        for worker in running:
            worker.ready |= worker.ask(warm=True)
        for _ in range(options.rounds):
            for worker in running:
                found = worker.ask(round=options.seconds)
                worker.seconds.append(found["seconds"])
                worker.cpu_seconds.append(found["cpu_seconds"])
        return [row(worker, machine) for worker in running]
    finally:
        for worker in running:
            worker.stop()


def prove_equal(running: Sequence[Contender], options: Options, dtype: str, scratch: Path) -> None:
    """Raises UserError unless all contenders give the same logits."""
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (2, options.image_size, options.image_size, 3)).astype(np.float32)
    np.save(scratch / "images.npy", images)
    found = {}
    for worker in running:
        out = scratch / "logits.npy"
        worker.ask(logits=str(scratch / "images.npy"), out=str(out))
        found[worker.name] = np.load(out)
    ours = found.pop("vit_jax")
    for name, theirs in found.items():
        difference = float(np.abs(theirs - ours).max() / np.abs(ours).max())
        if not difference <= TOLERANCE[dtype]:
            raise UserError(
                f"{name} gives other logits: they differ by {difference:.2g} of the largest in "
                f"{dtype}, more than {TOLERANCE[dtype]:.0e}."
            )


def row(worker: Contender, machine: Row) -> Row:
    """The entry of one contender in `--json`; seconds are medians over the rounds."""
    spec = worker.spec
    medians = [statistics.median(seconds) for seconds in worker.seconds]
    seconds = statistics.median(medians)
    every = sorted(second for seconds in worker.seconds for second in seconds)
    images = worker.ready["images"]
    flops = worker.ready["flops"] or ours_flops(spec)
    found = {
        "contender": worker.name,
        "task": spec.task,
        "variant": spec.variant,
        "image_size": spec.image_size,
        "batch": spec.batch,
        "dtype": spec.dtype,
        "images_per_second": images / seconds if images else None,
        "peak_memory_bytes": worker.ask(quit=True)["peak"],
        "compile_seconds": max(0.0, worker.ready["first"] - seconds),
        "mfu": flops / seconds / machine["matmul"] if flops else None,
        "milliseconds": 1e3 * seconds,
        "milliseconds_p50": 1e3 * every[len(every) // 2],
        "milliseconds_p99": 1e3 * every[min(len(every) - 1, int(0.99 * len(every)))],
        "cpu_milliseconds": 1e3 * statistics.median(worker.cpu_seconds),
        "start_seconds": worker.ready["build"] + worker.ready["first"],
        "rounds": [1e3 * median for median in medians],
        "device": machine["device"],
        "matmul_flops_per_second": machine["matmul"],
    }
    return found


def ours_flops(spec: Spec) -> float:
    """FLOPs of a step for a peer that does not count them: those of the same model."""
    if spec.task not in WITH_MODELS:
        return 0.0
    from vit_jax.models import cost

    config = models.get_config(
        spec.variant, image_size=spec.image_size, num_classes=spec.num_classes
    )
    return (6 if spec.task == "train" else 2) * cost.forward_macs(config) * spec.batch


def machine_text(machine: Row, dtype: str) -> str:
    products = "".join(
        f", {name} {100 * rate / machine['matmul']:.0f}%"
        for name, rate in machine.get("products", {}).items()
    )
    return (
        f"{machine['device']}: {machine['matmul'] / 1e12:.3g} TFLOP/s in {dtype} products"
        f"{products}; copy {machine['copy'] / 1e9:.3g} GB/s"
    )


def table(rows: Sequence[Row]) -> str:
    """The rows of one task, aligned, each beside this package's."""
    if not rows:
        return ""
    first = rows[0]
    lines = [
        f"{first['task']}, {first['variant']} at {first['image_size']}, batch {first['batch']}, "
        f"{first['dtype']}"
    ]
    for found in rows:
        speed = found["images_per_second"]
        said = f"{speed:9.1f} images/s" if speed else " " * 18
        share = f"  {found['milliseconds'] / first['milliseconds']:5.2f} of our time"
        mfu = f"  MFU {100 * found['mfu']:3.0f}%" if found["mfu"] else ""
        lines.append(
            f"  {found['contender']:<14}{said}  {found['milliseconds']:9.2f} ms{share}{mfu}"
            f"  peak {found['peak_memory_bytes'] / 2**30:.2f} GiB{details(found)}"
        )
    return "\n".join(lines)


def details(found: Row) -> str:
    """Details specific to one task."""
    if found["task"] == "input":
        per_image = found["cpu_milliseconds"] / found["batch"]
        return f"  CPU {per_image:.3f} ms an image, {1e3 / per_image:.0f} images/s a core"
    text = f"  compile {found['compile_seconds']:.1f} s, start {found['start_seconds']:.1f} s"
    if found["task"] == "latency":
        text += f"  p50 {found['milliseconds_p50']:.2f}, p99 {found['milliseconds_p99']:.2f} ms"
    return text


def plot(rows: Sequence[Row], file: Path) -> None:
    """Images per second as bars, a panel for each task and dtype."""
    from vit_jax.pages.figures import new_figure

    panels: dict[tuple[str, str], list[Row]] = {}
    for found in rows:
        if found["images_per_second"]:
            panels.setdefault((found["task"], found["dtype"]), []).append(found)
    if not panels:
        raise UserError("No task of this benchmark has images to plot.")
    figure, axes = new_figure(1, len(panels), 3.2 * len(panels) + 0.5, 3.6)
    for cell, ((task, dtype), group) in zip(axes.flat, panels.items(), strict=True):
        names = [found["contender"] for found in group]
        speeds = [found["images_per_second"] for found in group]
        colours = ["#2b6cb0" if name == "vit_jax" else "#a0aec0" for name in names]
        bars = cell.bar(names, speeds, color=colours)
        cell.bar_label(bars, fmt="%.3g")
        cell.margins(y=0.12)
        cell.set_title(f"{task}, {dtype}", fontsize=10)
        cell.tick_params(axis="x", rotation=30)
        cell.set_ylabel("images/s")
    figure.suptitle(f"{rows[0]['variant']} at {rows[0]['image_size']}, {rows[0]['device']}")
    with files.replacing(file) as partial:
        figure.savefig(partial, dpi=130, format="png")
