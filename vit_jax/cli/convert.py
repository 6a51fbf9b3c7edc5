"""vit-jax convert: the same weights in another format, proved by running the result.

example:
  vit-jax convert ViT-B_16.npz pets-hf --to=huggingface
  vit-jax convert /runs/pets pets.npz --to=npz
  vit-jax convert hf:google/vit-base-patch16-384 mine --to=native
  vit-jax convert /runs/pets hf:ORG/pets --to=huggingface --license=apache-2.0

SOURCE is any checkpoint that is understood. --to is native, npz, huggingface or timm. The result is
run by its own runtime (transformers, timm) and refused if a logit differs by more than --tolerance.
Of --to=huggingface, TARGET may be a new or empty repository of the hub, hf:ORG/NAME.
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
        "data", "", "A data set to compare on, instead of two photographs.", flag_values=flags
    )
    absl_flags.DEFINE_string(
        "license",
        *("", "What the model card states, such as apache-2.0; of --to=huggingface."),
        flag_values=flags,
    )
    absl_flags.DEFINE_boolean(
        "private", False, "A new repository of the hub is private.", flag_values=flags
    )
    options.define_tolerance(flags)
    options.define_verify(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 2:
        raise UsageError("name a source and a target: vit-jax convert SOURCE TARGET --to=FORMAT.")
    if not flags.to:
        raise UsageError("--to=FORMAT is needed.")
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
