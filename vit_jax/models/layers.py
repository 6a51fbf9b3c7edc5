"""The layers that the architectures share: Dense, LayerNorm, dropout and their numerics.

Parameters are float32. `dtype` is the compute dtype: operands of matrix products are cast to it,
products accumulate in float32, and normalisation statistics, softmax and logits stay in float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.experimental.xla_metadata import set_xla_metadata

from vit_jax.numerics import remat

Array = jax.Array
initializers = jax.nn.initializers


class Keys:
    """A fresh key at every call, for initialisers.

    `nnx.Rngs` counts in a variable, which under tracing costs most of the time of building a model.
    """

    def __init__(self, key: Array):
        self.key, self.count = key, 0

    def __call__(self) -> Array:
        self.count += 1
        return jax.random.fold_in(self.key, self.count)


def zeros(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Initialiser: all zeros."""
    del key
    return jnp.zeros(shape, dtype)


def constant(value: float):
    """Initialiser: `value` everywhere."""
    return initializers.constant(value)


def on_one_cpu() -> bool:
    """Whether programs are compiled for a single CPU device."""
    return jax.default_backend() == "cpu" and jax.device_count() == 1


def stored(dtype) -> Any:
    """The dtype that activations are kept in: `dtype`, but float32 on a CPU.

    CPUs have bfloat16 products and nothing else in it: every other operation converts back and
    forth, which costs more than the memory saves (docs/performance.md).
    """
    return jnp.float32 if on_one_cpu() else dtype


def settled(x: Array) -> Array:
    """x; on a CPU, its gradient is computed once.

    The gradient of the residual stream is a sum over all later layers. XLA there computes a sum
    anew in each program that reads it, which makes this one quadratic in the number of layers.
    """
    return _settled(x) if on_one_cpu() else x


@jax.custom_vjp
def _settled(x: Array) -> Array:
    return x


@jax.jit
def _itself(x: Array) -> Array:
    return x


def _settled_backward(_, dx: Array) -> tuple[Array]:
    with set_xla_metadata(inlineable="false"):  # nothing is fused over the edge of a call
        return (_itself(dx),)


_settled.defvjp(lambda x: (x, None), _settled_backward)


def affine(
    x: Array,
    kernel: Array,
    bias: Array,
    dtype,
    *,
    activation: Callable[[Array], Array] | None = None,
    recompute: bool = False,
    out_dtype=None,
) -> Array:
    """activation(x (..., i) times kernel (i, ...) plus bias), in `out_dtype` or as it is stored.

    Operands of the product are in `dtype`, and so are those of its gradients; sums are in float32.
    The leading axes are folded into one, so that the gradient of the kernel is a plain matrix
    product as well; over several axes, XLA's is twice as slow on CPU.
    With `recompute`, the gradient of the activation keeps the product and nothing else.
    """
    dtype, out_dtype = jnp.dtype(dtype), jnp.dtype(out_dtype or stored(dtype))
    rows = x.reshape(-1, x.shape[-1])
    if dtype == jnp.float32:
        y = jnp.tensordot(rows.astype(dtype), kernel, 1)
    elif on_one_cpu():
        y = bfloat16_product(rows, kernel.reshape(kernel.shape[0], -1))
        y = y.reshape(-1, *kernel.shape[1:])
    else:
        y = rounded_product(aligned(rows.astype(dtype), 1), aligned(kernel, 0), out_dtype)

    def finish(y: Array, bias: Array) -> Array:
        y = (y.astype(jnp.float32) + bias).astype(out_dtype)
        return activation(y) if activation else y

    y = remat.product(y)
    y = (jax.checkpoint(finish) if recompute else finish)(y, bias)
    return y.reshape(*x.shape[:-1], *kernel.shape[1:])


def aligned(x: Array, axis: int) -> Array:
    """x with zeros up to a multiple of 8 on `axis`: rows of 16 bytes, for the kernels of GPUs.

    Only H/14's patches of 588 numbers are not; their product with zeros added is the same.
    """
    padding = [(0, 0)] * x.ndim
    padding[axis] = (0, -x.shape[axis] % 8)
    return jnp.pad(x, padding) if padding[axis][1] else x


def summed_in_float32(multiply: Callable[..., Array], a: Array, b: Array) -> Array:
    """`multiply(a, b, preferred_element_type=float32)`, operands as they are.

    Of CPUs, which stand in for accelerators where there are several, XLA compiles some products of
    16 bits into what they cannot do; there the operands are cast, which gives the same sums.
    """
    multiply = functools.partial(multiply, preferred_element_type=jnp.float32)
    if a.dtype == jnp.float32:
        return multiply(a, b)
    cast = lambda a, b: multiply(a.astype(jnp.float32), b.astype(jnp.float32))  # noqa: E731
    return jax.lax.platform_dependent(a, b, cpu=cast, default=multiply)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rounded_product(x: Array, kernel: Array, out_dtype) -> Array:
    """x (r, i), of 16 bits, times kernel (i, ...) float32, rounded as x is; sums in float32.

    JAX's own gradient of a product that is returned in more bits than its operands have would be a
    product in float32, at half the speed and less. The gradient of the kernel is float32.
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
    """`einsum(subscripts, a, b)` of activations in one dtype, summed and returned in float32.

    Its gradients are products in that dtype too (see `rounded_product`).
    """
    return summed_in_float32(functools.partial(jnp.einsum, subscripts), a, b)


def _product_pull(subscripts, operands, dy):
    _, pull = jax.vjp(functools.partial(jnp.einsum, subscripts), *operands)
    return pull(dy.astype(operands[0].dtype))


product.defvjp(lambda subscripts, a, b: (product(subscripts, a, b), (a, b)), _product_pull)


@jax.custom_vjp
def bfloat16_product(x: Array, kernel: Array) -> Array:
    """x (r, i) times kernel (i, o) in bfloat16, summed in float32, for CPUs.

    XLA has a fast product only of operands that lie in rows: its own gradient of the kernel, which
    reads x in columns, runs at half the speed. This one turns an operand around first.
    """
    return _rows_product(x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16), 0)


def _rows_product(a: Array, b: Array, axis: int) -> Array:
    """a (r, i) times b (i, o), or with `axis` 1 times b (o, i)."""
    return jax.lax.dot_general(
        a, b, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _turned(x: Array) -> Array:
    """x (r, c) bfloat16 as (c, r), moved in memory; in one piece XLA would undo it."""
    rows, columns = x.shape
    bits = jax.lax.bitcast_convert_type(x, jnp.uint16)  # bfloat16 would be moved as float32
    if columns % 1024 == 0:  # the entries of a column would share a few lines of the cache
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
    return _rows_product(dy, kernel, 1), _rows_product(_turned(x), dy, 0)


bfloat16_product.defvjp(_product_forward, _product_backward)


class Dense(nnx.Module):
    """`x @ kernel + bias`: (..., in_features) to (..., *features); see `affine`.

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
        keys: Keys,
    ):
        features = (features,) if isinstance(features, int) else tuple(features)
        # fan_in and fan_out are those of the flattened matrix, as in the released models.
        init = kernel_init(
            in_axis=0,
            out_axis=tuple(range(1 + batch_axes, 1 + len(features))),
            batch_axis=tuple(range(1, 1 + batch_axes)),
        )
        self.kernel = nnx.Param(init(keys(), (in_features, *features), jnp.float32))
        self.bias = nnx.Param(bias_init(keys(), features, jnp.float32))
        self.dtype = dtype

    def __call__(self, x: Array, **finish: Any) -> Array:
        # The kernel keeps its axes: folding (3, heads, e) would undo a split over the heads.
        return affine(x, self.kernel[...], self.bias[...], self.dtype, **finish)


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


class LayerNorm(nnx.Module):
    """Normalises the last axis; statistics in float32."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, dtype=jnp.float32, keys: Keys):
        del keys
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Array) -> Array:
        # Rows, since sums over two axes make XLA keep the images of a batch apart in GPU memory.
        rows = x.reshape(-1, x.shape[-1])
        y = normalised(rows, self.scale[...], self.bias[...], self.epsilon, stored(self.dtype))
        return y.reshape(x.shape)


class Model(nnx.Module):
    """What any architecture can say about itself, read off its `config`."""

    config: Any

    @property
    def variant(self) -> str:
        return self.config.variant

    @property
    def image_size(self) -> tuple[int, int]:
        return self.config.image_size

    @property
    def labels(self) -> tuple[str, ...]:
        return self.config.labels

    @property
    def preprocessing(self) -> dict[str, Any]:
        return dict(self.config.preprocessing)

    @property
    def num_params(self) -> int:
        return sum(int(leaf.size) for leaf in jax.tree.leaves(nnx.state(self, nnx.Param)))


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


#: The tanh approximation is what the released models were trained with.
ACTIVATIONS = {
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
