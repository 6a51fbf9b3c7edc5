"""vit-jax bench: how fast this machine trains and serves a model, beside other implementations.

example:
  vit-jax bench --variant=B/16 --batch=8
  vit-jax bench --variant=L/16 --batch=256 --dtypes=bfloat16 \\
      --tasks=train,inference --peers=timm,timm-compile --json=bench.json \\
      --plot=bench.png
  vit-jax bench --tasks=input --batch=64 --data=folder:/data/photos[train]
  vit-jax bench --compile_for=v5e,v6e --variant=B/16 --batch=128 \\
      --tasks=train --json=tpu.json
  vit-jax bench --compile_for=v5e:4x4 --mesh.fsdp=4 --variant=L/16 \\
      --batch=64 --tasks=train

Tasks: train, inference, latency (batch 1), attention (alone), input (JPEG files to batches),
checkpoint (how long a save blocks training). Peers are timm, timm-compile, transformers and
tf.data, by default those that are installed; stablehlo, onnx and savedmodel, the exported model
(inference in float32); and MODULE:FUNCTION, a function that takes a Spec and returns a Job as in
vit_jax.bench.jobs. Contenders have the same weights, must give the same logits, and take turns;
medians count. MFU is relative to the FLOP/s of a large product, which is measured first.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from vit_jax import files
from vit_jax.errors import UsageError

#: Axes of `config.mesh`.
MESH = {"data": -1, "fsdp": 1, "tensor": 1}
#: Flags without meaning for a program that is compiled but not run, and vice versa.
OF_RUNS = ("rounds", "seconds", "plot", "data")
OF_COMPILER = ("dump", *(f"mesh.{axis}" for axis in MESH))


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("variant", "B/16", "Model.", flag_values=flags)
    absl_flags.DEFINE_integer("image_size", 224, "Pixels.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("batch", 8, "Images per step.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_list("dtypes", ["bfloat16"], "float32, bfloat16.", flag_values=flags)
    absl_flags.DEFINE_list(
        "tasks", ["train", "inference", "latency", "input"], "Tasks.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "peers", None, "Contenders to compare with; --peers= for none.", flag_values=flags
    )
    absl_flags.DEFINE_integer("rounds", 5, "Turns.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_float(
        "seconds", 2.0, "Minimum seconds of one turn.", lower_bound=0.0, flag_values=flags
    )
    absl_flags.DEFINE_integer("num_classes", 1000, "Classes.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "model", [], "KEY=VALUE, a field of the model, e.g. scan=True.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data", None, "Data spec of JPEG files for the task input.", flag_values=flags
    )
    absl_flags.DEFINE_string("json", None, "New file for the rows.", flag_values=flags)
    absl_flags.DEFINE_string("plot", None, "New PNG file for the bars.", flag_values=flags)
    absl_flags.DEFINE_list(
        "compile_for",
        None,
        "CHIP or CHIP:TOPOLOGY, e.g. v5e or v5e:4x4: what the compiler estimates for TPUs.",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "dump", None, "Directory for the HLO text and the kernels' schedules.", flag_values=flags
    )
    for axis, size in MESH.items():
        absl_flags.DEFINE_integer(
            f"mesh.{axis}", size, f"config.mesh.{axis}, for a topology.", flag_values=flags
        )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    for name in ("dtypes", "tasks"):
        if not flags[name].value:
            raise UsageError(f"--{name}= is empty.")
    for dtype in flags.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"--dtypes={dtype} must be float32 or bfloat16.")
    model = [tuple(item.split("=", 1)) for item in flags.model]
    if any(len(pair) != 2 for pair in model):
        raise UsageError("--model takes KEY=VALUE.")
    for file in filter(None, (flags.json, flags.plot)):
        if not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{file}: its directory does not exist.")
        if Path(file).is_dir():
            raise UsageError(f"{file} is a directory; give a file.")
        files.check_new(Path(file))
    if flags.plot and Path(flags.plot).suffix != ".png":
        raise UsageError(f"--plot={flags.plot} must end in .png.")
    if flags.compile_for is not None:
        compile_for(flags, model)
        return
    if flags.data and "input" not in flags.tasks:
        raise UsageError("--data is for --tasks=input.")
    for name in OF_COMPILER:
        if flags[name].present:
            raise UsageError(f"--{name} needs --compile_for=CHIP.")

    from vit_jax.bench import measure, peers

    options = measure.Options(
        variant=flags.variant,
        image_size=flags.image_size,
        batch=flags.batch,
        dtypes=tuple(flags.dtypes),
        tasks=tuple(flags.tasks),
        peers=tuple(peers.installed() if flags.peers is None else filter(None, flags.peers)),
        rounds=flags.rounds,
        seconds=flags.seconds,
        num_classes=flags.num_classes,
        model=tuple(model),
        data=flags.data or "",
    )
    rows = measure.bench(options)
    if flags.json:
        files.write_json(Path(flags.json), rows)
    if flags.plot:
        measure.plot(rows, Path(flags.plot))


def compile_for(flags: absl_flags.FlagValues, model: list[tuple[str, ...]]) -> None:
    """Estimates of libtpu's compiler for the tasks on each chip."""
    for name in OF_RUNS:
        if flags[name].present:
            raise UsageError(f"--{name} has no meaning with --compile_for: nothing runs.")
    if flags.dump and not Path(flags.dump).absolute().parent.is_dir():
        raise UsageError(f"--dump={flags.dump}: its parent directory does not exist.")

    from vit_jax.bench import tpu

    tasks = flags.tasks if flags["tasks"].present else list(tpu.TASKS)
    for task in tasks:
        if task not in tpu.TASKS:
            raise UsageError(
                f"--tasks={task} has no meaning with --compile_for; {' and '.join(tpu.TASKS)} have."
            )
    peers = [tuple(name.partition("=")[::2]) for name in flags.peers or [] if name]
    for name, checkout in peers:
        if name not in tpu.PEERS:
            raise UsageError(
                f"--peers={name} has no meaning with --compile_for; {' and '.join(tpu.PEERS)} have."
            )
        if not Path(checkout).is_dir() or not checkout:
            raise UsageError(
                f"--peers={name} needs a checkout: --peers={name}=DIRECTORY. Without it, known "
                "estimates of others are printed beside a row."
            )
    mesh = tuple((axis, getattr(flags, f"mesh.{axis}")) for axis in MESH)
    targets = tpu.targets([name for name in flags.compile_for if name])
    if not targets:
        raise UsageError(f"--compile_for takes {', '.join(tpu.CHIPS)}.")
    for _, topology in targets:
        if not topology and mesh != tuple(MESH.items()):
            raise UsageError("--mesh.AXIS needs several chips: --compile_for=CHIP:TOPOLOGY.")
    requests = [
        tpu.Request(
            chip=chip,
            topology=topology,
            task=task,
            variant=flags.variant,
            image_size=flags.image_size,
            batch=flags.batch,
            dtype=dtype,
            num_classes=flags.num_classes,
            options=tuple((key, value) for key, value in model),
            mesh=mesh,
        )
        for chip, topology in targets
        for dtype in flags.dtypes
        for task in tasks
    ]
    rows = tpu.bench(requests, peers=peers, dump=Path(flags.dump) if flags.dump else None)
    if flags.json:
        files.write_json(Path(flags.json), rows)
