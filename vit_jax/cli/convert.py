"""vit-jax convert: weights to another format, verified by running the result.

example:
  vit-jax convert ViT-B_16.npz pets-hf --to=huggingface
  vit-jax convert /runs/pets pets.npz --to=npz
  vit-jax convert hf:google/vit-base-patch16-384 mine --to=native
  vit-jax convert /runs/pets hf:ORG/pets --to=huggingface --license=apache-2.0

SOURCE is any supported checkpoint. --to is native, npz, huggingface or timm. The result is run by
its own library (transformers, timm) and refused if a logit differs by more than --tolerance. With
--to=huggingface, TARGET may be a new or empty repository of the hub, hf:ORG/NAME.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string(
        "to", None, "Format: native, npz, huggingface or timm.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "data", "", "Data set for the comparison, instead of two photographs.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "license",
        *("", "Licence in the model card, such as apache-2.0; with --to=huggingface."),
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        "private", False, "Create the hub repository as private.", flag_values=flags
    )
    options.define_tolerance(flags)
    options.define_verify(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError("give a source and a target: vit-jax convert SOURCE TARGET --to=FORMAT.")
    if not flags.to:
        raise UsageError("--to=FORMAT is required.")
    source, target = arguments
    options.prepare_jax()
    from vit_jax.interop import convert

    proof = convert.convert(
        source,
        target,
        flags.to,
        tolerance=flags.tolerance,
        photos=flags.data,
        licence=flags.license,
        private=flags.private,
    )
    print(options.proof_text(target, proof))
