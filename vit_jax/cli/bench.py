"""vit-jax bench: how fast this machine trains and serves a model, beside other implementations.

example:
  vit-jax bench --variant=B/16 --batch=8
  vit-jax bench --variant=L/16 --batch=256 --dtypes=bfloat16 --tasks=train,inference \\
      --peers=timm,timm-compile --json=bench.json --plot=bench.png
  vit-jax bench --tasks=input --batch=64 --data=folder:/data/photos[train]

Tasks: train, inference, latency (batch 1), attention (alone), input (JPEG files to batches),
checkpoint (how long a save holds up the training). Peers are timm, timm-compile, transformers and
tf.data, by default those that are installed; stablehlo, onnx and savedmodel, the exported model
(inference in float32); and MODULE:FUNCTION, a function that takes a Spec and returns a Job as those
of vit_jax.bench.jobs. Contenders have the same weights, must give
the same logits, and take turns; medians count. MFU is a share of the FLOP/s of a large product that
is measured first.
"""

from __future__ import annotations

import json
from pathlib import Path

from absl import flags as absl_flags

from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("variant", "B/16", "Model.", flag_values=flags)
    absl_flags.DEFINE_integer("image_size", 224, "Pixels.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_integer("batch", 8, "Images of a step.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_list("dtypes", ["bfloat16"], "float32, bfloat16.", flag_values=flags)
    absl_flags.DEFINE_list(
        "tasks", ["train", "inference", "latency", "input"], "Tasks.", flag_values=flags
    )
    absl_flags.DEFINE_list(
        "peers", None, "Others to compare with; --peers= is none.", flag_values=flags
    )
    absl_flags.DEFINE_integer("rounds", 5, "Turns.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_float(
        "seconds", 2.0, "Of one turn, at the least.", lower_bound=0.0, flag_values=flags
    )
    absl_flags.DEFINE_integer("num_classes", 1000, "Classes.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_multi_string(
        "model", [], "KEY=VALUE, a field of the model, e.g. scan=True.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data", None, "Data spec of JPEG files for the task input.", flag_values=flags
    )
    absl_flags.DEFINE_string("json", None, "File for the rows.", flag_values=flags)
    absl_flags.DEFINE_string("plot", None, "PNG file for the bars.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    for dtype in flags.dtypes:
        if dtype not in ("float32", "bfloat16"):
            raise UsageError(f"--dtypes={dtype} must be float32 or bfloat16.")
    model = [tuple(item.split("=", 1)) for item in flags.model]
    if any(len(pair) != 2 for pair in model):
        raise UsageError("--model takes KEY=VALUE.")
    for file in filter(None, (flags.json, flags.plot)):
        if not Path(file).absolute().parent.is_dir():
            raise UsageError(f"{file}: there is no such directory.")

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
        Path(flags.json).write_text(json.dumps(rows, indent=2) + "\n")
    if flags.plot:
        measure.plot(rows, Path(flags.plot))
