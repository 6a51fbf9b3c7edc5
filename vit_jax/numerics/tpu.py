"""Numerics that are faster with XLA on TPU; estimated in docs/performance.md.

Activations stay (b, n, d): flattening to rows would change the layout, as 197 tokens are not a
multiple of the 8 rows of a tile.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.errors import UserError
from vit_jax.numerics import mesh, remat, short_attention
from vit_jax.numerics.dense import summed_in_float32

Array = jax.Array
Activation = Callable[[Array], Array]


def fused_attention(
    asked: str, *, backend: str, dtype: str, heads: int, head_size: int, tokens: int, relative: bool
) -> bool:
    """Whether to use the kernel of `short_attention`.

    Args:
      asked: `model.attention`; "auto" and "fused" mean this kernel.
      tokens: 0 if there is no attention over all of them.

    Raises:
      UserError: `asked` is "fused" and it is not supported.
    """
    fits = short_attention.fits(tokens, heads * head_size, jnp.dtype(dtype).itemsize)
    obstacles = {
        "the device is not a TPU": backend != "tpu",
        "position embeddings are relative": relative,
        "attention is axial": tokens == 0,
        f"the head size is {head_size}, not a multiple of 8": head_size % 8 != 0,
        f"{tokens} tokens do not fit the chip's vector memory": not fits,
    }
    found = [text for text, there in obstacles.items() if there]
    if asked == "fused" and found:
        raise UserError(f"model.attention='fused' is not supported: {found[0]}; use 'auto'.")
    return asked in ("auto", "fused") and not found


def attention(qkv: Array, extra_logits: None = None) -> Array:
    """softmax(q k^T / sqrt(e)) v by one kernel: (b, n, 3, h, e) to (b, n, h e)."""
    assert extra_logits is None  # `fused_attention` says when
    return short_attention.attention(qkv)


def dense(
    x: Array,
    kernel: Array,
    bias: Array,
    *,
    dtype: jnp.dtype,
    activation: Activation | None = None,
    out_dtype: DTypeLike | None = None,
) -> Array:
    """activation(x (..., i) times kernel (i, ...) plus bias), in `out_dtype` or `dtype`.

    The axes (3, heads, e) of a kernel are flattened: XLA gives a product with five axes a layout
    with the batch in the lanes, and copies it. Not if the heads are sharded, which it would undo.
    """
    out, features = jnp.dtype(out_dtype or dtype), kernel.shape[1:]
    if not mesh.heads_are_split(kernel):
        kernel, bias = kernel.reshape(len(kernel), -1), bias.reshape(-1)
    x = mesh.split_by_image(x.astype(dtype))
    y = remat.product(mesh.split_by_image(affine(x, kernel, bias, out)))
    y = y.reshape(*x.shape[:-1], *features)
    return activated(activation, y) if activation else y


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def affine(x: Array, kernel: Array, bias: Array, out_dtype: jnp.dtype) -> Array:
    """x (..., i) times kernel (i, ...) plus bias; sums, and gradients of parameters, in float32."""
    return _affine_forward(x, kernel, bias, out_dtype)[0]


def _affine_forward(x, kernel, bias, out_dtype):
    kernel = kernel.astype(x.dtype)
    multiply = functools.partial(jnp.tensordot, axes=1)
    y = summed_in_float32(multiply, x, mesh.whole(kernel)) + bias
    return y.astype(out_dtype), (x, kernel)


def _affine_backward(out_dtype, kept, dy):
    x, kernel = kept
    dy = dy.astype(x.dtype)
    rows, features = tuple(range(x.ndim - 1)), tuple(range(x.ndim - 1, dy.ndim))
    dx = jnp.tensordot(dy, mesh.whole(kernel), (features, tuple(range(1, kernel.ndim))))
    over_rows = functools.partial(jnp.tensordot, axes=(rows, rows))
    multiply = functools.partial(summed_in_float32, over_rows)
    d_kernel = mesh.gradient_of_kernel(multiply, x, dy) if dy.ndim == x.ndim else multiply(x, dy)
    if x.ndim == 3 and kernel.shape[1:] == (
        3 * len(kernel),
    ):  # a kernel's result: nothing is fused
        ones = jnp.ones((*x.shape[:-1], 8), x.dtype)  # with one row, XLA would make it a sum
        return dx, d_kernel, summed_in_float32(over_rows, ones, dy)[0]
    return dx, d_kernel, dy.astype(jnp.float32).sum(rows)


affine.defvjp(_affine_forward, _affine_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def activated(activation: Activation, x: Array) -> Array:
    """activation(x); the backward pass stores x only."""
    return activation(x)


activated.defvjp(
    lambda activation, x: (activation(x), x),
    lambda activation, x, dy: jax.vjp(activation, x)[1](dy),
)


def norm(x: Array, scale: Array, bias: Array, epsilon: float, *, dtype: DTypeLike) -> Array:
    """LN of x (..., d), in `dtype`; statistics in float32, both in one pass."""
    x = x.astype(jnp.float32)
    mean = x.mean(axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.square(x).mean(axis=-1, keepdims=True) - mean * mean, 0.0)
    return ((x - mean) * jax.lax.rsqrt(variance + epsilon) * scale + bias).astype(dtype)
