"""The BiT baselines (Tables 2, 5, 6 and 7): ResNet-v2 (norm and ReLU before each convolution) with
GroupNorm and weight standardisation (arXiv 1912.11370).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.axial import AxialConv
from vit_jax.models.layers import (
    Array,
    Dense,
    Keys,
    Model,
    Randomness,
    check_images,
    constant,
    with_names,
    zeros,
)  # fmt: skip
from vit_jax.models.stem import EXPANSION, GROUPS, GroupNorm, StdConv, max_pool
from vit_jax.models.vit_config import Preprocessing, check_dtype, check_predictions
from vit_jax.numerics import Numerics, remat

POOL_PADDINGS = ("lowest", "zeros")


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """The shape of one BiT ResNet. `width_factor` multiplies every hidden width.

    The epsilons, `standardisation` and `pool_padding` (of the root's pooling: "lowest" or "zeros")
    are settings, as weights of other families may differ. `axial_heads`: with a number, row and
    column attention replace the 3x3 convolutions of the bottlenecks (Axial-ResNet, Appendix D.6);
    None is the plain ResNet.
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
    pool_padding: str = "zeros"
    axial_heads: int | None = None
    remat: bool | str = False  # see numerics/remat.py
    dtype: str = "float32"
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing = ()
    multilabel: bool = False
    thresholds: tuple[float, ...] = ()
    temperature: float | None = None

    def __post_init__(self):
        remat.name_of(self.remat)
        check_dtype(self.dtype)
        check_predictions(
            *(self.labels, self.multilabel, self.thresholds, self.temperature, self.num_classes)
        )
        if min(self.image_size) < 1:
            raise UserError(f"{self.variant}: image size {self.image_size} must be positive.")
        if self.pool_padding not in POOL_PADDINGS:
            raise UserError(
                f"model.pool_padding={self.pool_padding!r} does not exist; "
                f"choose one of {', '.join(POOL_PADDINGS)}."
            )
        width = int(64 * self.width_factor)
        if width < 1 or width % GROUPS:
            raise UserError(
                f"{self.variant}: {width} channels do not divide into {GROUPS} groups; set "
                f"model.width_factor to a multiple of {GROUPS / 64:g}."
            )
        if self.axial_heads and width % self.axial_heads:
            raise UserError(
                f"{self.variant}: width {width} does not divide into {self.axial_heads} heads; set "
                "model.axial_heads to 4 or 8."
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Features per (column, row) after the last stage."""
        stride = 4 * 2 ** (len(self.depths) - 1)
        return -(-self.image_size[0] // stride), -(-self.image_size[1] // stride)


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
        numerics: Numerics,
        keys: Keys,
    ):
        out = middle * EXPANSION

        def conv(a: int, b: int, size: int, step: int = 1) -> StdConv:
            return _bit_conv(config, a, b, size, step, numerics, keys)

        self.projects = stride != 1 or in_features != out
        if self.projects:
            self.conv_proj = conv(in_features, out, 1, stride)
        self.norm1, self.conv1 = _bit_norm(config, in_features), conv(in_features, middle, 1)
        self.norm2 = _bit_norm(config, middle)
        self.conv2: nnx.Module = (
            AxialConv(middle, config.axial_heads, stride, grid, numerics=numerics, keys=keys)
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


def _bit_conv(
    config: ResNetConfig,
    in_features: int,
    features: int,
    size: int,
    stride: int,
    numerics: Numerics,
    keys: Keys,
) -> StdConv:
    return StdConv(
        in_features,
        features,
        size,
        stride=stride,
        padding=(size - 1) // 2,
        style=config.standardisation,
        epsilon=config.standardisation_epsilon,
        numerics=numerics,
        keys=keys,
    )


def _bit_norm(config: ResNetConfig, features: int) -> GroupNorm:
    return GroupNorm(features, epsilon=config.group_norm_epsilon)


class ResNet(Model):
    """BiT ResNet-v2. Images in, logits out; the same contract as `VisionTransformer`."""

    def __init__(self, config: ResNetConfig, numerics: Numerics, *, keys: Keys):
        self.config, self.numerics = config, numerics
        width = int(64 * config.width_factor)
        self.conv_root = _bit_conv(config, config.channels, width, 7, 2, numerics, keys)
        stages, features = [], width
        grid = half(half(config.image_size))
        for stage, depth in enumerate(config.depths):
            units = []
            for unit in range(depth):
                middle = width * 2**stage
                stride = 2 if stage and not unit else 1
                units.append(
                    Unit(config, features, middle, stride, grid, numerics=numerics, keys=keys)
                )
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
            numerics=numerics,
            keys=keys,
        )

    def __call__(
        self,
        images: Array,
        *,
        key: Randomness = None,
        return_intermediates: bool | Collection[str] = False,
    ) -> Array | tuple[Array, dict[str, Array]]:
        """Classifies images (b, h, w, c) in [-1, 1]; `key` is unused: there is no dropout.

        Returns:
          logits (b, num_classes) float32; with `return_intermediates` also a dict of "stem",
          "stage_1" ... (b, h', w', c') and "pre_logits" (b, d).
        """
        del key
        check_images(images, self.config)
        out: dict[str, Array] = {}
        x = self.conv_root(images)
        out["stem"] = x = max_pool(x, padding=self.config.pool_padding)
        for number, stage in enumerate(self.stages, start=1):
            for unit in stage:
                x = self.numerics.layer(unit.__call__)(x)
            out[f"stage_{number}"] = x
        x = jax.nn.relu(self.norm(x))
        out["pre_logits"] = x = x.astype(jnp.float32).mean(axis=(1, 2))
        logits = self.head(x, out_dtype=jnp.float32)
        asked = return_intermediates
        return (logits, with_names(out, asked)) if asked else logits
