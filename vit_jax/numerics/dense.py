"""Matrix products: operands in the compute dtype, accumulation in float32, gradients likewise."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vit_jax.numerics import mesh, plain, remat

Array = jax.Array
#: (rows (r, i), kernel (i, ...), out_dtype) to (r, ...), in float32 or rounded to `out_dtype`.
Multiply = Callable[[Array, Array, DTypeLike], Array]


def affine(
    x: Array,
    kernel: Array,
    bias: Array,
    *,
    multiply: Multiply,
    activation_dtype: DTypeLike,
    recompute: bool = False,
    activation: Callable[[Array], Array] | None = None,
    out_dtype: DTypeLike | None = None,
) -> Array:
    """activation(x (..., i) times kernel (i, ...) plus bias), in `out_dtype` or `activation_dtype`.

    The leading axes are flattened, so that the gradient of the kernel is a plain matrix product;
    over several axes, XLA's is twice as slow on CPU. The kernel keeps its axes: flattening
    (3, heads, e) would undo sharding over the heads.
    With `recompute`, the backward pass of the activation stores the product only.
    """
    dtype = jnp.dtype(out_dtype or activation_dtype)

    def epilogue(y: Array, bias: Array) -> Array:
        y = (y.astype(jnp.float32) + bias).astype(dtype)
        return activation(y) if activation else y

    x = mesh.split_by_image(x)
    y = remat.product(multiply(x.reshape(-1, x.shape[-1]), kernel, dtype))
    y = (jax.checkpoint(epilogue) if activation and recompute else epilogue)(y, bias)
    return mesh.split_by_image(y.reshape(*x.shape[:-1], *kernel.shape[1:]))


def float32_product(x: Array, kernel: Array, out_dtype: DTypeLike) -> Array:
    """x (r, i) times kernel (i, ...), both float32."""
    del out_dtype
    return jnp.tensordot(x.astype(jnp.float32), kernel, 1)


def bfloat16_product(x: Array, kernel: Array, out_dtype: DTypeLike) -> Array:
    """x (r, i) times kernel (i, ...) with operands in bfloat16, for accelerators."""
    return rounded_product(aligned(x.astype(jnp.bfloat16), 1), aligned(kernel, 0), out_dtype)


def convolution(
    x: Array, kernel: Array, stride: int, padding: str | list[tuple[int, int]]
) -> Array:
    """x (b, h, w, c) with a kernel (kh, kw, c, features) of the same dtype."""
    x = mesh.split_by_image(x)
    return mesh.split_by_image(remat.product(plain.convolution(x, kernel, stride, padding)))


def aligned(x: Array, axis: int) -> Array:
    """x zero-padded to a multiple of 8 on `axis`: 16-byte rows, for GPU kernels.

    Only H/14 needs it (588 numbers per patch); padding does not change the product.
    """
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % 8)
    return jnp.pad(x, padding) if padding[axis][1] else x


def summed_in_float32(multiply: Callable[..., Array], a: Array, b: Array) -> Array:
    """`multiply(a, b, preferred_element_type=float32)`, operands as they are.

    XLA's CPU backend lacks some bf16 matmuls (seen when CPU devices emulate a mesh); there the
    operands are upcast, which gives the same result.
    """
    multiply = functools.partial(multiply, preferred_element_type=jnp.float32)
    if a.dtype == jnp.float32:
        return multiply(a, b)
    cast = lambda a, b: multiply(a.astype(jnp.float32), b.astype(jnp.float32))  # noqa: E731
    return jax.lax.platform_dependent(a, b, cpu=cast, default=multiply)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded_product(x: Array, kernel: Array, out_dtype: DTypeLike) -> Array:
    """x (r, i), 16-bit, times kernel (i, ...) float32 rounded to the same dtype; sums in float32.

    JAX's own gradient of a product with a wider output dtype would be a float32 product, at half
    the speed or less. The gradient of the kernel is float32.
    """
    return _rounded_product_forward(x, kernel, out_dtype)[0]


def _rounded_product_forward(x, kernel, out_dtype):
    kernel = kernel.astype(x.dtype)
    return jnp.tensordot(x, kernel, 1, preferred_element_type=out_dtype), (x, kernel)


def _rounded_product_backward(out_dtype, kept, dy):
    x, kernel = kept
    dy = dy.astype(x.dtype)
    features = tuple(range(1, dy.ndim))
    dx = jax.lax.dot_general(dy, kernel, ((features, features), ((), ())))
    return dx, summed_in_float32(functools.partial(jnp.tensordot, axes=(0, 0)), x, dy)


rounded_product.defvjp(_rounded_product_forward, _rounded_product_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def product(subscripts: str, a: Array, b: Array) -> Array:
    """`einsum(subscripts, a, b)` of activations in one dtype, accumulated and returned in float32.

    Its gradients are products in that dtype too (see `rounded_product`).
    """
    return summed_in_float32(functools.partial(jnp.einsum, subscripts), a, b)


def _product_pull(subscripts, operands, dy):
    _, pull = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
    return pull(dy.astype(operands[0].dtype))


product.defvjp(lambda subscripts, a, b: (product(subscripts, a, b), (a, b)), _product_pull)
