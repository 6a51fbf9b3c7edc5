"""The row of numerics in the words of ONNX, for models that are translated.

Traced as they are written, LayerNorm and GELU become ten elementwise operations each, and products
Einsum, which ONNX Runtime neither fuses nor packs. These forms compute the same, and the translator
has one operation for each.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vit_jax.numerics import PLAIN, plain

Array = jax.Array


def dense(
    x: Array,
    kernel: Array,
    bias: Array,
    *,
    activation: Callable[[Array], Array] | None = None,
    out_dtype: DTypeLike | None = None,
) -> Array:
    """Gemm: rows times a kernel of two axes, which is packed when the model is loaded, and bias."""
    del out_dtype
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[0], -1))
    y = (y + bias.reshape(-1)).reshape(*x.shape[:-1], *bias.shape)
    return activation(y) if activation else y


def norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """LayerNormalization."""
    layer = nnx.LayerNorm(x.shape[-1], epsilon=epsilon, rngs=nnx.Rngs(0))
    layer.scale, layer.bias = nnx.Param(scale), nnx.Param(bias)
    return layer(x)


def product(subscripts: str, a: Array, b: Array) -> Array:
    """MatMul, where it is one: the products of attention."""
    if subscripts == "bhqe,bhke->bhqk":
        return jnp.matmul(a, jnp.swapaxes(b, -1, -2))
    if subscripts == "bhqk,bhke->bhqe":
        return jnp.matmul(a, b)
    return plain.product(subscripts, a, b)


ONNX = PLAIN._replace(
    dense=dense,
    norm=norm,
    product=product,
    attention=functools.partial(plain.attention, product=product),
)
