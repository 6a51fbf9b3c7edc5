"""The ResNet stem of a hybrid (section 3.1), and the layers that it shares with BiT.

GroupNorm and weight-standardised convolutions. The stem is a v1 network: convolution, norm, ReLU,
as in the released hybrids.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.models.layers import Array, Keys, initializers
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import Numerics

GROUPS = 32
EXPANSION = 4  # output width of a bottleneck unit, relative to its middle


class StdConv(nnx.Module):
    """A convolution with a kernel standardised over (kh, kw, c_in); no bias.

    `style` is the place of epsilon: "std" is (w - mean) / (std + eps), as in the hybrids; "var" is
    (w - mean) / sqrt(var + eps), as in BiT. `padding` is "SAME" or pixels per side.
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
        numerics: Numerics,
        keys: Keys,
    ):
        init = initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        self.kernel = nnx.Param(keys(init, (size, size, in_features, features)))
        self.stride, self.padding = stride, padding
        self.style, self.epsilon, self.numerics = style, epsilon, numerics

    def standardised(self) -> Array:
        w = self.kernel[...]
        centred = w - w.mean(axis=(0, 1, 2), keepdims=True)
        variance = jnp.square(centred).mean(axis=(0, 1, 2), keepdims=True)
        if self.style == "std":
            return centred / (jnp.sqrt(variance) + self.epsilon)
        return centred / jnp.sqrt(variance + self.epsilon)

    def __call__(self, x: Array) -> Array:
        pad = self.padding if isinstance(self.padding, str) else [(self.padding,) * 2] * 2
        x = x.astype(self.numerics.dtype)
        kernel = self.standardised().astype(self.numerics.dtype)
        return self.numerics.convolution(x, kernel, self.stride, pad)


class GroupNorm(nnx.Module):
    """Normalises 32 groups of channels over the whole image; statistics in float32."""

    def __init__(self, features: int, *, epsilon: float, scale: float = 1.0):
        self.scale = nnx.Param(jnp.full((features,), scale, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((features,), jnp.float32))
        self.epsilon = epsilon

    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        groups = x.astype(jnp.float32).reshape(b, h * w, GROUPS, c // GROUPS)
        centred = groups - groups.mean(axis=(1, 3), keepdims=True)
        variance = jnp.square(centred).mean(axis=(1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(b, h, w, c)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)


def max_pool(x: Array, *, padding: str = "SAME") -> Array:
    """3x3, stride 2. `padding`: "SAME", or one pixel of "lowest" or "zeros" on every side."""
    if padding != "SAME":  # a separate operation: some exporters drop the padding of a pooling
        value = 0.0 if padding == "zeros" else jnp.finfo(x.dtype).min
        x = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=value)
        padding = "VALID"
    return nnx.max_pool(x, window_shape=(3, 3), strides=(2, 2), padding=padding)


class StemUnit(nnx.Module):
    """A v1 bottleneck: convolution and norm, three times; ReLU after the sum."""

    def __init__(self, in_features: int, middle: int, stride: int, *, conv, epsilon: float):
        out = middle * EXPANSION

        def norm(features: int, scale: float = 1.0) -> GroupNorm:
            return GroupNorm(features, epsilon=epsilon, scale=scale)

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
    """The CNN of a hybrid: (b, h, w, c) to (b, h / stride, w / stride, features).

    `config.stem_depths` are the units per stage; () is the root alone (stride 4).
    """

    def __init__(self, config: ViTConfig, numerics: Numerics, *, keys: Keys):
        epsilon = config.stem_group_norm_epsilon
        conv = functools.partial(
            StdConv,
            style=config.stem_standardisation,
            epsilon=config.stem_standardisation_epsilon,
            numerics=numerics,
            keys=keys,
        )
        width = int(64 * config.stem_width)
        self.conv_root = conv(config.channels, width, 7, stride=2)
        self.norm_root = GroupNorm(width, epsilon=epsilon)
        stages, features = [], width
        for stage, depth in enumerate(config.stem_depths or ()):
            units = []
            for unit in range(depth):
                stride = 2 if stage and not unit else 1
                middle = width * 2**stage
                units.append(StemUnit(features, middle, stride, conv=conv, epsilon=epsilon))
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
