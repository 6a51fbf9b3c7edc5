"""ResNets: the stem of the hybrids (section 3.1) and the BiT baselines (Tables 2, 5, 6 and 7).

Both use GroupNorm and weight-standardised convolutions. The stem is a v1 network (convolution,
norm, ReLU, as the released hybrids); BiT is v2 (norm and ReLU come first, arXiv 1912.11370).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import Array, Dense, Keys, Model, constant, initializers, product, zeros
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


POOL_PADDINGS = ("lowest", "zeros")


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

    @staticmethod
    def stride(depths: tuple[int, ...]) -> int:
        """Pixels per feature: 4 after the root, doubled by every stage but the first."""
        return 4 * 2 ** max(len(depths) - 1, 0)

    def __call__(self, x: Array) -> Array:
        x = jax.nn.relu(self.norm_root(self.conv_root(x)))
        x = max_pool(x)
        for stage in self.stages:
            for unit in stage:
                x = unit(x)
        return x


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The shape of one BiT ResNet. `width_factor` multiplies every hidden width.

    The epsilons, `standardisation` and `pool_padding` (what the root's pooling sees beyond the
    border: "lowest" or "zeros") are settings, as weights of other families may have others.
    `axial_heads`: with a number, row and column attention stand in for the 3x3 convolutions of the
    bottlenecks (Axial-ResNet, Appendix D.6); None is the plain ResNet.
    """

    variant: str
    depths: tuple[int, ...]
    width_factor: float = 1.0
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 1000
    head_bias: float = 0.0
    group_norm_epsilon: float = 1e-5
    standardisation: str = "var"
    standardisation_epsilon: float = 1e-10
    pool_padding: str = "lowest"
    axial_heads: int | None = None
    remat: bool | str = False  # see models/remat.py
    dtype: str = "float32"
    labels: tuple[str, ...] = ()
    preprocessing: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        remat.name_of(self.remat)
        if min(self.image_size) < 1:
            raise UserError(f"{self.variant}: image size {self.image_size} must be positive.")
        if self.pool_padding not in POOL_PADDINGS:
            raise UserError(
                f"model.pool_padding={self.pool_padding!r} does not exist; "
                f"choose one of {', '.join(POOL_PADDINGS)}."
            )
        if self.axial_heads and int(64 * self.width_factor) % self.axial_heads:
            raise UserError(
                f"{self.variant}: width {int(64 * self.width_factor)} does not divide into "
                f"{self.axial_heads} heads; set model.axial_heads to 4 or 8."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Features per (column, row) after the last stage."""
        stride = 4 * 2 ** (len(self.depths) - 1)
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)

    @property
    def compute_dtype(self):
        return jnp.dtype(self.dtype)


class Unit(nnx.Module):
    """A v2 bottleneck: norm and ReLU before each convolution; the stride is on the 3x3."""

    def __init__(
        self,
        config: ResNetConfig,
        in_features: int,
        middle: int,
        stride: int,
        grid: tuple[int, int],
        *,
        keys: Keys,
    ):
        out = middle * EXPANSION

        def conv(a: int, b: int, size: int, step: int = 1) -> StdConv:
            return _bit_conv(config, a, b, size, step, keys)

        self.projects = stride != 1 or in_features != out
        if self.projects:
            self.conv_proj = conv(in_features, out, 1, stride)
        self.norm1, self.conv1 = _bit_norm(config, in_features), conv(in_features, middle, 1)
        self.norm2 = _bit_norm(config, middle)
        self.conv2: nnx.Module = (
            AxialConv(
                middle, config.axial_heads, stride, grid, dtype=config.compute_dtype, keys=keys
            )
            if config.axial_heads
            else conv(middle, middle, 3, stride)
        )
        self.norm3, self.conv3 = _bit_norm(config, middle), conv(middle, out, 1)

    def __call__(self, x: Array) -> Array:
        y = jax.nn.relu(self.norm1(x))
        residual = self.conv_proj(y) if self.projects else x
        y = self.conv1(y)
        y = self.conv2(jax.nn.relu(self.norm2(y)))
        return residual + self.conv3(jax.nn.relu(self.norm3(y)))


def half(size: tuple[int, int]) -> tuple[int, int]:
    """The size after a stride of 2, rounded up."""
    return -(-size[0] // 2), -(-size[1] // 2)


class AxialConv(nnx.Module):
    """What stands in for a 3x3 convolution: attention down columns, then along rows, then a stride.

    (b, h, w, c) to (b, h / stride, w / stride, c); the stride averages 2x2 pixels.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        stride: int,
        grid: tuple[int, int],
        *,
        dtype,
        keys: Keys,
    ):
        self.column = RelativeAttention(features, heads, grid[0], dtype=dtype, keys=keys)
        self.row = RelativeAttention(features, heads, grid[1], dtype=dtype, keys=keys)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        x = self.column(x.swapaxes(1, 2)).swapaxes(1, 2)
        x = self.row(x)
        if self.stride == 1:
            return x
        pooled = nnx.avg_pool(
            x, window_shape=(2, 2), strides=(2, 2), padding="SAME", count_include_pad=False
        )
        return pooled.astype(x.dtype)


class RelativeAttention(nnx.Module):
    """Position-sensitive attention over the last spatial axis: (b, m, n, c) to the same.

    Queries, keys and values each see a learned embedding of the offset (arXiv 2003.07853), of which
    the heads share one: logit = (q k + q r_q + k r_k) / sqrt(e), output = sum of w (v + r_v).
    """

    def __init__(self, features: int, heads: int, length: int, *, dtype, keys: Keys):
        e = features // heads
        self.qkv = Dense(features, (3, heads, e), batch_axes=1, dtype=dtype, keys=keys)
        self.relative = nnx.Param(
            initializers.normal(stddev=e**-0.5)(keys(), (3, 2 * length - 1, e), jnp.float32)
        )
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        q, k, v = jnp.moveaxis(self.qkv(x), (3, 4), (0, 2))  # three of (b, h, m, n, e)
        n, e = q.shape[-2:]
        offsets = jnp.arange(n)[:, None] - jnp.arange(n)[None, :] + n - 1
        r_q, r_k, r_v = self.relative[...].astype(self.dtype)[:, offsets]  # three of (n, n, e)
        logits = product("bhmqe,bhmke->bhmqk", q, k)
        logits += product("bhmqe,qke->bhmqk", q, r_q) + product("bhmke,qke->bhmqk", k, r_k)
        weights = jax.nn.softmax(logits / e**0.5, axis=-1).astype(self.dtype)
        y = product("bhmqk,bhmke->bhmqe", weights, v)
        y += product("bhmqk,qke->bhmqe", weights, r_v)
        return jnp.moveaxis(y, 1, 3).reshape(x.shape).astype(self.dtype)


def _bit_conv(config, in_features, features, size, stride, keys) -> StdConv:
    return StdConv(
        in_features,
        features,
        size,
        stride=stride,
        padding=(size - 1) // 2,
        style=config.standardisation,
        epsilon=config.standardisation_epsilon,
        dtype=config.compute_dtype,
        keys=keys,
    )


def _bit_norm(config: ResNetConfig, features: int) -> GroupNorm:
    return GroupNorm(features, epsilon=config.group_norm_epsilon, dtype=config.compute_dtype)


class ResNet(Model):
    """BiT ResNet-v2. Images in, logits out; the same contract as `VisionTransformer`."""

    def __init__(self, config: ResNetConfig, *, keys: Keys):
        self.config = config
        width = int(64 * config.width_factor)
        self.conv_root = _bit_conv(config, config.channels, width, 7, 2, keys)
        stages, features = [], width
        grid = half(half(config.image_size))
        for stage, depth in enumerate(config.depths):
            units = []
            for unit in range(depth):
                middle = width * 2**stage
                stride = 2 if stage and not unit else 1
                units.append(Unit(config, features, middle, stride, grid, keys=keys))
                features = middle * EXPANSION
                grid = half(grid) if stride == 2 else grid
            stages.append(nnx.List(units))
        self.stages = nnx.List(stages)
        self.norm = _bit_norm(config, features)
        self.head = Dense(
            features,
            config.num_classes,
            kernel_init=lambda **_: zeros,
            bias_init=constant(config.head_bias),
            dtype=config.compute_dtype,
            keys=keys,
        )

    def __call__(
        self,
        images: Array,
        *,
        key: Array | None = None,
        return_intermediates: bool | Collection[str] = False,
    ) -> Any:
        """Classifies images (b, h, w, c) in [-1, 1]; `key` is not used, a ResNet drops nothing.

        Returns:
          logits (b, num_classes) float32; with `return_intermediates` also a dict of "stem",
          "stage_1" ... (b, h', w', c') and "pre_logits" (b, d).
        """
        del key
        out: dict[str, Any] = {}
        x = self.conv_root(images)
        out["stem"] = x = max_pool(x, padding=self.config.pool_padding)
        for number, stage in enumerate(self.stages, start=1):
            for unit in stage:
                x = remat.apply(unit.__call__, self.config.remat)(x)
            out[f"stage_{number}"] = x
        x = jax.nn.relu(self.norm(x))
        out["pre_logits"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits = self.head(x, out_dtype=jnp.float32)
        return (logits, out) if return_intermediates else logits
