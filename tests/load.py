"""How time and memory grow: the largest cases, each at a quarter and at the whole of its size.

  python tests/load.py [--case=names,table,classes,curves,resumes] [--share=1]

Prints a row of the table in docs/reliability.md for each: seconds, peak memory, and
how much longer the whole took than a quarter of it, on the processor; 4 is linear.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]


def names(place: Path, count: int) -> Callable[[], object]:
    """A folder of so many image files in 1,000 classes, opened."""
    from vit_jax import data

    for k in range(1000):
        folder = place / f"c{k:04d}"
        folder.mkdir()
        for i in range(count // 1000):
            os.close(os.open(folder / f"{i}.png", os.O_CREAT))
    return lambda: len(data.open_source(f"folder:{place}[train]"))


def table(place: Path, count: int) -> Callable[[], object]:
    """A CSV file of so many rows, opened."""
    from vit_jax import data

    for k in range(100):
        (place / f"{k}").mkdir()
    with open(place / "train.csv", "w") as file:
        file.write("path,label\n")
        for i in range(count):
            os.close(os.open(place / f"{i % 100}/{i}.png", os.O_CREAT))
            file.write(f"{i % 100}/{i}.png,class {i % 1000}\n")
    return lambda: len(data.open_source(f"folder:{place}/train.csv"))


def classes(place: Path, count: int) -> Callable[[], object]:
    """A classifier of so many classes, evaluated on an image of each; its files and page."""
    import jax.numpy as jnp

    from vit_jax.data.source import ArraySource
    from vit_jax.evaluation import result
    from vit_jax.evaluation.classification import classification
    from vit_jax.evaluation.data_sets import DataSets
    from vit_jax.evaluation.forward import Forward, Outputs
    from vit_jax.runtime import sharding

    weights = np.random.default_rng(0).normal(size=(12, count)).astype(np.float32)

    def function(images) -> Outputs:
        pixels = images.reshape(len(images), -1).astype(jnp.float32)
        return Outputs(pixels @ weights, None)

    labels = tuple(f"class {k}" for k in range(count))
    forward = Forward(
        function, "load", (2, 2), count, labels, (("name", "resize"),), sharding.make_mesh(), 64,
        False, lambda: None,
    )  # fmt: skip
    images = np.random.default_rng(1).integers(0, 256, (count, 2, 2, 3), dtype=np.uint8)
    source = ArraySource(images, np.arange(count), labels)

    class Data(DataSets):
        def open(self, *_, **__):
            return source

    def run():
        found = classification(forward, Data(("arrays",)))
        return result.write(place, "classification", dict(found.record), found)

    return run


def curves(place: Path, count: int) -> Callable[[], object]:
    """The page of a run with so many evaluations."""
    from vit_jax.pages import report

    rng = np.random.default_rng(0)
    with open(place / "metrics.jsonl", "w") as file:
        for step in range(1, count + 1):
            values = dict(zip("abcd", rng.random(4).tolist(), strict=True))
            record = {f"train/{k}": v for k, v in values.items()}
            record |= {"train/loss": 1 / step, "eval/accuracy": 1 - 1 / step, "eval/loss": 1.0}
            file.write(json.dumps({"step": step, "seconds": step, **record}) + "\n")
    return lambda: report.write_report(place)


def resumes(place: Path, count: int) -> Callable[[], object]:
    """The record of a run that was resumed so many times, each after ten lines."""
    from vit_jax.runtime.logbook import Logbook

    def run():
        for i in range(count):
            with Logbook(place, total_steps=10**6, start_step=10 * i) as book:
                for step in range(10 * i + 1, 10 * i + 11):
                    book.write(step, {"train/loss": 1.0, "train/learning_rate": 0.1})

    return run


#: What is measured, and how much of it.
CASES: dict[str, tuple[Callable, int]] = {
    "names": (names, 1_000_000),
    "table": (table, 1_000_000),
    "classes": (classes, 21_843),
    "curves": (curves, 10_000),
    "resumes": (resumes, 1_000),
}


def measure(case: str, count: int) -> None:
    """Prints seconds and the peak of memory, in MB, of one size; in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        run = CASES[case][0](Path(place), count)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        begin, used = time.perf_counter(), time.process_time()
        sys.stdout, out = open(os.devnull, "w"), sys.stdout  # noqa: SIM115
        run()
        print(time.perf_counter() - begin, time.process_time() - used, before / 1e3,
              resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, file=out)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", default=",".join(CASES))
    parser.add_argument("--share", type=float, default=1.0, help="of the sizes")
    parser.add_argument("--count", type=int, default=0, help="measures this size here")
    asked = parser.parse_args()
    if asked.count:
        measure(asked.case, asked.count)
        return
    print("| case | size | seconds | of the processor | peak MB | times a quarter of it |")
    print("|-|-|-|-|-|-|")
    for case in asked.case.split(","):
        found = []
        whole = int(CASES[case][1] * asked.share)
        for count in (whole // 4, whole):
            command = [sys.executable, __file__, f"--case={case}", f"--count={count}"]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
            found.append([float(word) for word in done.stdout.split()[-4:]])
        (_, quarter, _, _), (seconds, cpu, _, peak) = found
        print(f"| {case} | {whole:,} | {seconds:.1f} | {cpu:.1f} | {peak:,.0f} "
              f"| {cpu / quarter:.1f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
