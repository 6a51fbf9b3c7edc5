"""Weights and inputs of the golden numbers: not stored, they follow from their names.

tests/golden holds outputs of the original implementations (google-research/vision_transformer
c6de1e5, big_vision 0127fb6 for BiT), float32 on CPU at the highest matmul precision.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vit_jax import models
from vit_jax.interop import npz

GOLDEN = Path(__file__).parent / "golden"


def cases(file: str) -> dict[str, dict]:
    """{case: image size, classes, batch, parameter count, keys} of tests/golden/FILE.json."""
    return json.loads((GOLDEN / f"{file}.json").read_text())


def numbers(file: str) -> dict[str, np.ndarray]:
    """The arrays of tests/golden/FILE.npz, by "case/name"."""
    with np.load(GOLDEN / f"{file}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
    """Standard normals seeded by a name."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    return rng.standard_normal(shape).astype(np.float32)


def weight(name: str, shape: Sequence[int]) -> np.ndarray:
    """The golden array with the official name `name`."""
    x = draw(name, shape)
    parts = name.split("/")
    if parts[-1] == "kernel":
        projection = len(shape) == 3 and parts[-2] in ("query", "key", "value")
        fan_in = shape[0] if projection else math.prod(shape[:-1])
        return x / np.sqrt(fan_in).astype(np.float32)
    if parts[-1] in ("scale", "gamma"):
        return 1 + 0.1 * x
    return (0.1 if parts[-1] in ("cls", "pos_embedding") else 0.02) * x


def images(batch: int, height: int, width: int) -> np.ndarray:
    """(batch, height, width, 3) in [-1, 1]."""
    rng = np.random.default_rng(zlib.crc32(b"input"))
    return rng.uniform(-1, 1, (batch, height, width, 3)).astype(np.float32)


def weights(keys: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """The golden arrays of {official name: official shape}."""
    return {name: weight(name, shape) for name, shape in keys.items()}


def official_shapes(config: models.ModelConfig) -> dict[str, tuple[int, ...]]:
    """{official name: official shape} of a model, as the released files have them.

    `tests/models/test_golden.py` compares them with those of the original implementation.
    """
    params = models.abstract_params(config)
    shapes = {}
    for path, entry in npz.layout(config).items():
        cut = entry.split(np.broadcast_to(np.float32(0), params[path].shape))  # takes no memory
        shapes |= {name: part.shape for name, part in zip(entry.names, cut, strict=True)}
    return shapes
