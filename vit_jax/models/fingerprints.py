"""Fingerprints of arrays: what is read is what was written, on every sharding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypedDict

import jax
import jax.numpy as jnp

GOLDEN = 2654435761  # Knuth's multiplicative hash constant, odd after `| 1`
#: The rule of fingerprints that are written now; a checkpoint is checked by the one it names.
RULE = "sum32"
WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}


def fingerprint(x: jax.Array) -> jax.Array:
    """A uint32 that changes with every single bit of `x`, and not with how `x` is sharded.

    sum over elements of (bits + c) * odd(index), modulo 2^32: an order-free sum of products with
    odd factors.
    """
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        counter = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * jnp.uint32(size) + counter
    factor = (index * jnp.uint32(GOLDEN)) | jnp.uint32(1)
    return jnp.sum((bits + jnp.uint32(0x9E3779B9)) * factor, dtype=jnp.uint32)


class BestRecord(TypedDict):
    """What a checkpoint says of the best evaluation so far, see training/best.py."""

    metric: str
    smaller: bool
    step: int | None
    values: dict[str, float]
    since: int
    evaluated: int


class Record(TypedDict, total=False):
    """What a checkpoint says of its arrays, by the names of `tree_spec`, and of its run."""

    step: int
    fingerprint: str
    spec: dict[str, list]
    fingerprints: dict[str, int]
    digest: str
    format: int
    train_data: list[str]
    eval_data: list[str]
    class_weights: list[str]
    jax: str
    total_steps: int
    model: dict[str, object]
    best: BestRecord


_fingerprints = jax.jit(lambda tree: jax.tree.map(fingerprint, tree))


def _named_leaves(tree: object) -> list[tuple[str, jax.Array]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def fingerprints(tree: object) -> dict[str, int]:
    """{path of the leaf: fingerprint}, the same on every process."""
    return {name: int(value) for name, value in _named_leaves(jax.device_get(_fingerprints(tree)))}


def tree_spec(tree: object) -> dict[str, list]:
    """{path of the leaf: [shape, dtype]}."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named_leaves(tree)}


def digest_of(record: Mapping[str, object]) -> str:
    """A checksum of a checkpoint's record, without the one that it may hold."""
    values = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
