"""vit-jax features: write an intermediate of the model for every image of a data set.

example:
  vit-jax features --checkpoint=ViT-B_16.npz \\
      --data='folder:/data/pets[train]' --out=train.npy
  vit-jax features --checkpoint=ViT-B_16.npz --data=digits --layer=block_5 \\
      --pool=mean --out=features.parquet

--layer is pre_logits (the features of the paper's few-shot evaluation), pooled, encoded, block_0
..., stage_1 ... of a ResNet, or logits; for an export logits and, if it was exported with
--features, pre_logits. The rows are in the order of the data set; .npy files have their labels
beside them (NAME.labels.npy), .parquet has the columns name, label and features. A withheld label
is -1. The row of an unreadable image is NaN, its label -1; the exit code is then 1.
"""

from __future__ import annotations

import sys

from absl import flags as absl_flags

from vit_jax.cli import options, runtime
from vit_jax.errors import UsageError, UserError, printable


def define(flags: absl_flags.FlagValues) -> None:
    options.define_checkpoint(flags)
    runtime.define(flags)
    options.define_images(flags)
    options.define_data(flags)
    absl_flags.DEFINE_string("out", None, "A .npy or .parquet file.", flag_values=flags)
    absl_flags.DEFINE_string("layer", "pre_logits", "Which intermediate.", flag_values=flags)
    absl_flags.DEFINE_string(
        "pool", "none", "Pooling of token sequences: none, mean or token.", flag_values=flags
    )
    absl_flags.DEFINE_integer("batch_size", 64, "Batch size.", lower_bound=1, flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    checkpoint = options.checkpoint(flags)
    if not flags.data or not flags.out:
        raise UsageError("--data=SPEC and --out=FILE are required.")
    options.prepare_jax()
    options.allow_images(flags)
    runtime.check(checkpoint, flags.runtime)
    from vit_jax import data
    from vit_jax.evaluation import features
    from vit_jax.interop import export, load

    features.check(flags.out)
    source = data.open_source(flags.data, data_dir=flags.data_dir)
    for note in source.notes:
        print(printable(note))
    bad: list[str] = []
    if export.is_exported(checkpoint):
        if flags.pool != "none":
            raise UsageError(f"--pool={flags.pool} is for tokens, which an export does not return.")
        forward = runtime.forward(checkpoint, flags.batch_size, flags.runtime)
        found = features.of_forward(forward, source, layer=flags.layer, on_bad=bad.append)
    else:
        found = features.batches_of_features(
            *load.read(checkpoint),
            source,
            layer=flags.layer,
            pool=flags.pool,
            batch_size=flags.batch_size,
            on_bad=bad.append,
        )
    names = source.names()
    with options.progress(len(source), "features") as on_batch:
        shape = features.write(flags.out, found, names, on_batch=on_batch)
    print(f"{flags.out}: {' x '.join(map(str, shape))} {flags.layer}")
    for problem in bad:
        print(f"vit-jax: {problem}", file=sys.stderr)
    if bad:
        raise UserError(
            f"{len(bad)} of {len(source)} images could not be read: their rows are NaN, label -1."
        )
