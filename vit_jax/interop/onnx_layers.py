"""The layers in the words of ONNX, while a model is translated.

Traced as they are written, LayerNorm and GELU become ten elementwise operations each, and products
Einsum, which ONNX Runtime neither fuses nor packs. These forms compute the same, and the translator
has one operation for each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.models import layers
from vit_jax.numerics import plain


def layer_norm(self: layers.LayerNorm, x: jax.Array) -> jax.Array:
    """LayerNormalization."""
    norm = nnx.LayerNorm(x.shape[-1], epsilon=self.epsilon, rngs=nnx.Rngs(0))
    norm.scale, norm.bias = self.scale, self.bias
    return norm(x)


def dense(
    self: layers.Dense, x: jax.Array, *, activation: Any = None, **training: Any
) -> jax.Array:
    """Gemm: rows times a kernel of two axes, which is packed when the model is loaded, and bias."""
    del training
    kernel, bias = self.kernel[...], self.bias[...]
    y = jnp.matmul(x.reshape(-1, x.shape[-1]), kernel.reshape(kernel.shape[0], -1))
    y = (y + bias.reshape(-1)).reshape(*x.shape[:-1], *bias.shape)
    return activation(y) if activation else y


def attention_weights(
    q: jax.Array, k: jax.Array, extra_logits: jax.Array | None = None
) -> jax.Array:
    """MatMul and Softmax."""
    logits = jnp.matmul(q, jnp.swapaxes(k, -1, -2))
    if extra_logits is not None:
        logits = logits + extra_logits
    return jax.nn.softmax(logits / q.shape[-1] ** 0.5, axis=-1)


def attend(weights: jax.Array, v: jax.Array) -> jax.Array:
    """MatMul."""
    return jnp.matmul(weights, v)


@contextlib.contextmanager
def in_words_of_onnx() -> Iterator[None]:
    """Models that are traced inside of this use the forms above."""
    with contextlib.ExitStack() as stack:
        replace = mock.patch.object
        stack.enter_context(replace(layers.LayerNorm, "__call__", layer_norm))
        stack.enter_context(replace(layers.Dense, "__call__", dense))
        stack.enter_context(replace(plain, "attention_weights", attention_weights))
        stack.enter_context(replace(plain, "attend", attend))
        stack.enter_context(
            # looked up when they are called: the translator replaces jax.nn.gelu
            mock.patch.dict(
                plain.ACTIVATIONS,
                gelu_tanh=lambda x: jax.nn.gelu(x, approximate=True),
                gelu=lambda x: jax.nn.gelu(x, approximate=False),
            )
        )
        yield
