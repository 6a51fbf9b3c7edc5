"""Cost of a model: multiply-accumulates, training FLOPs, exaFLOPs of a schedule (Table 6).

One multiply-accumulate (MAC) is two FLOPs; training costs three forward passes. Matrix products and
convolutions count, normalisation and the like do not.
"""

from __future__ import annotations

import functools
import math
from typing import TypedDict

from vit_jax import models
from vit_jax.models import AxialConfig, ModelConfig, ResNetConfig, ViTConfig
from vit_jax.models.stem import EXPANSION

#: JFT-300M as the paper pre-trained on it: images, classes (section 4.1).
JFT_IMAGES, JFT_CLASSES = 303_000_000, 18_291

# Table 1: its columns, and the parameters in millions.
TABLE_1_FIELDS = ("num_layers", "hidden_size", "mlp_dim", "num_heads")
TABLE_1 = {"B/16": 86, "L/16": 307, "H/14": 632}

# Table 6: (variant, epochs of JFT-300M): exaFLOPs of pre-training.
TABLE_6 = {
    ("B/32", 7): 55, ("B/16", 7): 224, ("L/32", 7): 196, ("L/16", 7): 783, ("L/16", 14): 1567,
    ("H/14", 14): 4262,
    ("R50x1", 7): 50, ("R50x2", 7): 199, ("R101x1", 7): 96, ("R152x1", 7): 141,
    ("R152x2", 7): 563, ("R152x2", 14): 1126, ("R200x3", 14): 3306,
    ("R50+B/32", 7): 106, ("R50+B/16", 7): 274, ("R50+L/32", 7): 246, ("R50+L/16", 7): 859,
    ("R50+L/16", 14): 1668,
}  # fmt: skip

# Where published figures contradict each other, so that no formula fits both.
DISAGREEMENTS = {
    ("B/32", 7): "fits 49 tokens: the class token is not counted there, but is in L/32",
    ("R50+L/16", 7): "not half of the same model's 14 epochs, 1668",
}


def pretraining_config(variant: str) -> ModelConfig:
    """The model that Table 6 counts: 224 pixels, JFT's classes, the two-layer head of ViTs."""
    config = models.get_config(variant, num_classes=JFT_CLASSES)
    if isinstance(config, ViTConfig):
        config = models.replace(config, representation_size=config.hidden_size)
    return config


def exaflops(variant: str, epochs: float, *, images: int = JFT_IMAGES) -> float:
    """exaFLOPs of pre-training a variant at 224 pixels with JFT's head."""
    return train_flops_per_image(pretraining_config(variant)) * images * epochs / 1e18


@functools.cache
def num_params(config: ModelConfig) -> int:
    """Number of parameters of a model, from shapes only."""
    return sum(math.prod(leaf.shape) for leaf in models.abstract_params(config).values())


class Row(TypedDict):
    """A row of Table 6, see `table_6`."""

    variant: str
    epochs: int
    params: int
    gmacs: float
    exaflops: float
    published_exaflops: float
    note: str


def table_6() -> list[Row]:
    """Every row of Table 6: our count beside the published one.

    "params" and "gmacs" (1e9 multiply-accumulates per image) are those of the model with a linear
    head of 1000 classes at 224 pixels; "exaflops" is its pre-training on JFT-300M. "note" is set
    where the paper is inconsistent.
    """
    rows: list[Row] = []
    for (variant, epochs), published in TABLE_6.items():
        config = models.get_config(variant, num_classes=1000)
        rows.append(
            {
                "variant": variant,
                "epochs": epochs,
                "params": num_params(config),
                "gmacs": forward_macs(config) / 1e9,
                "exaflops": exaflops(variant, epochs),
                "published_exaflops": published,
                "note": DISAGREEMENTS.get((variant, epochs), ""),
            }
        )
    return rows


def forward_macs(config: ModelConfig, *, padding: bool = False) -> int:
    """Multiply-accumulates of one image's forward pass.

    With `padding`, products of a convolution with padding count too, as in profilers; the paper's
    Table 6 fits without.
    """
    if isinstance(config, ResNetConfig):
        return _resnet_macs(config, padding)
    return _vit_macs(config, padding)


def train_flops_per_image(config: ModelConfig) -> int:
    """FLOPs of one image's forward and backward pass: 6 per multiply-accumulate."""
    return 6 * forward_macs(config)


def _vit_macs(config: ViTConfig, padding: bool) -> int:
    d, t, n = config.hidden_size, config.num_tokens, math.prod(config.grid)
    total, channels = 0, config.channels
    if config.stem_depths is not None:
        total, channels, _ = _convolutions(
            config.stem_depths,
            int(64 * config.stem_width),
            config.channels,
            config.image_size,
            padding,
            symmetric=False,
        )
    total += math.prod(config.patch_size) * channels * d * n
    dense = t * (4 * d * d + 2 * d * config.mlp_dim)
    if isinstance(config, AxialConfig):  # each block is two, over rows and over columns
        total += config.num_layers * 2 * (dense + t * sum(config.grid) * d)
    else:
        total += config.num_layers * (dense + 2 * t * t * d)
    if config.position_embedding == "relative":
        total += config.num_layers * t * (2 * t - 1) * d
    if config.representation_size is not None:
        total += d * config.representation_size
    if config.classifier == "map":
        total += t * 2 * d * d + 2 * d * d + 2 * t * d + 2 * d * config.mlp_dim
    return total + (config.representation_size or d) * config.num_classes


def _resnet_macs(config: ResNetConfig, padding: bool) -> int:
    width = int(64 * config.width_factor)
    total, features, _ = _convolutions(
        config.depths,
        width,
        config.channels,
        config.image_size,
        padding,
        symmetric=True,
        axial=bool(config.axial_heads),
    )
    return total + features * config.num_classes


def _convolutions(
    depths: tuple[int, ...],
    width: int,
    channels: int,
    size: tuple[int, ...],
    padding: bool,
    symmetric: bool,
    axial: bool = False,
) -> tuple[int, int, tuple[int, ...]]:
    """MACs, output channels and output size of the root and the bottleneck stages."""
    total = 0

    def conv(size: tuple[int, ...], kernel: int, stride: int, c_in: int, c_out: int):
        nonlocal total
        out = tuple(-(-side // stride) for side in size)
        taps = [_taps(side, kernel, stride, padding, symmetric) for side in size]
        total += math.prod(taps) * c_in * c_out
        return out

    size = conv(size, 7, 2, channels, width)
    size = tuple(-(-side // 2) for side in size)  # the pooling
    features = width
    for stage, depth in enumerate(depths):
        middle = width * 2**stage
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            if unit == 0:
                conv(size, 1, stride, features, middle * EXPANSION)
            conv(size, 1, 1, features, middle)
            if axial:  # q, k, v for columns and rows; then five products over each axis
                area = math.prod(size)
                total += area * (2 * 3 * middle * middle + 5 * sum(size) * middle)
                size = tuple(-(-side // stride) for side in size)
            else:
                size = conv(size, 3, stride, middle, middle)
            conv(size, 1, 1, middle, middle * EXPANSION)
            features = middle * EXPANSION
    return total, features, size


def _taps(side: int, kernel: int, stride: int, padding: bool, symmetric: bool) -> int:
    """Kernel positions summed over the outputs along one axis, without those on padding."""
    out = -(-side // stride)
    if padding:
        return out * kernel
    before = (kernel - 1) // 2
    if not symmetric:  # SAME: the odd pixel of padding comes after
        before = max((out - 1) * stride + kernel - side, 0) // 2
    starts = (index * stride - before for index in range(out))
    return sum(min(start + kernel, side) - max(start, 0) for start in starts)
