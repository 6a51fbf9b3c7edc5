"""vit-jax predict: the most likely classes of images.

example:
  vit-jax predict --checkpoint=/runs/pets cat.jpg photos/
  find . -name '*.jpg' | vit-jax predict --checkpoint=/runs/pets --json -

Arguments are image files, folders (searched for images), or - for a list of paths on standard
input, one a line.
"""

from __future__ import annotations

import json
import sys

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    absl_flags.DEFINE_integer("top_k", 5, "How many classes.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "One JSON object per image.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not arguments:
        raise UsageError("name images, folders, or - for a list on standard input.")
    paths: list[str] = []
    for word in arguments:
        paths += sys.stdin.read().splitlines() if word == "-" else [word]
    options.prepare_jax()
    from vit_jax.evaluation.predict import find_images, predict
    from vit_jax.interop import load

    files = find_images(paths)
    for result in predict(*load.read(checkpoint), files, top_k=flags.top_k):
        if flags.json:
            print(json.dumps(result))
            continue
        print(result["image"])
        for row in result["predictions"]:
            print(f"  {100 * row['probability']:6.2f}%  {row['class']}")
