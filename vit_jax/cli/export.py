"""vit-jax export: a model for serving, verified by running the result in its own runtime.

example:
  vit-jax export --checkpoint=/runs/pets --format=onnx --out=pets.onnx
  vit-jax export --checkpoint=/runs/pets --format=openvino --out=pets.xml
  vit-jax export --checkpoint=/runs/pets --format=stablehlo --out=pets-stablehlo
  vit-jax export --checkpoint=/runs/pets --format=stablehlo --out=pets-int8 \\
      --int8 --data='folder:/data/pets[test]'
  vit-jax export --checkpoint=/runs/pets --layout=triton --out=models

Input: "images", float32 (batch, height, width, 3), pixels / 127.5 - 1, or with --uint8 the
pixels. Outputs: "logits", and with --features "pre_logits". The batch is dynamic unless
--batch_size is given. With --data, the accuracy before and after is measured too, on its
evaluation split unless it names one. With --layout, --out is the model repository of a server, and
the model becomes a folder in it (docs/weights.md).
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.cli import options, runtime
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    absl_flags.DEFINE_string(
        "format", None, "stablehlo, onnx, openvino or savedmodel.", flag_values=flags
    )
    absl_flags.DEFINE_string("out", None, "Path to write to.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "batch_size", 0, "A fixed batch size; 0: dynamic.", lower_bound=0, flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "int8", False, "The encoder's dense layers in 8 bits; not savedmodel.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "calibration",
        "",
        "Data set to calibrate the activations of --int8 (onnx, openvino), by 64 of its images.",
        flag_values=flags,
    )
    absl_flags.DEFINE_bool("features", False, "Also return pre_logits.", flag_values=flags)
    absl_flags.DEFINE_integer(
        "opset", 0, "ONNX opset, from 17; 0: 17, which most runtimes support.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "dtype", "float32", "float32 or float16 (onnx, openvino).", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "uint8", False, "Take pixels, 0 to 255 (onnx, openvino).", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data", None, "Data set to measure the accuracy on, before and after.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "layout",
        "",
        "Model repository of a server: triton (onnx) or openvino (openvino, onnx).",
        flag_values=flags,
    )
    absl_flags.DEFINE_string(
        "name",
        "",
        "Name of the model in the repository; by default the checkpoint's.",
        flag_values=flags,
    )
    options.define_tolerance(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not (flags.format or flags.layout) or not flags.out:
        raise UsageError("--format=FORMAT (or --layout=LAYOUT) and --out=PATH are required.")
    if flags.name and not flags.layout:
        raise UsageError("--name is for a model repository; give --layout too.")
    options.prepare_jax()
    from vit_jax import data
    from vit_jax.evaluation import classification
    from vit_jax.evaluation.data_sets import DataSets
    from vit_jax.interop import export, serving

    asked = {name: getattr(flags, name) for name in export.Options._fields}
    asked |= {"tolerance": flags.tolerance}
    if flags.data:
        asked["photos"] = data.evaluation_spec(flags.data)
        source = data.open_source(asked["photos"], labelled=True)  # before slow work
    file = flags.out
    if flags.layout:
        file, proof = serving.export_to(
            checkpoint, file, flags.layout, name=flags.name, form=flags.format or "", **asked
        )
    else:
        proof = export.export(checkpoint, file, flags.format, **asked)
    print(options.proof_text(file, proof))
    if flags.data:
        spec, batch_size = asked["photos"], flags.batch_size or 64
        scores = [
            classification.score(runtime.forward(model, batch_size), source, DataSets((spec,)))
            for model in (checkpoint, str(file))
        ]
        (name, before), (_, after) = scores
        print(f"{name} on {spec}: {before:.2%} before, {after:.2%} after")
