"""Random bits for dropout: a counter-based hash, computed where the bits are used.

A bit is a function of seed, step, position in the model and position in the global batch: the same
on every mesh, for any number of processes and micro-batches, and after a resume. The backward pass
recomputes bits and masks instead of storing them (docs/performance.md, decision 9).

`mix` is "lowbias32" of Chris Wellons' hash-prospector (2018, public domain): a bijection of 32-bit
words in which every output bit depends on every input bit. It is not cryptographic; its quality is
tested in tests/numerics/test_bits.py.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


class Key(NamedTuple):
    """key: a `jax.random` key from seed, step and position in the model. rows: (b,) uint32, the
    index of each example in the global batch."""

    key: Array
    rows: Array


#: For dropout and stochastic depth: the training step's key or a `jax.random` key; None: inference.
Randomness = Key | Array | None


def fold(key: Key, index: Array | int) -> Key:
    """The key of the `index`-th use of `key`."""
    return key._replace(key=jax.random.fold_in(key.key, index))


def split(key: Key) -> tuple[Key, Array]:
    """A key for the model, and a `jax.random` key for other draws of the micro-batch."""
    own, other = jax.random.split(key.key)
    return key._replace(key=own), jax.random.fold_in(other, key.rows[0])


def dropout(x: Array, rate: float, key: Key, shape: Sequence[int] | None = None) -> Array:
    """x with entries zeroed with probability `rate` and the others divided by 1 - rate.

    Args:
      x: (m b, ...) for the b examples of `key`.
      shape: of the mask, broadcast to x; (b, 1, 1) drops whole examples.
    """
    return _dropped(rate, tuple(shape or x.shape), x, words_of(key))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _dropped(rate: float, shape: tuple[int, ...], x: Array, words: Array) -> Array:
    keep = random_words(words, shape) >= threshold(rate)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


_dropped.defvjp(
    lambda rate, shape, x, words: (_dropped(rate, shape, x, words), words),
    lambda rate, shape, words, dy: (_dropped(rate, shape, dy, words), None),
)


def threshold(rate: float) -> np.uint32:
    """Words below this threshold are dropped: a fraction `rate` of all, to 2^-32."""
    return np.uint32(min(round(rate * 2**32), 2**32 - 1))


def folded(key: Array, numbers: Array) -> Array:
    """(b,) `jax.random` keys, one per number (b,)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def words_of(key: Key) -> Array:
    """(b, 2) uint32: 64 bits per example from JAX's generator, which is sound but slow."""
    keys = folded(key.key, key.rows)
    return jax.lax.optimization_barrier(jax.random.key_data(keys)[:, :2])  # small, so it is stored


def random_words(words: Array, shape: Sequence[int]) -> Array:
    """uint32 of `shape`, each a hash of its example's `words` (b, 2) and its index in the example.

    shape: (m b, ...) of b examples; axial attention folds rows or columns of an example into m.
    """
    several, size = shape[0] // len(words), math.prod(shape) // len(words)
    if several * len(words) != shape[0] or size > 2**32:
        raise ValueError(f"{tuple(shape)} is not a mask for {len(words)} examples.")
    place, stride = jnp.zeros(shape, jnp.uint32), 1
    for axis in range(len(shape) - 1, -1, -1):
        index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        if axis == 0 and several == 1:
            break
        index = index % np.uint32(several) if axis == 0 else index
        place += index * np.uint32(stride)
        stride *= shape[axis]
    words = jnp.repeat(words, several, axis=0) if several > 1 else words
    first, second = (words[:, i].reshape(-1, *(1,) * (len(shape) - 1)) for i in range(2))
    return mix(mix(place ^ first) + second)


def mix(h: Array) -> Array:
    """A hash of a word: uint32 to uint32, bijective."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> 15)
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
