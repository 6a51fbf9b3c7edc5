"""vit-jax dedup: find training images that repeat test images, to leave out of pre-training.

example:
  vit-jax dedup --train='folder:/data/web[train]' \\
      --test='folder:/data/pets[test],digits[test]' --out=repeats
  vit-jax train --config=configs/pretrain.py:B/16,folder:/data/web \\
      --workdir=/runs/web --config.data.exclude=repeats/ids.txt

Finds identical pixels, and crops of 80% or more, mirrored, resized and recompressed images. Writes
ids.txt (for config.data.exclude), matches.csv and index.html, a page of pairs to judge the
threshold by. Give --train as in training, split included: ids are names of its records.

Run the same command again to resume a search. To share it among machines, use --shard=1/4 to
--shard=4/4 with the same --out, then `vit-jax dedup --merge --out=repeats`. To change the
threshold, remove the three files and merge again with --threshold. --checkpoint compares features
of a model instead, by cosine; the right --threshold depends on the model and is then required.
"""

from __future__ import annotations

import copy
import re
from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, UserError
from vit_jax.files import check_directory


def define(flags: absl_flags.FlagValues) -> None:
    for name, text in (
        ("train", "Data set to clean, e.g. folder:PATH[train]."),
        ("test", "Test sets, separated by commas."),
        ("data_dir", "Directory of TFDS data sets."),
        ("out", "Directory of the results."),
        ("shard", "I/N: only this part of the training images."),
    ):
        absl_flags.DEFINE_string(name, None, text, flag_values=flags)
    absl_flags.DEFINE_bool("merge", False, "Merge the shards in --out.", flag_values=flags)
    absl_flags.DEFINE_float(
        "threshold",
        None,
        "Minimum score of a duplicate; 0.75 by default.",
        lower_bound=0.0,
        upper_bound=1.0,
        flag_values=flags,
    )
    options.define_checkpoint(flags)
    absl_flags.DEFINE_integer(
        "batch_size", 64, "Batch size, with --checkpoint.", lower_bound=1, flag_values=flags
    )


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if not flags.out:
        raise UsageError("--out=DIR is required.")
    out = Path(flags.out)
    check_directory(out)
    if flags["batch_size"].present and not flags.checkpoint:
        raise UsageError("--batch_size is for --checkpoint.")
    if flags.merge:
        for name in ("train", "test", "shard", "checkpoint", "data_dir"):
            if flags[name].value is not None:
                raise UsageError(f"--merge takes its --{name} from the shards; leave it out.")
        finish(out, flags.threshold)
        return
    if not flags.train or not flags.test:
        raise UsageError("--train=SPEC and --test=SPEC are required.")
    if flags.checkpoint and flags.threshold is None:
        raise UsageError("--checkpoint needs --threshold, the minimum cosine of a duplicate.")
    search(flags, out, *parse_shard(flags.shard or "1/1"))
    if not flags.shard:
        finish(out, None, again=True)


def parse_shard(text: str) -> tuple[int, int]:
    """ "2/4" as (1, 4)."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard={text} is not I/N with I from 1 to N, e.g. 1/4.")
    return int(match[1]) - 1, int(match[2])


def search(flags: absl_flags.FlagValues, out: Path, shard: int, shards: int) -> None:
    """Searches one shard and writes its pairs."""
    from vit_jax import data
    from vit_jax.data.specs import split_specs
    from vit_jax.dedup import files, search

    file = files.shard_file(out, shard, shards)
    train = data.open_source(flags.train, data_dir=flags.data_dir)
    specs = split_specs(flags.test)
    test, _ = files.open_tests(specs, flags.data_dir)
    if train.fingerprint in files.fingerprints(test):
        raise UserError(
            f"{train.spec} is both a test set and the training set; give different splits."
        )
    threshold = search.THRESHOLD if flags.threshold is None else flags.threshold
    floor = max(0.0, threshold - (search.THRESHOLD - search.FLOOR))
    settings: search.Settings = {
        "train": flags.train,
        "test": list(specs),
        "data_dir": flags.data_dir,
        "train_fingerprint": train.fingerprint,
        "test_fingerprint": test.fingerprint,
        "descriptor": flags.checkpoint or "correlation of details after alignment",
        "threshold": threshold,
        "floor": floor,
    }
    if files.is_searched(file, settings):
        print(f"{file}: searched already")
        return
    if files.is_done(out):
        raise UserError(f"{out} has the results of another search; use another --out.")
    embed = model_features(flags) if flags.checkpoint else None
    total = len(test) + search.shard_size(len(train), shard, shards)
    with options.progress(total, "dedup") as on_images:
        pairs = search.find(
            train,
            test,
            shard=shard,
            shards=shards,
            embed=embed,
            floor=floor,
            on_images=on_images,
        )
    files.write_shard(file, settings, pairs)
    print(f"{file}: {len(pairs):,} pairs with a score of {floor:g} or more")


def model_features(flags: absl_flags.FlagValues):
    """The checkpoint's features, as `search.find` takes them."""
    options.prepare_jax()
    from vit_jax import data
    from vit_jax.evaluation import features
    from vit_jax.interop import load

    config, params = load.read(flags.checkpoint)
    plain = data.evaluation_transform(config.image_size, config.preprocessing)
    mirror = copy.copy(plain)
    mirror.function = lambda *image, **how: plain.function(*image, **how)[:, ::-1]

    def embed(source, mirrored):
        batches = features.batches_of_features(
            *(config, params, source),
            batch_size=flags.batch_size,
            transform=mirror if mirrored else plain,
        )
        return (found for found, _ in batches)

    return embed


def finish(out: Path, threshold: float | None, *, again: bool = False) -> None:
    """Writes the ids and the page, and prints their paths.

    again: results of the same search that exist are kept.
    """
    from vit_jax.dedup import files

    if again and files.is_done(out):
        print(f"{out / files.IDS}: done before; nothing to do.")
        return
    removed, total = files.write_results(out, threshold=threshold)
    print(f"{out / files.IDS}: {removed:,} of {total:,} training images repeat a test image")
    print(f"page: {out / files.PAGE}")
