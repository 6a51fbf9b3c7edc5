"""vit-jax predict: the most likely classes of images.

example:
  vit-jax predict --checkpoint=/runs/pets cat.jpg photos/
  find . -name '*.jpg' | vit-jax predict --checkpoint=/runs/pets --json -
  vit-jax predict --checkpoint=pets.onnx --runtime=openvino cat.jpg
  vit-jax predict --checkpoint=/runs/pets --out=photos.csv photos/ \\
      https://example.org/cat.jpg

For multi-label models each class has an independent probability, and those that reach the model's
threshold are marked with *. `vit-jax evaluate --threshold=... --save_threshold` chooses it; the
default is 0.5.

Arguments are image files, http(s) URLs of images, folders (searched recursively, sorted), or - for
a list of these on standard input, one per line. An unreadable image is named ({"image", "error"}
with --json) and the rest is classified; the exit code is then 1. --out writes a new table, .csv or
.parquet, with a row per image, or its error.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options, runtime
from vit_jax.errors import UsageError, UserError, printable


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    runtime.define(flags)
    options.define_images(flags)
    absl_flags.DEFINE_integer("top_k", 5, "Number of classes.", lower_bound=1, flag_values=flags)
    absl_flags.DEFINE_bool("json", False, "One JSON object per image.", flag_values=flags)
    absl_flags.DEFINE_string(
        "out", None, "A new .csv or .parquet file, instead of printing.", flag_values=flags
    )
    absl_flags.DEFINE_integer(
        "max_bytes",
        50 * 2**20,
        "Maximum size of an image at a URL.",
        lower_bound=1,
        flag_values=flags,
    )
    absl_flags.DEFINE_float(
        "timeout", 30.0, "Seconds for an image at a URL.", lower_bound=0.1, flag_values=flags
    )


def listed() -> list[str]:
    """The lines of standard input; names of files need not be UTF-8."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")
    return [line for line in sys.stdin.read().split("\n") if line.strip()]


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not arguments:
        raise UsageError("give images, folders, or - for a list on standard input.")
    paths: list[str] = []
    for word in arguments:
        paths += listed() if word == "-" else [word]
    if not paths:
        raise UsageError("the list of images on standard input is empty.")
    if flags.out and flags.json:
        raise UsageError("--json prints and --out writes; give one of them.")
    out = Path(flags.out) if flags.out else None
    options.prepare_jax()
    options.allow_images(flags)
    runtime.check(checkpoint, flags.runtime)
    from vit_jax.data.web_images import Limits
    from vit_jax.evaluation import per_image
    from vit_jax.evaluation.predict import BATCH_SIZE, find_images, predict, table

    if out:
        per_image.check(out)
    files = find_images(paths)
    bad = 0
    forward = runtime.forward(checkpoint, BATCH_SIZE, flags.runtime)
    if out:
        per_image.check(out, forward.labels, several=forward.multilabel)
    if forward.multilabel and not forward.thresholds:
        print("no threshold was chosen for this model: using 0.5", file=sys.stderr)
    if forward.temperature:
        print(
            f"probabilities at the model's temperature, {forward.temperature:.4g}", file=sys.stderr
        )
    found = predict(
        forward, files, top_k=flags.top_k, limits=Limits(flags.max_bytes, flags.timeout)
    )
    kept: list[dict] = []
    for result in found:
        if "error" in result:
            bad += 1
            print(f"vit-jax: {result['error']}", file=sys.stderr)
        if out:
            kept.append(result)
        elif flags.json:
            print(json.dumps(result))
        elif "predictions" in result:
            print(result["image"])
            for row in result["predictions"]:
                mark = "* " if row.get("chosen") else "  " if forward.multilabel else ""
                print(f"  {100 * row['probability']:6.2f}%  {mark}{printable(row['class'])}")
    if out:
        top_k = min(flags.top_k, forward.num_classes)
        per_image.write(out, table(kept, top_k, forward.multilabel))
        print(f"{len(kept):,} images in {out}")
    if bad:
        raise UserError(f"{bad} of {len(files)} images could not be read; they are named above.")
