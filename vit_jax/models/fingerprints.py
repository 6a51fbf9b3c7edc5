"""Fingerprints of arrays, to verify that what is read is what was written, for any sharding."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.errors import UserError

WORDS = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
#: Elements up to which NumPy computes the fingerprint of an array that is on this CPU: in less than
#: a millisecond, while compiling a program for its shape takes a third of a second.
SMALL = 2**16

Array = jax.Array | np.ndarray


def _words(x: Array) -> tuple[Array, Array]:
    """The bits of each element and its index in the whole array, as uint32."""
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    if isinstance(x, np.ndarray):
        bits = x.reshape(-1).view(WORDS[x.dtype.itemsize]).astype(np.uint32)
        return bits, np.arange(x.size, dtype=np.uint32)
    bits = jax.lax.bitcast_convert_type(x, WORDS[x.dtype.itemsize]).astype(jnp.uint32)
    index = jnp.zeros(bits.shape, jnp.uint32)
    for axis, size in enumerate(bits.shape):
        counter = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        index = index * jnp.uint32(size) + counter
    return bits, index


def fingerprint(x: Array) -> Array:
    """A 64-bit hash of an array, (2,) uint32, independent of its sharding.

    Each of two lanes is a sum modulo 2^32, in any order, of a hash of each element's bits and
    index. Every bit of an element affects every bit of its hash, so flips cancel with probability
    2^-64 only. A weighted sum of the bits themselves would miss an even number of sign flips.
    """
    bits, index = _words(x)
    lanes = []
    for of_bits, of_index, first, second in LANES:
        h = bits * np.uint32(of_bits) + index * np.uint32(of_index) + np.uint32(first)
        for factor in (first, second):
            h = (h ^ (h >> np.uint32(16))) * np.uint32(factor)
        lanes.append((h ^ (h >> np.uint32(15))).sum(dtype=np.uint32))
    return np.stack(lanes) if isinstance(x, np.ndarray) else jnp.stack(lanes)


#: Odd factors of each lane: for the bits, the index, and two rounds of multiply and shift.
LANES = (
    (0x9E3779B1, 0x85EBCA77, 0x7FEB352D, 0x846CA68B),
    (0xC2B2AE3D, 0x27D4EB2F, 0x85EBCA6B, 0xC2B2AE35),
)


def sum32(x: Array) -> Array:
    """The rule of earlier checkpoints, () uint32; an even number of sign flips cancels."""
    bits, index = _words(x)
    factor = (index * np.uint32(2654435761)) | np.uint32(1)
    return ((bits + np.uint32(0x9E3779B9)) * factor).sum(dtype=np.uint32)


#: By their names in checkpoints; a checkpoint is checked by the rule that it names.
RULES = {"mix64": fingerprint, "sum32": sum32}
#: The rule of new fingerprints, and the rule of records that name none.
RULE, UNNAMED = "mix64", "sum32"


def _look(x: Array, rule: str) -> tuple[Array, Array | np.bool_]:
    """(fingerprint, whether all values are finite) in one pass."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return RULES[rule](x), np.bool_(True)
    isfinite = np.isfinite if isinstance(x, np.ndarray) else jnp.isfinite
    return RULES[rule](x), isfinite(x).all()


_look_on_device = jax.jit(_look, static_argnames="rule")  # one program per shape


def _is_small(leaf: Array) -> bool:
    """Whether NumPy is faster: see SMALL."""
    here = isinstance(leaf, np.ndarray) or (
        leaf.is_fully_addressable and jax.default_backend() == "cpu"
    )
    return here and leaf.size <= SMALL


class BestRecord(TypedDict):
    """A checkpoint's record of the best evaluation so far, see training/best.py."""

    metric: str
    smaller: bool
    step: int | None
    values: dict[str, float]
    since: int
    evaluated: int


#: The steps whose updates were undone, and why. loss: None: not finite.
RolledBack = TypedDict("RolledBack", {"from": int, "to": int, "loss": float | None, "usual": float})


class SpikeRecord(TypedDict):
    """A checkpoint's record of the losses before it, see training/spikes.py.

    anchors: checkpoints to which a roll-back may lead. losses: None: not finite.
    """

    losses: list[float | None]
    anchors: list[int]
    ranges: list[RolledBack]


class Record(TypedDict, total=False):
    """A checkpoint's record of its arrays, by the names of `tree_spec`, and of its run."""

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
    roll_back: SpikeRecord


def _named_leaves(tree: object) -> list[tuple[str, jax.Array]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]


def checked(tree: object, rule: str = RULE) -> tuple[dict[str, int], list[str]]:
    """({path of the leaf: fingerprint}, paths of leaves that contain an infinity or NaN).

    The same on every process. One array at a time: a CPU needs a temporary of its size.
    """
    # CPUs run programs concurrently. With several processes, collectives started in another order
    # on each could deadlock, so there one program ends before the next begins.
    apart = jax.process_count() > 1 and jax.default_backend() == "cpu"
    found = {}
    for name, leaf in _named_leaves(tree):
        small = _is_small(leaf)
        value = _look(np.asarray(leaf), rule) if small else _look_on_device(leaf, rule)
        found[name] = jax.device_get(value) if apart else value
    found = jax.device_get(found)
    marks = {name: int.from_bytes(mark.tobytes(), "little") for name, (mark, _) in found.items()}
    return marks, [name for name, (_, finite) in found.items() if not finite]


def fingerprints(tree: object, rule: str = RULE) -> dict[str, int]:
    """{path of the leaf: fingerprint}, the same on every process."""
    return checked(tree, rule)[0]


def check_rule(record: Record, where: str) -> str:
    """The rule of a checkpoint's fingerprints.

    Raises:
      UserError: it is not in RULES.
    """
    rule = record.get("fingerprint", UNNAMED)
    if rule not in RULES:
        raise UserError(
            f"{where} has fingerprints by the rule {rule!r}, which this vit_jax does not know; "
            "update it."
        )
    return rule


def tree_spec(tree: object) -> dict[str, list]:
    """{path of the leaf: [shape, dtype]}."""
    return {name: [list(leaf.shape), str(leaf.dtype)] for name, leaf in _named_leaves(tree)}


def digest_of(record: Mapping[str, object]) -> str:
    """A checksum of a checkpoint's record, not counting the one stored in it."""
    values = {key: value for key, value in record.items() if key != "digest"}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
