"""What a model costs: multiply-accumulates, training FLOPs, and the exaFLOPs of a schedule (Table 6).

One multiply-accumulate is two FLOPs; training costs three forward passes. Matrix products and
convolutions count, normalisation and the like do not.
"""

from __future__ import annotations

import math

from vit_jax.models import ModelConfig, ResNetConfig, ViTConfig
from vit_jax.models.resnet import EXPANSION


def forward_macs(config: ModelConfig, *, padding: bool = False) -> int:
    """Multiply-accumulates of one image's forward pass.

    With `padding`, a convolution's products with the zeros around the image count as well, as
    profilers count them; the paper's Table 6 fits without.
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
    total += config.num_layers * (t * (4 * d * d + 2 * d * config.mlp_dim) + 2 * t * t * d)
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
        config.depths, width, config.channels, config.image_size, padding, symmetric=True
    )
    return total + features * config.num_classes


def _convolutions(
    depths: tuple[int, ...],
    width: int,
    channels: int,
    size: tuple[int, int],
    padding: bool,
    symmetric: bool,
) -> tuple[int, int, tuple[int, int]]:
    """MACs, output channels and output size of the root and the bottleneck stages."""
    total = 0

    def conv(size, kernel: int, stride: int, c_in: int, c_out: int):
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
            size = conv(size, 3, stride, middle, middle)
            conv(size, 1, 1, middle, middle * EXPANSION)
            features = middle * EXPANSION
    return total, features, size


def _taps(side: int, kernel: int, stride: int, padding: bool, symmetric: bool) -> int:
    """Kernel positions summed over the outputs along one axis; without those on padding."""
    out = -(-side // stride)
    if padding:
        return out * kernel
    before = (kernel - 1) // 2
    if not symmetric:  # SAME: the odd pixel of padding comes after
        before = max((out - 1) * stride + kernel - side, 0) // 2
    starts = (index * stride - before for index in range(out))
    return sum(min(start + kernel, side) - max(start, 0) for start in starts)
