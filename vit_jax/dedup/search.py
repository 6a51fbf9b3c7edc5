"""Near-duplicates of test images in a pre-training set, to be removed from it.

The paper does this for all downstream test sets (section 4.1, after BiT's appendix C), but names no
detector. This one has two stages after an exact one:

1. exact: the decoded pixels hash to the same value;
2. for every training image the few most similar test images, by the cosine of 8x8 colour
   thumbnails, over twelve views of each test image: six boxes, mirrored or not;
3. those few are aligned to the training image (affine, by enhanced correlation), and the score is
   the correlation of their details in [-1, 1]. What images of one kind share (a sky, a frame) is
   not detail; what survives a crop, mirroring, resize or recompression is.

Alternatively the score is the cosine of a model's features. A training image's matches do not
depend on other training images, so shards can be searched separately.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypedDict

import cv2
import numpy as np

from vit_jax import data

cv2.setNumThreads(0)  # we use our own threads

#: Side of aligned thumbnails in pixels, and of searched descriptors in cells.
SIDE, CELLS = 32, 8
#: The boxes (left, top, width, height) of the views of a test image, in pixels of SIDE.
BOXES = (
    (0.0, 0.0, 32.0, 32.0),
    (1.5, 1.5, 29.0, 29.0),
    (0.0, 0.0, 29.0, 29.0),
    (3.0, 0.0, 29.0, 29.0),
    (0.0, 3.0, 29.0, 29.0),
    (3.0, 3.0, 29.0, 29.0),
)
#: Number of test images aligned to each training image.
CANDIDATES = 4
#: A pair with this score is a duplicate (docs/RESULTS.md); below FLOOR it is not recorded.
THRESHOLD, FLOOR = 0.75, 0.6
#: Training images per block; shards consist of whole blocks, so that arithmetic is the same.
BLOCK = 512
#: Test images per chunk, which bounds memory to BLOCK x CHUNK numbers.
CHUNK = 16384
#: Alignments further from the identity than this, a crop of 75%, are rejected.
SCALES, SHEAR, OVERLAP = (0.75, 1.34), 0.1, 0.6
#: Width of a border, in pixels of SIDE, without which the score must also hold.
FRAME = 5


class Settings(TypedDict):
    """The settings of a search, and its data."""

    train: str
    test: list[str]
    data_dir: str | None
    train_fingerprint: str
    test_fingerprint: str
    descriptor: str
    threshold: float
    floor: float


@dataclass(frozen=True)
class Pair:
    """A training image and the test image that it repeats, by index in their sources."""

    train: int
    test: int
    score: float
    stage: str  # "exact", "aligned" or "features"


# --- one image -----------------------------------------------------------------------------------


def pixel_hash(image: np.ndarray) -> bytes:
    """A hash of size and pixels (h, w, c) uint8: the same for any lossless file of an image."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 to (SIDE, SIDE, 3), resized by area."""
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def descriptors(thumbnails: np.ndarray) -> np.ndarray:
    """Thumbnails (n, SIDE, SIDE, 3) as CELLS x CELLS colours (n, d): mean 0, length 1."""
    side = SIDE // CELLS
    cells = thumbnails.reshape(-1, CELLS, side, CELLS, side, 3).astype(np.float32).mean((2, 4))
    rows = cells.reshape(len(cells), -1)
    return unit(rows - rows.mean(axis=1, keepdims=True))


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows (n, d) float32 of length 1; a row of zeros stays one."""
    rows = np.asarray(rows, np.float32)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


# --- the views of a test image -------------------------------------------------------------------


def warp_of(view: int) -> np.ndarray:
    """The (2, 3) matrix from pixels of a view to those of the test image, mirrored from view 6."""
    left, top, width, height = BOXES[view % len(BOXES)]
    x, y = width / SIDE, height / SIDE
    return np.array([[x, 0, left + x / 2 - 0.5], [0, y, top + y / 2 - 0.5]], np.float32)


def mirrored(image: np.ndarray, view: int) -> np.ndarray:
    """The image (h, w, 3), mirrored if the view is mirrored."""
    return cv2.flip(image, 1) if view >= len(BOXES) else image


def warped(image: np.ndarray, warp: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """The pixels (SIDE, SIDE) of a view of an image."""
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, warp, (SIDE, SIDE), flags=flags, borderMode=border)


def all_views(thumbnails: np.ndarray) -> np.ndarray:
    """Descriptors (views, n, d) of the twelve views of thumbnails (n, SIDE, SIDE, 3)."""
    return np.stack(
        [
            descriptors(np.stack([warped(mirrored(t, view), warp_of(view)) for t in thumbnails]))
            for view in range(2 * len(BOXES))
        ]
    )


# --- the search ----------------------------------------------------------------------------------


def candidates(
    queries: np.ndarray, bank: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k rows of the bank most similar to each query in any view, best first.

    Args:
      queries: (b, d) of length 1.
      bank: (views, n, d) of length 1.

    Returns:
      (rows, views, cosines), each (b, min(k, n)).
    """
    parts = []
    for start in range(0, bank.shape[1], CHUNK):
        best = queries @ bank[0, start : start + CHUNK].T
        seen = np.zeros(best.shape, np.int8)
        for view in range(1, len(bank)):
            cosine = queries @ bank[view, start : start + CHUNK].T
            np.putmask(seen, cosine > best, view)
            np.maximum(best, cosine, out=best)
        top = np.argpartition(-best, min(k, best.shape[1]) - 1, axis=1)[:, :k]
        found = (top + start, *(np.take_along_axis(of, top, axis=1) for of in (seen, best)))
        parts.append(found)
    rows, views, cosines = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    order = np.lexsort((rows, -cosines))[:, :k]
    return tuple(np.take_along_axis(of, order, axis=1) for of in (rows, views, cosines))  # type: ignore[return-value]


# --- the alignment -------------------------------------------------------------------------------


def align(train: np.ndarray, test: np.ndarray, view: int) -> float:
    """Correlation of the details of two aligned thumbnails (SIDE, SIDE, 3), in [-1, 1].

    The alignment starts from the view and maximises the enhanced correlation coefficient
    (Evangelidis and Psarakis, 2008) over affine maps. Images without detail score 0.
    """
    test = mirrored(test, view)
    train_grey, test_grey = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (train, test))
    start = warp_of(view)
    score = agreement(train_grey, test_grey, start)
    everywhere = np.ones((SIDE, SIDE), np.uint8)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 20, 1e-4)
    try:
        _, found = cv2.findTransformECC(
            train_grey, test_grey, start, cv2.MOTION_AFFINE, stop, everywhere, 3
        )
    except cv2.error:  # no convergence: the images differ
        return score
    return max(score, agreement(train_grey, test_grey, found))


def agreement(train: np.ndarray, test: np.ndarray, warp: np.ndarray) -> float:
    """The correlation of details where a grey image and a warped one overlap.

    Framed photos agree in their frames, so it is the minimum of the whole and the inside.
    """
    scales, shears = warp[[0, 1], [0, 1]], warp[[0, 1], [1, 0]]
    inside = warped(np.ones_like(test), warp, cv2.BORDER_CONSTANT) > 0
    plausible = ((scales > SCALES[0]) & (scales < SCALES[1])).all()
    if not plausible or np.abs(shears).max() > SHEAR or inside.mean() < OVERLAP:
        return 0.0
    a, b = detail(train.astype(np.float32)), detail(warped(test.astype(np.float32), warp))
    unframed = inside.copy()
    unframed[:FRAME] = unframed[-FRAME:] = unframed[:, :FRAME] = unframed[:, -FRAME:] = False
    return min(correlation(a[inside], b[inside]), correlation(a[unframed], b[unframed]))


def detail(grey: np.ndarray) -> np.ndarray:
    """A grey image without low frequencies, with normalised local contrast."""
    high = grey - cv2.GaussianBlur(grey, (0, 0), 2.0)
    noise = 5.0  # levels of 255: weaker details are not amplified
    return high / np.sqrt(cv2.GaussianBlur(high * high, (0, 0), 3.0) + noise**2)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, of two arrays (n,); 0 if one of them is constant."""
    a, b = a - a.mean(), b - b.mean()
    return float(a @ b / max(np.sqrt((a @ a) * (b @ b)), 1e-6))


# --- whole data sets -----------------------------------------------------------------------------


def blocks(count: int, shard: int = 0, shards: int = 1) -> Iterator[range]:
    """The blocks of `count` records that belong to one of several shards."""
    for start in range(shard * BLOCK, count, shards * BLOCK):
        yield range(start, min(start + BLOCK, count))


def shard_size(count: int, shard: int = 0, shards: int = 1) -> int:
    """The number of records in a shard, of `count`."""
    return sum(len(block) for block in blocks(count, shard, shards))


def read(
    source: data.Source, rows: Iterable[int], pool: ThreadPoolExecutor
) -> tuple[list, np.ndarray]:
    """Hashes of all channels, and thumbnails (n, SIDE, SIDE, 3), of records, decoded by threads."""

    def one(row: int) -> tuple[bytes, np.ndarray]:
        record = source[row]
        pixels = data.stored(record["image"], record["name"])
        return pixel_hash(pixels), thumbnail(data.picture(pixels, record["name"]))

    hashes, thumbnails = zip(*pool.map(one, rows), strict=True)
    return list(hashes), np.stack(thumbnails)


#: (source, mirrored) -> descriptors (b, d) of its images, mirrored or not, in batches.
Embed = Callable[[data.Source, bool], Iterator[np.ndarray]]


def find(
    train: data.Source,
    test: data.Source,
    *,
    shard: int = 0,
    shards: int = 1,
    embed: Embed | None = None,
    floor: float = FLOOR,
    on_images: Callable[[int], None] = lambda count: None,
) -> list[Pair]:
    """All pairs of a training and a test image with a score of `floor` or more, in order.

    Args:
      train, test: sources; memory is about 12 kB per test image, independent of the number of
        training images.
      shard, shards: the part of the training images to search; together the parts give the same
        result as one search.
      embed: the score is the cosine of its descriptors instead.
      on_images: called with the number of images read so far.

    Raises:
      UserError: an image cannot be decoded.
    """
    seen = 0

    def blocks_of(
        source: data.Source, *part: int
    ) -> Iterator[tuple[range, list[bytes], np.ndarray]]:
        nonlocal seen
        for block in blocks(len(source), *part):
            yield block, *read(source, block, pool)
            seen += len(block)
            on_images(seen)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        tests: dict[bytes, list[int]] = {}
        thumbnails = np.empty((len(test), SIDE, SIDE, 3), np.uint8)
        bank = np.empty((2 * len(BOXES), len(test), 3 * CELLS**2), np.float32)
        for block, hashes, small in blocks_of(test):
            for row, value in zip(block, hashes, strict=True):
                tests.setdefault(value, []).append(row)
            if embed is None:
                thumbnails[block.start : block.stop] = small
                bank[:, block.start : block.stop] = all_views(small)
        if embed is None:
            score = aligner(thumbnails, bank, pool)
        else:
            score = embedder(train, test, embed, shard, shards)
        pairs = []
        for block, hashes, small in blocks_of(train, shard, shards):
            exact = {(r, t) for r, h in zip(block, hashes, strict=True) for t in tests.get(h, ())}
            pairs += [Pair(row, match, 1.0, "exact") for row, match in exact]
            pairs += [
                pair
                for pair in score(block, small)
                if pair.score >= floor and (pair.train, pair.test) not in exact
            ]
    return sorted(pairs, key=lambda pair: (pair.train, pair.test))


Scorer = Callable[[Sequence[int], np.ndarray], Iterable[Pair]]


def aligner(thumbnails: np.ndarray, bank: np.ndarray, pool: ThreadPoolExecutor) -> Scorer:
    """Scores a block of training images by alignment with their candidates."""

    def score(block: Sequence[int], small: np.ndarray) -> Iterable[Pair]:
        rows, views, _ = candidates(descriptors(small), bank, CANDIDATES)

        def one(i: int) -> list[Pair]:
            return [
                Pair(block[i], int(row), align(small[i], thumbnails[row], int(view)), "aligned")
                for row, view in zip(rows[i], views[i], strict=True)
            ]

        return [pair for pairs in pool.map(one, range(len(block))) for pair in pairs]

    return score


def embedder(
    train: data.Source, test: data.Source, embed: Embed, shard: int, shards: int
) -> Scorer:
    """Scores a block of training images by the cosine of features, mirrored images included."""
    bank = np.stack([unit(np.concatenate(list(embed(test, flip)))) for flip in (False, True)])
    mine = np.array([row for block in blocks(len(train), shard, shards) for row in block])
    rows = (row for batch in embed(data.Subset(train, mine, train.spec), False) for row in batch)

    def score(block: Sequence[int], small: np.ndarray) -> Iterable[Pair]:
        queries = unit(np.stack([next(rows) for _ in block]))
        tests, _, cosines = candidates(queries, bank, CANDIDATES)
        return [
            Pair(block[i], int(test), float(cosine), "features")
            for i in range(len(block))
            for test, cosine in zip(tests[i], cosines[i], strict=True)
        ]

    return score
