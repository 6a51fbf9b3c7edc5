"""The layers that the architectures share: Dense, LayerNorm, dropout and their numerics.

Parameters are float32. `dtype` is the compute dtype: operands of matrix products are cast to it,
products accumulate in float32, and normalisation statistics, softmax and logits stay in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

Array = jax.Array
initializers = jax.nn.initializers
LAYER_NORM_EPSILON = 1e-6


def zeros(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Initialiser: all zeros."""
    del key
    return jnp.zeros(shape, dtype)


def constant(value: float):
    """Initialiser: `value` everywhere."""
    return initializers.constant(value)


class Dense(nnx.Module):
    """`x @ kernel + bias`: (..., in_features) to (..., *features).

    `features` may have several axes, e.g. (3, heads, head_dim); `batch_axes` says how many leading
    ones of them are separate kernels, initialised apart (q, k and v of the fused projection).
    """

    def __init__(
        self,
        in_features: int,
        features: int | tuple[int, ...],
        *,
        kernel_init=initializers.xavier_uniform,
        bias_init=zeros,
        batch_axes: int = 0,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        features = (features,) if isinstance(features, int) else tuple(features)
        # fan_in and fan_out are those of the flattened matrix, as in the released models.
        init = kernel_init(
            in_axis=0,
            out_axis=tuple(range(1 + batch_axes, 1 + len(features))),
            batch_axis=tuple(range(1, 1 + batch_axes)),
        )
        self.kernel = nnx.Param(init(rngs.params(), (in_features, *features), jnp.float32))
        self.bias = nnx.Param(bias_init(rngs.params(), features, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array, *, out_dtype=None) -> Array:
        kernel, bias = self.kernel[...], self.bias[...]
        y = jax.lax.dot_general(
            x.astype(self.dtype),
            kernel.reshape(kernel.shape[0], -1).astype(self.dtype),
            (((x.ndim - 1,), (0,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        y = (y + bias.reshape(-1)).astype(out_dtype or self.dtype)
        return y.reshape(*x.shape[:-1], *bias.shape)


class LayerNorm(nnx.Module):
    """Normalises the last axis; statistics in float32, epsilon 1e-6."""

    def __init__(self, features: int, *, dtype=jnp.float32, rngs: nnx.Rngs):
        del rngs
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        x = x.astype(jnp.float32)
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        y = centred * jax.lax.rsqrt(variance + LAYER_NORM_EPSILON)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


def dropout(x: Array, rate: float, key: Array | None, *, shape: Sequence[int] | None = None):
    """Zeroes entries with probability `rate` and rescales the rest; identity when `key` is None.

    `shape` broadcasts the mask: (b, 1, 1) drops whole examples, which is stochastic depth.
    """
    if key is None or rate == 0.0:
        return x
    keep = jax.random.bernoulli(key, 1.0 - rate, shape or x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def fold(key: Array | None, index: int | Array) -> Array | None:
    """A key for the `index`-th use of `key`; None stays None (inference)."""
    return None if key is None else jax.random.fold_in(key, index)


def gelu(x: Array) -> Array:
    """GELU, tanh approximation: what the released models were trained with."""
    return jax.nn.gelu(x, approximate=True)
