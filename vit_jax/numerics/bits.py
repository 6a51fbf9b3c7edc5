"""Random bits of dropout: a hash of what they are for, computed where they are used.

A bit follows from seed, step, place in the model and place in the global batch: it is the same on
every mesh, for any number of processes and micro-batches, and after a resume. Neither bits nor
masks are kept for the backward pass, which computes them again (docs/performance.md, decision 9).

`mix` is "lowbias32" of Chris Wellons' hash-prospector (2018, public domain): a bijection of 32-bit
words, each bit of which depends on all. It is no cipher; tests/numerics/test_bits.py tests it.
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
    """key: one of `jax.random`, of seed, step and place in the model. rows: (b,) uint32, the number
    of each example in the global batch."""

    key: Array
    rows: Array


#: Of dropout and stochastic depth: training's own key, or one of `jax.random`; None is inference.
Randomness = Key | Array | None


def fold(key: Key, index: Array | int) -> Key:
    """The key of the `index`-th use of `key`."""
    return key._replace(key=jax.random.fold_in(key.key, index))


def split(key: Key) -> tuple[Key, Array]:
    """A key for the model, and one of `jax.random` for other draws, which each micro-batch has."""
    own, other = jax.random.split(key.key)
    return key._replace(key=own), jax.random.fold_in(other, key.rows[0])


def dropout(x: Array, rate: float, key: Key, shape: Sequence[int] | None = None) -> Array:
    """x with entries zero at probability `rate` and the others divided by 1 - rate.

    Args:
      x: (m b, ...) for the b examples of `key`.
      shape: of the mask, which is broadcast to x; (b, 1, 1) drops whole examples.
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
    """Words below it are dropped: the share `rate` of all, to 2^-32."""
    return np.uint32(min(round(rate * 2**32), 2**32 - 1))


def folded(key: Array, numbers: Array) -> Array:
    """(b,) keys of `jax.random`, one for each of some numbers (b,)."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, numbers)


def words_of(key: Key) -> Array:
    """(b, 2) uint32: 64 bits for each example, by JAX's generator, which is sound and slow."""
    keys = folded(key.key, key.rows)
    return jax.lax.optimization_barrier(jax.random.key_data(keys)[:, :2])  # small: so it is kept


def random_words(words: Array, shape: Sequence[int]) -> Array:
    """uint32 of `shape`, each a hash of its example's `words` (b, 2) and of its place there.

    shape: (m b, ...) of b examples; axial attention folds rows or columns of an example into m.
    """
    several, size = shape[0] // len(words), math.prod(shape) // len(words)
    if several * len(words) != shape[0] or size > 2**32:
        raise ValueError(f"{tuple(shape)} is no mask of {len(words)} examples.")
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
    """A word, hashed: uint32 to uint32, one to one."""
    h = h ^ (h >> 16)
    h = h * np.uint32(0x7FEB352D)
    h = h ^ (h >> 15)
    h = h * np.uint32(0x846CA68B)
    return h ^ (h >> 16)
