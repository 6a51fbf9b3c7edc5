"""vit-jax inspect: look inside a checkpoint, with the paper's figures.

example:
  vit-jax inspect --checkpoint=/runs/pets --images=photos/ --out=inside
  vit-jax inspect --checkpoint=L16.npz --compare=L16_7ep.npz --out=inside

Draws embedding filters and position embeddings (Figures 7 and 10), attention distance (Figures 7
and 11), attention rollout (Figures 6 and 14), every head, and the most similar images, as PNG with
their data as .npz, and one self-contained page, index.html.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    absl_flags.DEFINE_list("images", [], "Image files and folders.", flag_values=flags)
    absl_flags.DEFINE_string("out", None, "Directory of the results.", flag_values=flags)
    absl_flags.DEFINE_list(
        "compare", [], "More checkpoints to draw position embeddings of.", flag_values=flags
    )
    absl_flags.DEFINE_bool(
        "occlusion", False, "Also occlude parts of every image (slow).", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "max_images", 16, "Maximum number of images.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not flags.out:
        raise UsageError("--out=DIR is required.")
    options.prepare_jax()
    from vit_jax.inspection.report import inspect

    page = inspect(
        checkpoint,
        flags.out,
        images=[*flags.images, *arguments],
        compare=flags.compare,
        occlusion=flags.occlusion,
        max_images=flags.max_images,
    )
    print(f"page: {page}")
