"""Numerics that are faster with XLA on a single CPU device; measured in docs/performance.md."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.typing import DTypeLike

from vit_jax.numerics import plain

Array = jax.Array


#: Dtype of activations between products: CPUs accelerate bf16 matmuls only; elementwise operations
#: convert back and forth, which costs more than the memory saves.
ACTIVATION_DTYPE = jnp.dtype(jnp.float32)


def add(z: Array, branch: Array) -> Array:
    """branch + z, with a gradient that is computed once.

    The gradient of the residual stream is a sum over all later layers. XLA's CPU backend recomputes
    a sum in each fusion that reads it, so the cost would be quadratic in the number of layers.
    """
    return _fusion_barrier(plain.add(z, branch))


def multiply(x: Array, kernel: Array, out_dtype: DTypeLike) -> Array:
    """x (r, i) times kernel (i, ...) with operands in bfloat16, in float32."""
    del out_dtype
    y = bfloat16_product(x, kernel.reshape(kernel.shape[0], -1))
    return y.reshape(-1, *kernel.shape[1:])


@jax.custom_vjp
def _fusion_barrier(x: Array) -> Array:
    return x


@jax.jit
def _identity(x: Array) -> Array:
    return x


def _fusion_barrier_backward(_, dx: Array) -> tuple[Array]:
    with set_xla_metadata(inlineable="false"):  # a call is a fusion barrier
        return (_identity(dx),)


_fusion_barrier.defvjp(lambda x: (x, None), _fusion_barrier_backward)


@jax.custom_vjp
def bfloat16_product(x: Array, kernel: Array) -> Array:
    """x (r, i) times kernel (i, o) in bfloat16, summed in float32, for CPUs.

    XLA's product is fast for row-major operands only: its own gradient of the kernel, which reads x
    by columns, runs at half the speed. This one transposes an operand first.
    """
    return _rows_product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 0)


def _rows_product(a: Array, b: Array, axis: int) -> Array:
    """a (r, i) times b (i, o), or with `axis` 1 times b (o, i)."""
    return jax.lax.dot_general(
        a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _transposed(x: Array) -> Array:
    """x (r, c) bfloat16 transposed in memory to (c, r), by halves: XLA would undo a plain one."""
    rows, columns = x.shape
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)  # bfloat16 would be transposed as float32
    if columns % 1024 == 0:  # otherwise a column maps to a few cache lines
        bits = jax.lax.optimization_barrier(jnp.pad(bits, ((0, 0), (0, 16))))
    half = rows // 2
    turned = jnp.concatenate([bits[:half, :columns].T, bits[half:, :columns].T], axis=1)
    return jax.lax.bitcast_convert_type(jax.lax.optimization_barrier(turned), jnp.bfloat16)


def _product_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    x, kernel = jax.lax.optimization_barrier(x.astype(jnp.bfloat16)), kernel.astype(jnp.bfloat16)
    return _rows_product(x, kernel, 0), (x, kernel)


def _product_backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, kernel = kept
    dy = jax.lax.optimization_barrier(dy.astype(jnp.bfloat16))
    return _rows_product(dy, kernel, 1), _rows_product(_transposed(x), dy, 0)


bfloat16_product.defvjp(_product_forward, _product_backward)
