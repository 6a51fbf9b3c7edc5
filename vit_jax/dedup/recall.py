"""Recall of `vit_jax.dedup` on planted duplicates, by kind.

  python -m vit_jax.dedup.recall 'folder:/data/cifar10[train]' 'folder:/data/cifar10[test]'

Modified copies of test images are added to the training images, which are then searched. Prints a
Markdown table: the fraction of each kind that scores at least the threshold against its own test
image; the training images found that were not planted, to be judged on the page of `vit-jax dedup`;
and the speed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from vit_jax import data
from vit_jax.data.source import Union
from vit_jax.dedup import search

THRESHOLDS = (0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9)
#: Maximum number of planted copies of each kind.
COUNT = 500

Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def crop(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """80 to 100% of the area, anywhere, its aspect ratio up to 10% off."""
    height, width = image.shape[:2]
    share, aspect = rng.uniform(0.8, 1.0), np.exp(rng.uniform(-0.1, 0.1))
    h = min(height, int(np.ceil(height * np.sqrt(share / aspect))))
    w = min(width, int(np.ceil(width * np.sqrt(share * aspect))))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    return image[top : top + h, left : left + w]


def mirror(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image[:, ::-1]


def resize(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """To 50 to 200% of its sides."""
    scale = np.exp(rng.uniform(np.log(0.5), np.log(2.0)))
    size = [max(1, round(side * scale)) for side in image.shape[1::-1]]
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def jpeg(quality: int | None) -> Change:
    """Recompression with one quality, or any of 30 to 90."""

    def change(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        wanted = quality or int(rng.integers(30, 91))
        _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, wanted])
        return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR))

    return change


def everything(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    for change in (crop, mirror, resize, jpeg(None)):
        image = change(image, rng)
    return image


KINDS: dict[str, Change] = {
    "the same pixels": lambda image, rng: image,
    "mirrored": mirror,
    "JPEG, quality 90": jpeg(90),
    "JPEG, quality 60": jpeg(60),
    "JPEG, quality 30": jpeg(30),
    "resized to 50–200%": resize,
    "cropped to 80–100%": crop,
    "cropped, mirrored, resized, JPEG 30–90": everything,
}
#: The reverse: the test image is the crop, and the whole image is in training.
WIDER = "the test image is a crop of it"


class Images(data.Source):
    """Arrays of several sizes as a source."""

    def __init__(self, images: Sequence[np.ndarray], spec: str):
        self.images, self.spec = [np.ascontiguousarray(image) for image in images], spec
        self.fingerprint, self.num_classes, self.class_names = spec, 1, ("",)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> data.Record:
        return {"image": self.images[index], "label": 0, "name": f"{self.spec}/{index}"}


def plant(
    test: data.Source, count: int, seed: int = 0
) -> tuple[Images, Images, list[str], np.ndarray]:
    """Copies of up to `count` images of each kind, no image twice.

    Returns:
      The planted images, the test images (cropped where the kind is WIDER), the kind of each
      planted image, and the test image (n,) that it comes from.
    """
    rng = np.random.default_rng(seed)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests = list(pool.map(lambda i: data.decode(test[i]["image"], str(i)), range(len(test))))
    kinds = [*KINDS, WIDER]
    count = min(count, len(tests) // len(kinds))
    chosen = rng.permutation(len(tests))[: count * len(kinds)]
    planted, labels = [], []
    for kind, row in zip(np.repeat(kinds, count), chosen, strict=True):
        labels.append(str(kind))
        if kind == WIDER:
            planted.append(tests[row])
            tests[row] = crop(tests[row], rng)
        else:
            planted.append(KINDS[kind](tests[row], rng))
    return Images(planted, "planted"), Images(tests, "tests"), labels, chosen


def measure(train: data.Source, test: data.Source, count: int = COUNT) -> list[str]:
    """The lines of the report."""
    planted, tests, kinds, chosen = plant(test, count)
    start = time.perf_counter()
    pairs = search.find(Union([train, planted], "train and planted"), tests, floor=THRESHOLDS[0])
    seconds = time.perf_counter() - start
    own = np.zeros(len(planted))
    natural = np.zeros(len(train))
    others = np.zeros(len(planted))
    for pair in pairs:
        row = pair.train - len(train)
        if row < 0:
            natural[pair.train] = max(natural[pair.train], pair.score)
        elif chosen[row] == pair.test:
            own[row] = pair.score
        else:
            others[row] = max(others[row], pair.score)
    lines = [
        f"| planted | images | {' | '.join(f'{t:g}' for t in THRESHOLDS)} |",
        "|-|" + "-|" * (1 + len(THRESHOLDS)),
    ]
    for kind in [*KINDS, WIDER]:
        scores = own[np.array(kinds) == kind]
        shares = " | ".join(f"{100 * np.mean(scores >= t):.1f}%" for t in THRESHOLDS)
        lines.append(f"| {kind} | {len(scores)} | {shares} |")
    shares = " | ".join(f"{100 * np.mean(own >= t):.1f}%" for t in THRESHOLDS)
    lines.append(f"| all | {len(own)} | {shares} |")
    for name, scores in (("not planted", natural), ("planted, another test image", others)):
        counts = " | ".join(f"{int((scores >= t).sum()):,}" for t in THRESHOLDS)
        lines.append(f"| found: {name} | {len(scores):,} | {counts} |")
    images = len(train) + len(planted) + len(tests)
    lines.append(f"\n{images:,} images in {seconds:.0f} s")
    return [*lines, *speed(planted, tests)]


def speed(train: data.Source, test: data.Source) -> list[str]:
    """How fast each stage is, on the first images."""
    rows = range(min(len(train), len(test), 2 * search.BLOCK))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        clock = [time.perf_counter()]
        _, small = search.read(train, rows, pool)
        clock.append(time.perf_counter())
        queries = search.descriptors(small)
        _, tests = search.read(test, rows, pool)
        bank = np.tile(search.all_views(tests), (1, max(1, 10_000 // len(rows)), 1))
        clock.append(time.perf_counter())
        search.candidates(queries, bank, search.CANDIDATES)
        clock.append(time.perf_counter())
        list(pool.map(lambda i: search.align(small[i], tests[i], 0), rows))
        clock.append(time.perf_counter())
    seconds = np.diff(clock)
    compared = len(rows) * bank.shape[0] * bank.shape[1]
    return [
        f"hash and thumbnail: {len(rows) / seconds[0]:,.0f} decoded images/s",
        f"twelve views: {len(rows) / seconds[1]:,.0f} test images/s",
        f"search: {compared / seconds[2]:,.0f} comparisons/s",
        f"alignment: {len(rows) / seconds[3]:,.0f} pairs/s",
    ]


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    train, test = map(data.open_source, sys.argv[1:])
    print("\n".join(measure(train, test)))
