"""`--runtime`, and the model that a command evaluates: a checkpoint, or an exported file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from absl import flags as absl_flags

from vit_jax.errors import UsageError

if TYPE_CHECKING:
    from vit_jax.evaluation.forward import Forward


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_enum(
        "runtime",
        None,
        ["onnxruntime", "openvino", "openvino-bfloat16"],
        "What runs an exported file, by default its own: onnxruntime (.onnx), or openvino (.xml, "
        ".onnx), with 16-bit products as openvino-bfloat16.",
        flag_values=flags,
    )


def check(checkpoint: str, runtime: str | None) -> None:
    """Raises UsageError if a runtime is named for what is no exported file."""
    from vit_jax.interop import export

    if runtime and not export.is_exported(checkpoint):
        raise UsageError(f"--runtime={runtime} is for exported files, not {checkpoint}.")


def forward(checkpoint: str, batch_size: int, runtime: str | None = None) -> Forward:
    """The model for evaluators: a checkpoint on all devices, or an export by its runtime."""
    from vit_jax.evaluation import forward as forwards
    from vit_jax.interop import export, load
    from vit_jax.runtime import sharding

    mesh = sharding.make_mesh()
    if not export.is_exported(checkpoint):
        config, params = load.read(checkpoint)
        return forwards.of_model(config, params, mesh, batch_size=batch_size)
    found = export.open_exported(checkpoint, runtime)
    return forwards.of_function(
        found.run,
        mesh,
        name=checkpoint,
        image_size=found.image_size,
        channels=found.channels,
        labels=found.labels,
        preprocessing=found.preprocessing,
        multilabel=found.multilabel,
        variant=found.variant,
        thresholds=found.thresholds,
        batch_size=batch_size,
    )
