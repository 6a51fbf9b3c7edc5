"""The paper's formulas in float32: the reference that tests compare all other numerics with."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Activation = Callable[[Array], Array]


def dense(
    x: Array, kernel: Array, bias: Array, *, activation: Activation | None = None, out_dtype=None
) -> Array:
    """activation(x W + b): x (..., i), W (i, ...). All is float32, `out_dtype` too."""
    del out_dtype
    y = jnp.tensordot(x, kernel, 1) + bias
    return activation(y) if activation else y


def norm(x: Array, scale: Array, bias: Array, epsilon: float) -> Array:
    """LN: each row of x (..., d) with mean 0 and variance 1, scaled and shifted."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(centred).mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt(variance + epsilon) * scale + bias


def product(subscripts: str, a: Array, b: Array) -> Array:
    """Products of activations with activations."""
    return jnp.einsum(subscripts, a, b)


def heads(qkv: Array) -> list[Array]:
    """[q, k, v], three of (b, h, n, e), of what the product with U_qkv gives, (b, n, 3, h, e)."""
    return [part[0] for part in jnp.split(qkv.transpose(2, 0, 3, 1, 4), 3)]


def attention_weights(
    q: Array, k: Array, extra_logits: Activation | None = None, *, product=product
) -> Array:
    """A = softmax(q k^T / sqrt(D_h)), float32 (Eq. 6). Twice (b, h, n, e) to (b, h, n, n).

    `extra_logits` of q (Table 8) are added to q k^T.
    """
    extra = extra_logits(q) if extra_logits else None
    logits = product("bhqe,bhke->bhqk", q, k)
    logits = logits if extra is None else logits + extra
    return jax.nn.softmax(logits / q.shape[-1] ** 0.5, axis=-1)


def attend(weights: Array, v: Array, *, product=product) -> Array:
    """SA = A v (Eq. 7), the heads side by side: (b, h, n, m) and (b, h, m, e) to (b, n, h e)."""
    y = product("bhqk,bhke->bhqe", weights.astype(v.dtype), v).transpose(0, 2, 1, 3)
    return y.reshape(*y.shape[:2], -1)


def attention(qkv: Array, extra_logits: Activation | None = None, *, product=product) -> Array:
    """[SA_1; ...; SA_h] of Eq. 8: (b, n, 3, h, e) to (b, n, h e)."""
    q, k, v = heads(qkv)
    return attend(attention_weights(q, k, extra_logits, product=product), v, product=product)


def convolution(
    x: Array, kernel: Array, stride: int, padding: str | list[tuple[int, int]]
) -> Array:
    """x (b, h, w, c) with a kernel (kh, kw, c, features)."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def add(z: Array, branch: Array) -> Array:
    """The residual of Eq. 2 and 3."""
    return branch + z


#: The tanh approximation is what the released models were trained with. jax.nn.gelu is looked up
#: when it is called, so that converters can replace it.
ACTIVATIONS: dict[str, Activation] = {
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    # For weights of other families:
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}
