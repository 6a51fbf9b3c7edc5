"""Checks on the chip that the attention kernel is correct and fast before it is used."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.numerics import plain, tpu
from vit_jax.numerics.dense import product

Array = jax.Array
#: Largest difference of values and gradients, relative to the largest number, that rounding to
#: bfloat16's 8 bits explains: 2^-8 in each of the two, and as much again in what is summed.
TOLERANCE = 2.0**-6
#: The fallback.
XLA = functools.partial(plain.attention, product=product)


class Verdict(NamedTuple):
    """fused: whether to use the kernel. text: the reason, for the plan."""

    fused: bool
    text: str


def verify(
    images: int,
    tokens: int,
    heads: int,
    size: int,
    dtype: str,
    *,
    kernel: Callable[[Array], Array] = tpu.attention,
    reference: Callable[[Array], Array] = XLA,
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 10,
) -> Verdict:
    """Runs `kernel` and `reference`, values and gradients, on the shapes of a run's device.

    The verdict is cached for the chip, shapes and functions for the life of the process.
    """
    chip = jax.devices()[0].device_kind
    return _verify(chip, (images, tokens, 3, heads, size), dtype, kernel, reference, clock, repeats)


@functools.cache
def _verify(chip, shape, dtype, kernel, reference, clock, repeats) -> Verdict:
    keys = jax.random.split(jax.random.key(0))
    qkv = jax.random.normal(keys[0], shape, dtype)
    dy = jax.random.normal(keys[1], (*shape[:2], shape[3] * shape[4]), dtype)
    try:
        found, seconds = _run(kernel, qkv, dy, clock, repeats)
    except Exception as error:  # another compiler or chip may fail in any way
        reason = (str(error).strip().split("\n") or [""])[0][:200]
        return Verdict(False, f"attention by XLA: the kernel does not run on {chip} ({reason})")
    wanted, others = _run(reference, qkv, dy, clock, repeats)
    difference = max(_difference(a, b) for a, b in zip(found, wanted, strict=True))
    text = f"on {chip} it differs by {difference:.2g} and takes {seconds / others:.2f} of the time"
    if not difference <= TOLERANCE:  # also true for NaN
        return Verdict(False, f"attention by XLA: the kernel is wrong: {text}")
    if not seconds < others:
        return Verdict(False, f"attention by XLA: the kernel is slower: {text}")
    return Verdict(True, f"attention by the kernel, checked against XLA's: {text}")


def _run(
    attention: Callable, qkv: Array, dy: Array, clock: Callable, repeats: int
) -> tuple[tuple[Array, Array], float]:
    """(y, dqkv), and the shortest time that computing them took."""

    @jax.jit
    def both(qkv: Array, dy: Array) -> tuple[Array, Array]:
        y, pull = jax.vjp(attention, qkv)
        return y, pull(dy.astype(y.dtype))[0]

    results, seconds = jax.block_until_ready(both(qkv, dy)), []
    for _ in range(repeats):
        start = clock()
        jax.block_until_ready(both(qkv, dy))
        seconds.append(clock() - start)
    return results, min(seconds)


def _difference(found: Array, wanted: Array) -> float:
    found, wanted = found.astype(jnp.float32), wanted.astype(jnp.float32)
    return float(jnp.abs(found - wanted).max() / jnp.abs(wanted).max())
