"""Normalisation, attention and GELU as the paper has them, in XLA's own operations."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from vit_jax.numerics.dense import product

Array = jax.Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalised(x: Array, scale: Array, bias: Array, epsilon: float, dtype) -> Array:
    """(x - mean) / sqrt(variance + epsilon) * scale + bias of each row of x (r, d), in `dtype`.

    For the gradient, x and two numbers per row are kept, not the normalised rows in float32.
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


#: The tanh approximation is what the released models were trained with.
ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    # Of other families' weights:
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


def attention_weights(q: Array, k: Array, extra_logits: Array | None = None) -> Array:
    """A = softmax(q k^T / sqrt(D_h)), float32 (Appendix A). Twice (b, h, n, e) to (b, h, n, n)."""
    logits = product("bhqe,bhke->bhqk", q, k)
    if extra_logits is not None:
        logits = logits + extra_logits
    return jax.nn.softmax(logits / q.shape[-1] ** 0.5, axis=-1)


def attend(weights: Array, v: Array) -> Array:
    """A v: weights (b, h, n, m) float32 and v (b, h, m, e) to (b, h, n, e) float32."""
    return product("bhqk,bhke->bhqe", weights.astype(v.dtype), v)
