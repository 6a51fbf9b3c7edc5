"""The layers that the architectures share: Dense, LayerNorm, MLP and dropout.

Parameters are float32. The `Numerics` of a layer defines how a product or a norm is computed:
operands of products may be rounded; sums, statistics and logits are float32.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from vit_jax.errors import UserError, nearest
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import ACTIVATIONS, Numerics, bits
from vit_jax.numerics.bits import Randomness

Array = jax.Array
initializers = jax.nn.initializers


class Keys:
    """Initial values, each with a fresh key. key: None: zeros, where only shapes are wanted.

    `nnx.Rngs` counts in a variable, which under tracing dominates the time to build a model.
    """

    def __init__(self, key: Array | None):
        self.key, self.count = key, 0

    def __call__(self, init: Callable[..., Array], shape: Sequence[int]) -> Array:
        """float32 values of the shape by an initialiser of `jax.nn.initializers`."""
        if self.key is None:
            return jnp.zeros(shape, jnp.float32)
        self.count += 1
        return init(jax.random.fold_in(self.key, self.count), shape, jnp.float32)


def zeros(key: Array, shape: Sequence[int], dtype=jnp.float32) -> Array:
    """Initialiser: all zeros."""
    del key
    return jnp.zeros(shape, dtype)


def all_zeros(**_) -> Callable[..., Array]:
    """`kernel_init` of a zero-initialised head."""
    return zeros


def constant(value: float):
    """Initialiser: `value` everywhere."""
    return initializers.constant(value)


class Dense(nnx.Module):
    """`x @ kernel + bias`: (..., in_features) to (..., *features).

    `features` may have several axes, e.g. (3, heads, head_dim). The first `batch_axes` of them are
    separate kernels, initialised separately (q, k and v of the fused projection).
    """

    def __init__(
        self,
        in_features: int,
        features: int | tuple[int, ...],
        *,
        kernel_init=initializers.xavier_uniform,
        bias_init=zeros,
        batch_axes: int = 0,
        numerics: Numerics,
        keys: Keys,
    ):
        features = (features,) if isinstance(features, int) else tuple(features)
        # fan_in and fan_out are those of the flattened matrix, as in the released models.
        init = kernel_init(
            in_axis=0,
            out_axis=tuple(range(1 + batch_axes, 1 + len(features))),
            batch_axis=tuple(range(1, 1 + batch_axes)),
        )
        self.kernel = nnx.Param(keys(init, (in_features, *features)))
        self.bias = nnx.Param(keys(bias_init, features))
        self.dense = numerics.dense

    def __call__(
        self,
        x: Array,
        *,
        activation: Callable[[Array], Array] | None = None,
        out_dtype: DTypeLike | None = None,
    ) -> Array:
        kernel, bias = self.kernel[...], self.bias[...]
        return self.dense(x, kernel, bias, activation=activation, out_dtype=out_dtype)


class LayerNorm(nnx.Module):
    """Normalises the last axis; statistics in float32."""

    def __init__(self, features: int, *, epsilon: float = 1e-6, numerics: Numerics):
        self.scale = nnx.Param(jnp.ones((features,), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon, self.norm = epsilon, numerics.norm

    def __call__(self, x: Array) -> Array:
        return self.norm(x, self.scale[...], self.bias[...], self.epsilon)


class MLP(nnx.Module):
    """Two dense layers with a GELU between. (b, n, d) to (b, n, d)."""

    def __init__(self, config: ViTConfig, numerics: Numerics, *, keys: Keys):
        d, small = config.hidden_size, initializers.normal(1e-6)
        dense = functools.partial(Dense, bias_init=small, numerics=numerics, keys=keys)
        self.dense1 = dense(d, config.mlp_dim)
        self.dense2 = dense(config.mlp_dim, d)
        self.rate, self.activation = config.dropout_rate, ACTIVATIONS[config.activation]

    def __call__(self, x: Array, key: Randomness = None) -> Array:
        x = dropout(self.dense1(x, activation=self.activation), self.rate, fold(key, 0))
        return dropout(self.dense2(x), self.rate, fold(key, 1))


class Model(nnx.Module):
    """Facts that every architecture has, from its `config`."""

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


#: Larger floats cannot be images in [-1, 1]; noise and other normalisations stay below.
LARGEST_PIXEL = 10.0


def with_names(out: dict[str, Any], asked: bool | Collection[str]) -> dict[str, Any]:
    """The intermediates of a model.

    Raises:
      UserError: one of the names that were asked for is not among them.
    """
    names = () if isinstance(asked, bool) else (asked,) if isinstance(asked, str) else asked
    for name in names:
        if name not in out:
            raise UserError(f"This model has no intermediate {name!r}.{nearest(name, out)}")
    return out


def check_images(images: Any, config: Any, *, exactly: bool = False) -> None:
    """Raises UserError unless given a batch of images (b, h, w, c) in [-1, 1].

    With `exactly`, the images must have `config.image_size`.

    Values are checked for concrete arrays only: under jit nothing is added to the program.
    """
    wrong = ""
    if not hasattr(images, "shape") or not hasattr(images, "dtype"):
        wrong = f"a {type(images).__name__}"
    elif len(images.shape) != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        wrong = f"{images.dtype} {tuple(images.shape)}"
    elif not isinstance(images, jax.core.Tracer) and getattr(images, "is_fully_addressable", True):
        with jax.ensure_compile_time_eval():  # a constant in a traced function
            largest = float(abs(images).max()) if images.size else 0.0
        wrong = "" if largest <= LARGEST_PIXEL else f"values up to {largest:.4g}"
    if not wrong and images.shape[-1] != config.channels:
        wrong = f"{tuple(images.shape)}, whose last axis is not {config.channels} channels"
    if not wrong and not images.shape[0]:
        wrong = "an empty batch"
    if wrong:
        raise UserError(
            f"{config.variant} takes images (b, h, w, {config.channels}) as floats in [-1, 1] and "
            f"got {wrong}; vit_jax.preprocess(model, images) makes them from files or pixels."
        )
    if exactly and images.shape[1:3] != config.image_size:
        raise UserError(
            f"{config.variant} was built for images of {(*config.image_size, config.channels)} "
            f"but got {tuple(images.shape[1:])}; resize the images, or load the model with "
            f"image_size={tuple(images.shape[1:3])} to interpolate its position embeddings."
        )


def add_float32(z: Array, table: Array) -> Array:
    """z + table, summed in float32, in the dtype of z."""
    return (z.astype(jnp.float32) + table).astype(z.dtype)


class PositionEmbedding(nnx.Module):
    """Adds E_pos (Eq. 1), one learned vector per token, to (b, n, d)."""

    def __init__(self, config: ViTConfig, *, keys: Keys):
        shape = (1, config.num_tokens, config.hidden_size)
        self.embedding = nnx.Param(keys(initializers.normal(stddev=0.02), shape))

    def __call__(self, z: Array) -> Array:
        return add_float32(z, self.embedding[...])


def dropout(x: Array, rate: float, key: Randomness, *, shape: Sequence[int] | None = None) -> Array:
    """Zeroes entries with probability `rate` and rescales the rest; identity when `key` is None.

    `shape` broadcasts the mask: (b, 1, 1) drops whole examples, which is stochastic depth.
    """
    if key is None or rate == 0.0:
        return x
    if isinstance(key, bits.Key):
        return bits.dropout(x, rate, key, shape)
    keep = jax.random.bernoulli(key, 1.0 - rate, shape or x.shape)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros((), x.dtype))


def fold(key: Randomness, index: int | Array) -> Randomness:
    """A key for the `index`-th use of `key`; None stays None (inference)."""
    if isinstance(key, bits.Key):
        return bits.fold(key, index)
    return None if key is None else jax.random.fold_in(key, index)


def split(key: Randomness) -> tuple[Randomness, Array]:
    """A key for the model, and a `jax.random` key for other draws of a step."""
    if isinstance(key, bits.Key):
        return bits.split(key)
    assert key is not None
    own, other = jax.random.split(key)
    return own, other


def example_keys(key: Randomness, count: int) -> Array:
    """(count,) `jax.random` keys, one per example, independent of where it is computed."""
    if isinstance(key, bits.Key):
        other, rows = jax.random.split(key.key)[1], key.rows
    else:
        other, rows = split(key)[1], jnp.arange(count)
    return bits.folded(other, rows)
