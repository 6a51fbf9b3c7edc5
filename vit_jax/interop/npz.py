"""Official `.npz` checkpoints of ViT, hybrids and BiT: their names and shapes live here only."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop import native
from vit_jax.models.resnet import HybridStem, ResNetConfig
from vit_jax.models.variants import RESNET_ROWS, VIT_ROWS
from vit_jax.models.vit import ViTConfig

# Official names of one encoder block. Attention is apart: q, k and v are fused in our tree.
BLOCK_NAMES = {
    "attention_norm": "LayerNorm_0",
    "mlp_norm": "LayerNorm_2",
    "mlp/dense1": "MlpBlock_3/Dense_0",
    "mlp/dense2": "MlpBlock_3/Dense_1",
}
ATTENTION = "MultiHeadDotProductAttention_1"


def vit_names(config: ViTConfig) -> dict[str, str]:
    """{our path: official name} of what has one counterpart; q, k, v are joined elsewhere."""
    names = {
        "patch_embedding/kernel": "embedding/kernel",
        "patch_embedding/bias": "embedding/bias",
        "encoder_norm/scale": "Transformer/encoder_norm/scale",
        "encoder_norm/bias": "Transformer/encoder_norm/bias",
        "head/kernel": "head/kernel",
        "head/bias": "head/bias",
    }
    if config.classifier == "token":
        names["class_token"] = "cls"
    if config.position_embedding == "1d":
        names["position_embedding/0/embedding"] = "Transformer/posembed_input/pos_embedding"
    if config.representation_size is not None:
        names |= {f"pre_logits/{leaf}": f"pre_logits/{leaf}" for leaf in ("kernel", "bias")}
    for i in range(config.num_layers):
        official = f"Transformer/encoderblock_{i}"
        for ours, theirs in BLOCK_NAMES.items():
            for leaf in ("scale", "bias") if "norm" in ours else ("kernel", "bias"):
                names[f"blocks/{i}/{ours}/{leaf}"] = f"{official}/{theirs}/{leaf}"
        for leaf in ("kernel", "bias"):
            names[f"blocks/{i}/attention/out/{leaf}"] = f"{official}/{ATTENTION}/out/{leaf}"
    return names


def hybrid_names(config: ViTConfig) -> dict[str, str]:
    """{our path: official name} of a hybrid's stem."""
    names = {"stem/conv_root/kernel": "conv_root/kernel"}
    for leaf in ("scale", "bias"):
        names[f"stem/norm_root/{leaf}"] = f"gn_root/{leaf}"
    for stage, depth in enumerate(config.stem_depths or ()):
        for unit in range(depth):
            ours = f"stem/stages/{stage}/{unit}"
            theirs = f"block{stage + 1}/unit{unit + 1}"
            # The first unit of a stage changes the width, so it projects.
            for part in ("1", "2", "3", *(("_proj",) if unit == 0 else ())):
                names[f"{ours}/conv{part}/kernel"] = f"{theirs}/conv{part}/kernel"
                for leaf in ("scale", "bias"):
                    names[f"{ours}/norm{part}/{leaf}"] = f"{theirs}/gn{part}/{leaf}"
    return names


def resnet_names(config: ResNetConfig) -> dict[str, str]:
    """{our path: official name} of a BiT ResNet."""
    conv, norm = "standardized_conv2d/kernel", "group_norm"
    leaves = {"scale": "gamma", "bias": "beta"}
    names = {
        "conv_root/kernel": f"resnet/root_block/{conv}",
        "head/kernel": "resnet/head/conv2d/kernel",
        "head/bias": "resnet/head/conv2d/bias",
    }
    names |= {f"norm/{ours}": f"resnet/{norm}/{theirs}" for ours, theirs in leaves.items()}
    for stage, depth in enumerate(config.depths):
        for unit in range(depth):
            ours, theirs = f"stages/{stage}/{unit}", f"resnet/block{stage + 1}/unit{unit + 1:02d}"
            for number, letter in enumerate("abc", start=1):
                names[f"{ours}/conv{number}/kernel"] = f"{theirs}/{letter}/{conv}"
                for a, b in leaves.items():
                    names[f"{ours}/norm{number}/{a}"] = f"{theirs}/{letter}/{norm}/{b}"
            if unit == 0:
                names[f"{ours}/conv_proj/kernel"] = f"{theirs}/a/proj/{conv}"
    return names


def find_resnet(weights: Mapping[str, np.ndarray], where: str) -> ResNetConfig:
    """The BiT configuration that official arrays have."""
    pattern = re.compile(r"resnet/block(\d+)/unit(\d+)/")
    units = [(int(m[1]), int(m[2])) for name in weights if (m := pattern.match(name))]
    depths = tuple(
        max(u for b, u in units if b == block) for block in sorted({b for b, _ in units})
    )
    root = weights["resnet/root_block/standardized_conv2d/kernel"]
    width = root.shape[3] / 64
    variant = next((name for name, row in RESNET_ROWS.items() if row == (depths, width)), "custom")
    return ResNetConfig(
        variant=variant,
        depths=depths,
        width_factor=width,
        channels=root.shape[2],
        num_classes=weights["resnet/head/conv2d/bias"].shape[0],
    )


def official_names(config: models.ModelConfig) -> dict[str, str]:
    """{our path: official name} for any family."""
    if isinstance(config, ResNetConfig):
        return resnet_names(config)
    return vit_names(config) | (hybrid_names(config) if config.stem_depths is not None else {})


def qkv_names(config: models.ModelConfig) -> dict[str, tuple[str, ...]]:
    """{our fused path: official names of query, key and value}."""
    return {
        f"blocks/{i}/attention/qkv/{leaf}": tuple(
            f"Transformer/encoderblock_{i}/{ATTENTION}/{part}/{leaf}"
            for part in ("query", "key", "value")
        )
        for i in range(getattr(config, "num_layers", 0))
        for leaf in ("kernel", "bias")
    }


def from_official(
    weights: Mapping[str, np.ndarray], config: models.ModelConfig, where: str = "npz"
) -> dict[str, np.ndarray]:
    """Official arrays as our parameters.

    Shapes may differ in how the same numbers are folded: (1, 1, 1, C) for a GroupNorm vector,
    (heads, head_dim, d) for the output projection, (1, 1, d, k) for BiT's head.

    Raises:
      UserError: names or sizes are not those of `config`; lists them.
    """
    wanted = models.abstract_params(config)
    names, joined = official_names(config), qkv_names(config)
    needed = {*names.values(), *(name for parts in joined.values() for name in parts)}
    missing, extra = sorted(needed - set(weights)), sorted(set(weights) - needed)
    native.check_names(missing, extra, where, config.variant)
    params = {}
    for path, leaf in wanted.items():
        if path in joined:
            parts = [np.asarray(weights[name], np.float32) for name in joined[path]]
            value = np.stack(parts, axis=1 if path.endswith("kernel") else 0)
        else:
            value = np.asarray(weights[names[path]], np.float32)
        if value.size != math.prod(leaf.shape):
            raise UserError(
                f"{where}: {names.get(path) or joined[path]} has shape {value.shape} "
                f"but {config.variant} needs {leaf.shape}."
            )
        params[path] = value.reshape(leaf.shape)
    return params


def find_config(weights: Mapping[str, np.ndarray], where: str) -> models.ModelConfig:
    """The configuration that official arrays have, from their names and shapes.

    Raises:
      UserError: the arrays are of no ViT, hybrid or BiT of the table of variants.
    """
    if "resnet/root_block/standardized_conv2d/kernel" in weights:
        return find_resnet(weights, where)
    if "embedding/kernel" not in weights or "head/kernel" not in weights:
        some = ", ".join(sorted(weights)[:4])
        raise UserError(f"{where} is no official ViT or BiT checkpoint: it has {some}, ...")
    pattern = re.compile(r"Transformer/encoderblock_(\d+)/")
    blocks = {int(match[1]) for name in weights if (match := pattern.match(name))}
    ph, pw, channels, hidden = weights["embedding/kernel"].shape
    stem = None
    if "conv_root/kernel" in weights:
        units = re.compile(r"block(\d+)/unit(\d+)/conv1/kernel")
        found = [match for name in weights if (match := units.match(name))]
        stages = sorted({int(match[1]) for match in found})
        stem = tuple(max(int(m[2]) for m in found if int(m[1]) == stage) for stage in stages)
        channels = weights["conv_root/kernel"].shape[2]
    heads = weights[f"Transformer/encoderblock_0/{ATTENTION}/query/kernel"].shape[1]
    classifier = "token" if "cls" in weights else "gap"
    changes = {
        "patch_size": (ph, pw),
        "hidden_size": hidden,
        "num_layers": len(blocks),
        "mlp_dim": weights["Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel"].shape[1],
        "num_heads": heads,
        "channels": channels,
        "num_classes": weights["head/kernel"].shape[1],
        "classifier": classifier,
        "stem_depths": stem,
        "representation_size": (
            weights["pre_logits/kernel"].shape[1] if "pre_logits/kernel" in weights else None
        ),
    }
    if stem is not None:
        changes["stem_width"] = weights["conv_root/kernel"].shape[3] / 64
    tokens = weights["Transformer/posembed_input/pos_embedding"].shape[1]
    side = math.isqrt(tokens - (classifier == "token"))
    if side * side != tokens - (classifier == "token"):
        raise UserError(
            f"{where}: position embeddings of {tokens} tokens are not square, so the image size "
            "is not known; only square official checkpoints can be read."
        )
    keys = ("patch_size", "hidden_size", "num_layers", "mlp_dim", "num_heads", "stem_depths")
    variant = next(
        (
            name
            for name in VIT_ROWS
            if all(getattr(models.get_config(name), key) == changes[key] for key in keys)
        ),
        "custom",
    )
    stride = 1 if stem is None else HybridStem.stride(stem)
    size = (side * ph * stride, side * pw * stride)
    return ViTConfig(variant=variant, image_size=size, **changes)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz`; pickled ones are never unpickled.

    Raises:
      UserError: no zip file, damaged, or with an array of Python objects.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} is no readable .npz ({reason}); download it again.") from error


def load(path: Path, *, variant: str | None = None) -> tuple[models.ModelConfig, dict]:
    """Reads an official checkpoint; says which model it found unless `variant` is given."""
    weights = read_arrays(path)
    config = find_config(weights, str(path))
    if variant is not None and variant != config.variant:
        raise UserError(f"{path} holds a {config.variant}, not a {variant}.")
    if variant is None:
        size = "x".join(map(str, config.image_size))
        print(f"{path}: {config.variant} at {size}, {config.num_classes} classes")
    return config, from_official(weights, config, str(path))
