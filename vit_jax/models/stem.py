"""The ResNet before a hybrid's Transformer (section 3.1), and the layers that it shares with BiT.

GroupNorm and weight-standardised convolutions. The stem is a v1 network: convolution, norm, ReLU,
as in the released hybrids.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.models.layers import Array, Keys, initializers
from vit_jax.numerics import remat

GROUPS = 32
EXPANSION = 4  # a bottleneck unit's output is four times as wide as its middle


class StdConv(nnx.Module):
    """A convolution whose kernel is standardised over (kh, kw, c_in); no bias.

    `style` says where epsilon stands: "std" is (w - mean) / (std + eps), as the hybrids have it;
    "var" is (w - mean) / sqrt(var + eps), as BiT has it. `padding` is "SAME" or pixels per side.
    """

    def __init__(
        self,
        in_features: int,
        features: int,
        size: int,
        *,
        stride: int = 1,
        padding: str | int = "SAME",
        style: str,
        epsilon: float,
        dtype,
        keys: Keys,
    ):
        init = initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(init(keys(), (size, size, in_features, features)))
        self.stride, self.padding = stride, padding
        self.style, self.epsilon, self.dtype = style, epsilon, dtype

    def standardised(self) -> Array:
        w = self.kernel[...]
        centred = w - w.mean(axis=(0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
        if self.style == "std":
            return centred / (jnp.sqrt(variance) + self.epsilon)
        return centred / jnp.sqrt(variance + self.epsilon)

    def __call__(self, x: Array) -> Array:
        pad = self.padding if isinstance(self.padding, str) else [(self.padding,) * 2] * 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.standardised().astype(self.dtype),
            window_strides=(self.stride, self.stride),
            padding=pad,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return remat.product(y)


class GroupNorm(nnx.Module):
    """Normalises 32 groups of channels over the whole image; statistics in float32."""

    def __init__(self, features: int, *, epsilon: float, dtype, scale=1.0):
        self.scale = nnx.Param(jnp.full((features,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon, self.dtype = epsilon, dtype

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        groups = x.astype(jnp.float32).reshape(b, h * w, GROUPS, c // GROUPS)
        centred = groups - groups.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(b, h, w, c)
        return (y * self.scale[...] + self.bias[...]).astype(self.dtype)


def max_pool(x: Array, *, padding: str = "SAME") -> Array:
    """3x3, stride 2. `padding`: "SAME", or a pixel of "lowest" or "zeros" on every side."""
    if padding != "SAME":  # apart from the pooling: some exporters translate it without its padding
        value = 0.0 if padding == "zeros" else jnp.finfo(x.dtype).min
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=value)
        padding = "VALID"
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


class StemUnit(nnx.Module):
    """A v1 bottleneck: three times convolution and norm; ReLU after the sum."""

    def __init__(self, in_features: int, middle: int, stride: int, *, conv, epsilon, dtype):
        out = middle * EXPANSION

        def norm(features: int, scale: float = 1.0) -> GroupNorm:
            return GroupNorm(features, epsilon=epsilon, dtype=dtype, scale=scale)

        self.projects = stride != 1 or in_features != out
        if self.projects:
            self.conv_proj = conv(in_features, out, 1, stride=stride)
            self.norm_proj = norm(out)
        self.conv1, self.norm1 = conv(in_features, middle, 1), norm(middle)
        self.conv2, self.norm2 = conv(middle, middle, 3, stride=stride), norm(middle)
        self.conv3, self.norm3 = conv(middle, out, 1), norm(out, scale=0.0)

    def __call__(self, x: Array) -> Array:
        residual = self.norm_proj(self.conv_proj(x)) if self.projects else x
        y = jax.nn.relu(self.norm1(self.conv1(x)))
        y = jax.nn.relu(self.norm2(self.conv2(y)))
        return jax.nn.relu(residual + self.norm3(self.conv3(y)))


class HybridStem(nnx.Module):
    """The CNN before a hybrid's Transformer: (b, h, w, c) to (b, h / stride, w / stride, features).

    `depths` are the units per stage; with () there is only the root (stride 4).
    """

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        width_factor: float = 1.0,
        channels: int = 3,
        group_norm_epsilon: float = 1e-6,
        standardisation: str = "std",
        standardisation_epsilon: float = 1e-5,
        dtype=jnp.float32,
        keys: Keys,
    ):
        conv = functools.partial(
            StdConv, style=standardisation, epsilon=standardisation_epsilon, dtype=dtype, keys=keys
        )
        width = int(64 * width_factor)
        self.conv_root = conv(channels, width, 7, stride=2)
        self.norm_root = GroupNorm(width, epsilon=group_norm_epsilon, dtype=dtype)
        stages, features = [], width
        for stage, depth in enumerate(depths):
            units = []
            for unit in range(depth):
                stride = 2 if stage and not unit else 1
                middle = width * 2**stage
                units.append(
                    StemUnit(
                        features, middle, stride, conv=conv, epsilon=group_norm_epsilon, dtype=dtype
                    )
                )
                features = middle * EXPANSION
            stages.append(nnx.List(units))
        self.stages = nnx.List(stages)
        self.features = features

    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(self.norm_root(self.conv_root(x)))
        x = max_pool(x)
        for stage in self.stages:
            for unit in stage:
                x = unit(x)
        return x
