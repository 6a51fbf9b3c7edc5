"""LayerNorm whose backward pass stores its input and two numbers per row."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

Array = jax.Array


def norm(x: Array, scale: Array, bias: Array, epsilon: float, *, dtype: DTypeLike) -> Array:
    """LN of x (..., d), in `dtype`; statistics in float32."""
    # Flattened to rows: with sums over two axes XLA chooses a slower layout on GPU.
    y = normalised(x.reshape(-1, x.shape[-1]), scale, bias, epsilon, dtype)
    return y.reshape(x.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalised(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias of each row of x (r, d), in `dtype`.

    The backward pass stores x and two numbers per row, not the normalised rows in float32.
    """
    return _normalised_forward(x, scale, bias, epsilon, dtype)[0]


def _normalised_forward(x, scale, bias, epsilon, dtype):
    centred = x.astype(jnp.float32)
    mean = centred.mean(axis=-1, keepdims=True)
    centred = centred - mean
    rate = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return (centred * rate * scale + bias).astype(dtype), (x, mean, rate, scale)


def _normalised_backward(epsilon, dtype, kept, dy):
    x, mean, rate, scale = jax.lax.optimization_barrier(kept)  # or the rows would be kept
    unit = (x.astype(jnp.float32) - mean) * rate
    dy = dy.astype(jnp.float32)
    d_unit = dy * scale
    along = (d_unit * unit).mean(axis=-1, keepdims=True)
    dx = rate * (d_unit - d_unit.mean(axis=-1, keepdims=True) - along * unit)
    return dx.astype(x.dtype), (dy * unit).sum(0), dy.sum(0)


normalised.defvjp(_normalised_forward, _normalised_backward)
