"""timm's checkpoints of ViT, hybrids and BiT: directories as on the Hub, or bare safetensors.

timm's numerics are its own: exact GELU unless `act_layer` says otherwise, and for hybrids GroupNorm
epsilon 1e-5 and weight standardisation with 1e-8 in the variance, and for BiT zeros around the
root's pooling. Weights that are read keep them; a hybrid or BiT of ours that is written with other
numerics therefore answers slightly otherwise in timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.interop.layout import Layout, flattened, from_foreign, reshaped, to_foreign, transposed
from vit_jax.models import ResNetConfig, ViTConfig, saved
from vit_jax.models.vit_config import stem_stride

#: Our variants under timm's names; "@" is the image size.
ARCHITECTURES = {
    "Ti/16": "vit_tiny_patch16_@", "S/32": "vit_small_patch32_@", "S/16": "vit_small_patch16_@",
    "B/32": "vit_base_patch32_@", "B/16": "vit_base_patch16_@", "L/32": "vit_large_patch32_@",
    "L/16": "vit_large_patch16_@", "H/14": "vit_huge_patch14_@",
    "R50+B/16": "vit_base_r50_s16_@", "R50+L/32": "vit_large_r50_s32_@",
    "R26+S/32": "vit_small_r26_s32_@", "R26+B/32": "vit_base_r26_s32_@",
    "R50x1": "resnetv2_50x1_bit", "R50x3": "resnetv2_50x3_bit", "R101x1": "resnetv2_101x1_bit",
    "R101x3": "resnetv2_101x3_bit", "R152x2": "resnetv2_152x2_bit", "R152x4": "resnetv2_152x4_bit",
}  # fmt: skip
STEM_NUMERICS: dict[str, Any] = {
    "stem_group_norm_epsilon": 1e-5,
    "stem_standardisation": "var",
    "stem_standardisation_epsilon": 1e-8,
}


def vit_layout(config: ViTConfig) -> Layout:
    """timm's layout of a ViT, and of a hybrid with its stem."""
    entries = {
        "patch_embedding/kernel": transposed("patch_embed.proj.weight", 3, 2, 0, 1),
        "patch_embedding/bias": reshaped("patch_embed.proj.bias"),
        "position_embedding/0/embedding": reshaped("pos_embed"),
    }
    if config.classifier == "token":
        entries["class_token"] = reshaped("cls_token")

    def add(ours: str, theirs: str, norm: bool = False) -> None:
        if norm:
            entries[f"{ours}/scale"] = reshaped(f"{theirs}.weight")
        else:
            entries[f"{ours}/kernel"] = transposed(f"{theirs}.weight", 1, 0)
        entries[f"{ours}/bias"] = reshaped(f"{theirs}.bias")

    # With average pooling timm normalises after it, under another name; see check_supported.
    add("encoder_norm", "norm", norm=True)
    add("head", "head")
    for i in range(config.num_layers):
        ours, theirs = f"blocks/{i}", f"blocks.{i}"
        add(f"{ours}/attention_norm", f"{theirs}.norm1", norm=True)
        add(f"{ours}/mlp_norm", f"{theirs}.norm2", norm=True)
        add(f"{ours}/mlp/dense1", f"{theirs}.mlp.fc1")
        add(f"{ours}/mlp/dense2", f"{theirs}.mlp.fc2")
        add(f"{ours}/attention/out", f"{theirs}.attn.proj")
        entries[f"{ours}/attention/qkv/kernel"] = flattened(f"{theirs}.attn.qkv.weight")
        entries[f"{ours}/attention/qkv/bias"] = reshaped(
            f"{theirs}.attn.qkv.bias", lambda shape: (int(np.prod(shape)),)
        )
    if config.stem_depths is not None:
        entries |= stem_layout(config.stem_depths)
    return entries


def stem_layout(depths: tuple[int, ...]) -> Layout:
    """timm's layout of a hybrid's stem."""
    root = "patch_embed.backbone" + (".stem" if depths else "")
    entries = {"stem/conv_root/kernel": transposed(f"{root}.conv.weight", 3, 2, 0, 1)}

    def add_norm(ours: str, theirs: str) -> None:
        entries[f"{ours}/scale"] = reshaped(f"{theirs}.weight")
        entries[f"{ours}/bias"] = reshaped(f"{theirs}.bias")

    add_norm("stem/norm_root", f"{root}.norm")
    for stage, depth in enumerate(depths):
        for unit in range(depth):
            ours = f"stem/stages/{stage}/{unit}"
            theirs = f"patch_embed.backbone.stages.{stage}.blocks.{unit}"
            parts = {str(n): (f"{theirs}.conv{n}", f"{theirs}.norm{n}") for n in (1, 2, 3)}
            if unit == 0:
                parts["_proj"] = (f"{theirs}.downsample.conv", f"{theirs}.downsample.norm")
            for part, (conv, norm) in parts.items():
                entries[f"{ours}/conv{part}/kernel"] = transposed(f"{conv}.weight", 3, 2, 0, 1)
                add_norm(f"{ours}/norm{part}", norm)
    return entries


def resnet_layout(config: ResNetConfig) -> Layout:
    """timm's layout of a BiT ResNet."""
    entries = {
        "conv_root/kernel": transposed("stem.conv.weight", 3, 2, 0, 1),
        "norm/scale": reshaped("norm.weight"),
        "norm/bias": reshaped("norm.bias"),
        "head/kernel": transposed("head.fc.weight", 1, 0, extra=2),
        "head/bias": reshaped("head.fc.bias"),
    }
    for stage, depth in enumerate(config.depths):
        for unit in range(depth):
            ours, theirs = f"stages/{stage}/{unit}", f"stages.{stage}.blocks.{unit}"
            for n in (1, 2, 3):
                conv = transposed(f"{theirs}.conv{n}.weight", 3, 2, 0, 1)
                entries[f"{ours}/conv{n}/kernel"] = conv
                entries[f"{ours}/norm{n}/scale"] = reshaped(f"{theirs}.norm{n}.weight")
                entries[f"{ours}/norm{n}/bias"] = reshaped(f"{theirs}.norm{n}.bias")
            if unit == 0:
                proj = transposed(f"{theirs}.downsample.conv.weight", 3, 2, 0, 1)
                entries[f"{ours}/conv_proj/kernel"] = proj
    return entries


def layout(config: models.ModelConfig) -> Layout:
    """timm's layout of a model.

    Raises:
      UserError: timm has no place for it.
    """
    if isinstance(config, ResNetConfig) and not config.axial_heads:
        return resnet_layout(config)
    if (
        type(config) is ViTConfig
        and config.classifier == "token"
        and config.position_embedding == "1d"
        and config.position_embedding_at == "stem"
        and config.representation_size is None
    ):
        return vit_layout(config)
    hidden = getattr(config, "representation_size", None) is not None
    raise UserError(
        f"timm has no place for this {config.variant}"
        + (
            " with the hidden layer of the pre-training head; use --to=huggingface, npz or native."
            if hidden
            else " (only class-token ViTs with 1-D position embeddings, their hybrids, and BiT); "
            "use --to=native."
        )
    )


def save(directory: str | Path, config: models.ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes a directory for `timm.create_model("local-dir:DIRECTORY", pretrained=True)`.

    Raises:
      UserError: timm has no place for the model.
    """
    entries = layout(config)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    saved.write_safetensors(
        directory / "model.safetensors", to_foreign(entries, params), {"format": "pt"}
    )
    files.write_json(directory / "config.json", timm_config(config))


def timm_config(config: models.ModelConfig) -> dict[str, Any]:
    """`config.json`: the architecture, the arguments that make it ours, and the preprocessing."""
    height, width = config.image_size
    preprocessing = dict(config.preprocessing)
    crop = height / preprocessing["resize"] if "resize" in preprocessing else 1.0
    arguments: dict[str, Any] = {}
    variant = models.find_variant(config)
    if isinstance(config, ViTConfig):
        name = ARCHITECTURES.get(variant, "vit_base_patch16_@").replace("@", "224")
        arguments = {"act_layer": "gelu_tanh" if config.activation == "gelu_tanh" else "gelu"}
        arguments["img_size"] = [height, width]
        if variant not in ARCHITECTURES:
            arguments |= {
                "patch_size": list(config.patch_size),
                "embed_dim": config.hidden_size,
                "depth": config.num_layers,
                "num_heads": config.num_heads,
                "mlp_ratio": config.mlp_dim / config.hidden_size,
            }
            if config.stem_depths is not None:
                raise UserError(f"timm has no architecture for the hybrid {config.variant}.")
    else:
        if variant not in ARCHITECTURES:
            raise UserError(f"timm has no architecture for the ResNet {config.variant}.")
        name = ARCHITECTURES[variant]
    values = {
        "architecture": name,
        "num_classes": config.num_classes,
        "global_pool": "token" if isinstance(config, ViTConfig) else "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.channels, height, width],
            "mean": [0.5] * config.channels,
            "std": [0.5] * config.channels,
            "interpolation": "bilinear",
            "crop_pct": crop,
            "crop_mode": "center" if "resize" in preprocessing else "squash",
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj" if isinstance(config, ViTConfig) else "stem.conv",
            "classifier": "head" if isinstance(config, ViTConfig) else "head.fc",
        },
    }
    if config.labels:
        values["label_names"] = list(config.labels)
    return values


def is_timm(weights: Mapping[str, Any]) -> bool:
    """Whether these are the arrays of a timm ViT, hybrid or BiT."""
    return "patch_embed.proj.weight" in weights or "stem.conv.weight" in weights


def load(
    path: str | Path, *, variant: str | None = None
) -> tuple[models.ModelConfig, dict[str, np.ndarray]]:
    """Reads a timm directory, or a bare `.safetensors` (with timm's defaults: exact GELU).

    Raises:
      UserError: missing, damaged, or of no architecture that we have.
    """
    path = Path(path)
    values: dict[str, Any] = {}
    if path.is_dir():
        values = files.read_json(path / "config.json") or {}
        weights = saved.read_weights(path)
    else:
        weights = saved.read_safetensors(path)
    if not is_timm(weights):
        some = ", ".join(sorted(weights)[:4])
        raise UserError(f"{path} is no timm ViT, hybrid or BiT: it has {some}, ...")
    config = find_config(weights, values, str(path), variant)
    return config, from_foreign(layout(config), weights, config, str(path))


def find_config(
    weights: Mapping[str, Any], values: Mapping[str, Any], where: str, variant: str | None
) -> models.ModelConfig:
    """The configuration that timm's arrays and `config.json` describe."""
    arguments = values.get("model_args") or {}
    facts = values.get("pretrained_cfg") or {}
    size = arguments.get("img_size") or (facts.get("input_size") or [3, 224, 224])[1:]
    labels = tuple(values.get("label_names") or facts.get("label_names") or ())
    if "stem.conv.weight" in weights:
        return _find_resnet(weights, models.pair(_plain(size)), labels)
    blocks = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))}
    hidden, channels, ph, pw = weights["patch_embed.proj.weight"].shape
    stem = None
    unit = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.conv1")
    units = [(int(m[1]), int(m[2])) for name in weights if (m := unit.match(name))]
    root = next(
        (n for n in weights if re.fullmatch(r"patch_embed\.backbone(\.stem)?\.conv\.weight", n)), ""
    )
    if root:
        stem = tuple(
            max(u for s, u in units if s == stage) + 1 for stage in sorted({s for s, _ in units})
        )
        channels = weights[root].shape[1]
    if "pos_embed" not in weights or "head.weight" not in weights:
        missing = "pos_embed" if "pos_embed" not in weights else "head.weight"
        raise UserError(
            f"{where}: it has no {missing}; only ViTs with a class token, learned position "
            "embeddings and a classifier can be read from timm."
        )
    grid = _grid(weights["pos_embed"].shape[1] - 1, size, (ph, pw), stem)
    stride = 1 if stem is None else stem_stride(stem)
    mlp = weights["blocks.0.mlp.fc1.weight"].shape[0]
    config = ViTConfig(
        variant="custom",
        patch_size=(ph, pw),
        hidden_size=hidden,
        num_layers=len(blocks),
        mlp_dim=mlp,
        num_heads=_heads(arguments, variant, hidden, len(blocks), mlp),
        image_size=(grid[0] * ph * stride, grid[1] * pw * stride),
        channels=channels,
        num_classes=weights["head.weight"].shape[0],
        stem_depths=stem,
        stem_width=weights[root].shape[0] / 64 if root else 1.0,
        activation="gelu_tanh" if "tanh" in str(arguments.get("act_layer", "")) else "gelu",
        labels=labels if len(labels) == weights["head.weight"].shape[0] else (),
        preprocessing=_preprocessing(facts, grid[0] * ph * stride),
        **(STEM_NUMERICS if stem is not None else {}),
    )
    return models.replace(config, variant=models.find_variant(config))


def _plain(size: Any) -> Any:
    return int(size) if isinstance(size, int) else tuple(size)


def _grid(tokens: int, size: Any, patch: tuple[int, int], stem: Any) -> tuple[int, int]:
    """Rows and columns of the position embeddings: as the image size says, otherwise square."""
    stride = 1 if stem is None else stem_stride(stem)
    height, width = models.pair(_plain(size))
    grid = height // (patch[0] * stride), width // (patch[1] * stride)
    if grid[0] * grid[1] == tokens:
        return grid
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UserError(f"Position embeddings of {tokens} patches are not square.")
    return side, side


def _heads(
    arguments: Mapping[str, Any], variant: str | None, hidden: int, layers: int, mlp: int
) -> int:
    """Heads are not in the arrays: from the config, the variant, the table, or 64 wide each."""
    if "num_heads" in arguments:
        return int(arguments["num_heads"])
    names = [variant] if variant else list(models.VARIANTS)
    for name in names:
        row = models.get_config(name)
        shape = [getattr(row, f, None) for f in ("hidden_size", "num_layers", "mlp_dim")]
        if shape == [hidden, layers, mlp]:
            return row.num_heads  # type: ignore[union-attr]
    return max(hidden // 64, 1)


def _find_resnet(
    weights: Mapping[str, Any], size: tuple[int, int], labels: tuple[str, ...]
) -> ResNetConfig:
    unit = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.conv1")
    units = [(int(m[1]), int(m[2])) for name in weights if (m := unit.match(name))]
    depths = tuple(
        max(u for s, u in units if s == stage) + 1 for stage in sorted({s for s, _ in units})
    )
    classes = weights["head.fc.bias"].shape[0]
    config = ResNetConfig(
        variant="custom",
        depths=depths,
        width_factor=weights["stem.conv.weight"].shape[0] / 64,
        image_size=size,
        channels=weights["stem.conv.weight"].shape[1],
        num_classes=classes,
        standardisation_epsilon=1e-8,
        pool_padding="zeros",
        labels=labels if len(labels) == classes else (),
    )
    return models.replace(config, variant=models.find_variant(config))


def _preprocessing(facts: Mapping[str, Any], size: int) -> tuple[tuple[str, Any], ...]:
    crop = facts.get("crop_pct", 1.0)
    if crop < 1.0 and facts.get("crop_mode", "center") == "center":
        return (("name", "resize_center_crop"), ("resize", round(size / crop)))
    return (("name", "resize"),)
