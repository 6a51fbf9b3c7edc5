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

    Mirrored from the published layouts: q, k and v apart, (heads, head_dim, d) for the output
    projection, (1, 1, 1, C) for a hybrid's GroupNorm, (1, 1, d, k) for BiT's head.
    """
    shapes = {path: leaf.shape for path, leaf in models.abstract_params(config).items()}
    official = {}
    for path, name in npz.official_names(config).items():
        shape = shapes[path]
        if name == "resnet/head/conv2d/kernel":
            shape = (1, 1, *shape)
        elif name.endswith(f"{npz.ATTENTION}/out/kernel"):
            shape = (config.num_heads, shape[0] // config.num_heads, shape[1])
        elif "/gn" in f"/{name}" and isinstance(config, models.ViTConfig):
            shape = (1, 1, 1, *shape)
        official[name] = shape
    for path, names in npz.qkv_names(config).items():
        shape = shapes[path]
        for name in names:
            official[name] = shape[1:] if len(shape) == 3 else (shape[0], *shape[2:])
    return official
