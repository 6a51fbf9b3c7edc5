"""Near-duplicates between a pre-training set and test sets, to be left out of pre-training.

The paper does so with every downstream test image (section 4.1, after BiT's appendix C), and names
no detector. This one has two stages after an exact one:

1. exact: the decoded pixels hash to the same value;
2. for every training image the few test images that look most like it, by the cosine of 8x8 colour
   thumbnails, each test image being seen through twelve views: six boxes, mirrored or not;
3. those few are aligned to the training image (affine, by enhanced correlation), and the score is
   how well their details correlate in [-1, 1]. What images of one kind share (a sky, a frame)
   is not detail; what a crop, mirroring, resize or recompression leaves is.

Or else the features of a model decide by their cosine. A training image's matches depend on no
other training image, so shards can be searched apart.
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

cv2.setNumThreads(0)  # the threads are ours

#: Pixels a side of what is aligned, and cells a side of what is searched.
SIDE, CELLS = 32, 8
#: The boxes (left, top, width, height) of a test image that are searched for, in pixels of SIDE.
BOXES = (
    (0.0, 0.0, 32.0, 32.0),
    (1.5, 1.5, 29.0, 29.0),
    (0.0, 0.0, 29.0, 29.0),
    (3.0, 0.0, 29.0, 29.0),
    (0.0, 3.0, 29.0, 29.0),
    (3.0, 3.0, 29.0, 29.0),
)
#: Test images that are aligned to each training image.
CANDIDATES = 4
#: A pair with this score is a duplicate (docs/RESULTS.md); below FLOOR it is not even recorded.
THRESHOLD, FLOOR = 0.75, 0.6
#: Training images at once; a shard holds whole blocks, so that its arithmetic is the same.
BLOCK = 512
#: Test images at once in the search: bounds its memory to BLOCK x CHUNK numbers.
CHUNK = 16384
#: Alignments further from the identity than this are no crop of 75% and are not believed.
SCALES, SHEAR, OVERLAP = (0.75, 1.34), 0.1, 0.6
#: Width of an image's frame, in pixels of SIDE, without which the score must also hold.
FRAME = 5


class Settings(TypedDict):
    """What a search was asked for, and what its data were."""

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
    """A training image and the test image that it repeats, by their numbers in their sources."""

    train: int
    test: int
    score: float
    stage: str  # "exact", "aligned" or "features"


# --- one image -----------------------------------------------------------------------------------


def pixel_hash(image: np.ndarray) -> bytes:
    """A hash of size and pixels (h, w, 3) uint8: the same for any lossless file of an image."""
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """(h, w, 3) uint8 to (SIDE, SIDE, 3), each pixel the mean of those that it covers."""
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
    """The image (h, w, 3), mirrored if the view is one of a mirrored image."""
    return cv2.flip(image, 1) if view >= len(BOXES) else image


def warped(image: np.ndarray, warp: np.ndarray, border: int = cv2.BORDER_REPLICATE) -> np.ndarray:
    """What the pixels (SIDE, SIDE) of a view see of an image."""
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
    """The k rows of the bank most like each query in any view, best first.

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
    """How well the details of two thumbnails (SIDE, SIDE, 3) agree once aligned, in [-1, 1].

    The view is where the alignment starts; it goes on by maximising the enhanced correlation
    coefficient (Evangelidis and Psarakis, 2008) over affine maps. Images without detail score 0.
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
    except cv2.error:  # it does not converge: these are different images
        return score
    return max(score, agreement(train_grey, test_grey, found))


def agreement(train: np.ndarray, test: np.ndarray, warp: np.ndarray) -> float:
    """The correlation of details where a grey image and a warped one overlap, frame or no frame.

    Two framed photos agree in their frames, so the lesser of the whole and the inside counts.
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
    """What is left of a grey image without its low frequencies, at the same contrast everywhere."""
    high = grey - cv2.GaussianBlur(grey, (0, 0), 2.0)
    noise = 5.0  # levels of 255: weaker details are not raised
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
    """How many of `count` records a shard holds."""
    return sum(len(block) for block in blocks(count, shard, shards))


def read(
    source: data.Source, rows: Iterable[int], pool: ThreadPoolExecutor
) -> tuple[list, np.ndarray]:
    """Hashes and thumbnails (n, SIDE, SIDE, 3) of records, decoded by threads."""

    def one(row: int) -> tuple[bytes, np.ndarray]:
        record = source[row]
        image = data.decode(record["image"], record["name"])
        return pixel_hash(image), thumbnail(image)

    hashes, thumbnails = zip(*pool.map(one, rows), strict=True)
    return list(hashes), np.stack(thumbnails)


def find(
    train: data.Source,
    test: data.Source,
    *,
    shard: int = 0,
    shards: int = 1,
    embed: Callable[[data.Source], Iterator[np.ndarray]] | None = None,
    floor: float = FLOOR,
    on_images: Callable[[int], None] = lambda count: None,
) -> list[Pair]:
    """All pairs of a training and a test image with a score of `floor` or more, in order.

    Args:
      train, test: sources; about 12 kB of memory are taken for each test image, and nothing that
        grows with the training images.
      shard, shards: which part of the training images is searched; the parts together give what
        the whole gives.
      embed: descriptors (b, d), batch after batch, of a source; their cosine is then the score.
      on_images: called with the number of images read so far.

    Raises:
      UserError: an image that cannot be decoded.
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
    """Scores a block of training images by alignment with the candidates of each."""

    def score(block: Sequence[int], small: np.ndarray) -> Iterable[Pair]:
        rows, views, _ = candidates(descriptors(small), bank, CANDIDATES)

        def one(i: int) -> list[Pair]:
            return [
                Pair(block[i], int(row), align(small[i], thumbnails[row], int(view)), "aligned")
                for row, view in zip(rows[i], views[i], strict=True)
            ]

        return [pair for pairs in pool.map(one, range(len(block))) for pair in pairs]

    return score


class Mirrored(data.Source):
    """A source whose images are mirrored."""

    def __init__(self, source: data.Source):
        self.source, self.num_classes, self.spec = source, source.num_classes, source.spec
        self.class_names, self.fingerprint = source.class_names, f"mirrored {source.fingerprint}"

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> data.Record:
        record = self.source[index]
        return {**record, "image": cv2.flip(data.decode(record["image"], record["name"]), 1)}


def embedder(
    train: data.Source,
    test: data.Source,
    embed: Callable[[data.Source], Iterator[np.ndarray]],
    shard: int,
    shards: int,
) -> Scorer:
    """Scores a block of training images by the cosine of features, of mirrored ones too."""
    bank = np.stack([unit(np.concatenate(list(embed(x)))) for x in (test, Mirrored(test))])
    mine = np.array([row for block in blocks(len(train), shard, shards) for row in block])
    rows = (row for batch in embed(data.Subset(train, mine, train.spec)) for row in batch)

    def score(block: Sequence[int], small: np.ndarray) -> Iterable[Pair]:
        queries = unit(np.stack([next(rows) for _ in block]))
        tests, _, cosines = candidates(queries, bank, CANDIDATES)
        return [
            Pair(block[i], int(test), float(cosine), "features")
            for i in range(len(block))
            for test, cosine in zip(tests[i], cosines[i], strict=True)
        ]

    return score
