"""The cost of an index of 303M records: memory, start-up, and seeking to a step.

  python -m vit_jax.bench.index DIR

writes a TFDS data set to DIR whose shards are hard links to one real ArrayRecord file, so that
every reader has an index of real size while the disk has one shard. Then it is opened and read as
in training. Times and memory are printed as Markdown.
"""

from __future__ import annotations

import argparse
import functools
import io
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import psutil

from vit_jax import data
from vit_jax.data import prepare
from vit_jax.data.specs import drop_records
from vit_jax.models import cost

SHARDS = 2048
NAME = "synthetic_jft"
HOSTS, BATCH = 64, 4096
LATE = 1_000_000  # about the last step of the paper's longest run


def write(data_dir: Path, *, shards: int = SHARDS, records: int = cost.JFT_IMAGES) -> Path:
    """A data set of at least `records` records in `shards` equal shards; returns its directory."""
    from array_record.python import array_record_module

    directory = data_dir / NAME / "1.0.0"
    directory.mkdir(parents=True)
    in_shard = -(-records // shards)
    picture = io.BytesIO()
    PIL.Image.new("RGB", (16, 16), (90, 120, 60)).save(picture, "JPEG")
    record = prepare.example(picture.getvalue(), 1, "0123456789abcdef.jpg")
    for split, count, size in (("train", shards, in_shard), ("validation", 1, 1)):
        first = prepare.shard_file(directory, NAME, split, 0, count)
        writer = array_record_module.ArrayRecordWriter(str(first), "group_size:1")
        for _ in range(size):
            writer.write(record)
        writer.close()
        for shard in range(1, count):
            os.link(first, prepare.shard_file(directory, NAME, split, shard, count))
    names = [f"n{i:05d}" for i in range(cost.JFT_CLASSES)]
    lengths = {"train": [in_shard] * shards, "validation": [1]}
    prepare.write_metadata(directory, NAME, names, lengths)
    return directory


def measure(data_dir: Path, shards: int = SHARDS) -> Iterator[tuple[str, float, float, float]]:
    """(what, seconds, CPU seconds, MB of memory added) of opening and reading the data set."""
    process = psutil.Process()

    def timed(what, function):
        before, start, busy = process.memory_info().rss, time.perf_counter(), time.process_time()
        result = function()
        seconds, busy = time.perf_counter() - start, time.process_time() - busy
        return result, (what, seconds, busy, (process.memory_info().rss - before) / 1e6)

    def first_batch(step):
        batches = data.train_batches(
            source,
            data.make_transform(size=(16, 16), train=True, name="inception_crop"),
            batch_size=BATCH,
            seed=0,
            start_step=step,
            rows=np.arange(BATCH // HOSTS),
        )
        try:
            return next(batches)
        finally:
            batches.close()

    import grain  # noqa: F401 (imported before the measurement)

    source, row = timed(
        "open, count the records of every shard",
        lambda: data.open_source(f"tfds:{NAME}[train]", data_dir=str(data_dir)),
    )
    yield row
    for step in (0, LATE, 10 * LATE):
        what = f"first batch of one of {HOSTS} hosts at step {step:,}"
        yield timed(what, functools.partial(first_batch, step))[1]
    every = range(0, len(source), len(source) // shards)
    yield timed("touch every shard", lambda: [source[i]["label"] for i in every])[1]
    rng = np.random.default_rng(0)
    chosen = rng.integers(len(source) - 2000, size=2000)
    yield timed("2,000 random records", lambda: [source[i]["label"] for i in chosen])[1]
    excluded = data_dir / "exclude.txt"
    excluded.write_text("".join(f"{source.spec}/{i}\n" for i in chosen))
    without, row = timed(
        f"leave out {len(set(chosen.tolist())):,} records (config.data.exclude)",
        lambda: drop_records(source, str(excluded)),
    )
    yield row
    yield timed("2,000 random remaining records", lambda: [without[i] for i in chosen])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures an index of 303M records.")
    parser.add_argument("directory", type=Path, help="where to write it: 100 MB, 2,048 names")
    parser.add_argument("--records", type=int, default=cost.JFT_IMAGES)
    parser.add_argument("--shards", type=int, default=SHARDS)
    options = parser.parse_args()
    if not (options.directory / NAME).exists():
        write(options.directory, shards=options.shards, records=options.records)
    print("| what | seconds | CPU seconds | MB more |\n|-|-|-|-|")
    for what, seconds, busy, megabytes in measure(options.directory, options.shards):
        print(f"| {what} | {seconds:.2f} | {busy:.2f} | {megabytes:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
