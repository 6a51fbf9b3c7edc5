"""timm's checkpoints of ViT, hybrids and BiT: directories as on the Hub, or bare safetensors.

timm's numerics differ: exact GELU by default (`act_layer`), GroupNorm epsilon 1e-5 and weight
standardisation with 1e-8 in the variance for hybrids, and zero padding at the root's pooling for
BiT. Weights from timm keep them; our hybrids and BiT models written with other numerics therefore
give slightly different logits in timm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import data, files, models
from vit_jax.errors import UserError
from vit_jax.interop import pixels, settings, timm_vit, weight_files
from vit_jax.interop.layout import Layout, flattened, from_foreign, reshaped, to_foreign, transposed
from vit_jax.interop.settings import OFF, READ, TRAINING, WORDS, Nothing, Only
from vit_jax.models import ResNetConfig, ViTConfig, saved

#: timm's names of our variants; "@" is the image size.
ARCHITECTURES = {
    "Ti/16": "vit_tiny_patch16_@", "S/32": "vit_small_patch32_@", "S/16": "vit_small_patch16_@",
    "B/32": "vit_base_patch32_@", "B/16": "vit_base_patch16_@", "L/32": "vit_large_patch32_@",
    "L/16": "vit_large_patch16_@", "H/14": "vit_huge_patch14_@",
    "R50+B/16": "vit_base_r50_s16_@", "R50+L/32": "vit_large_r50_s32_@",
    "R26+S/32": "vit_small_r26_s32_@", "R26+B/32": "vit_base_r26_s32_@",
    "R50x1": "resnetv2_50x1_bit", "R50x3": "resnetv2_50x3_bit", "R101x1": "resnetv2_101x1_bit",
    "R101x3": "resnetv2_101x3_bit", "R152x2": "resnetv2_152x2_bit", "R152x4": "resnetv2_152x4_bit",
}  # fmt: skip
#: What an architecture's name implies besides sizes: arguments of timm's function of that name.
VIT: dict[str, dict[str, Any]] = {
    r"vit_(?P<size>tiny|small|base|large|huge)_patch\d+_\d+(_in21k)?": {},
    r"deit_(?P<size>tiny|small|base)_patch16_\d+": {},
    r"vit_(?P<size>base|huge)_patch\d+_gap_\d+": {
        "class_token": False, "global_pool": "avg", "fc_norm": False,
    },
    r"vit_(?P<size>base)_patch16_224_miil(_in21k)?": {"qkv_bias": False},
    r"vit_(?P<size>small|base|large)_patch14_dinov2": {"img_size": 518},
    r"vit_(?P<size>tiny|small|base|large)_(r|r26|r50)_s(16|32)(_p8)?_\d+(_in21k)?": {},
}  # fmt: skip
BIT: dict[str, dict[str, Any]] = {r"resnetv2_(50|101|152)x[1234]_bit": {}}
HEADS = {"tiny": 3, "small": 6, "base": 12, "large": 16, "huge": 16}
#: timm's VisionTransformer.__init__; settings that are used are read in timm_vit.py.
ARGUMENTS: settings.Table = {
    **dict.fromkeys(("img_size", "patch_size", "in_chans", "num_classes", "global_pool",
                     "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "proj_bias",
                     "init_values", "class_token", "pos_embed", "no_embed_class", "fc_norm",
                     "act_layer"), READ),
    **dict.fromkeys(("qk_norm", "scale_attn_norm", "scale_mlp_norm", "reg_tokens", "pre_norm",
                     "pool_include_prefix"), OFF),
    "final_norm": Only((True, None)),
    **dict.fromkeys(("embed_layer", "embed_norm_layer", "norm_layer", "block_fn", "mlp_layer",
                     "attn_layer"), Only((None,))),
    **dict.fromkeys(("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate",
                     "attn_drop_rate", "drop_path_rate", "weight_init", "fix_init"), TRAINING),
    **dict.fromkeys(("dynamic_img_size", "dynamic_img_pad"),
                    Nothing("no effect at the model's own image size")),
    **dict.fromkeys(("device", "dtype"), Nothing("where and how it is computed")),
}  # fmt: skip
#: timm's ResNetV2.__init__.
BIT_ARGUMENTS: settings.Table = {
    **dict.fromkeys(("layers", "num_classes", "in_chans", "width_factor"), READ),
    "channels": Only((None, [256, 512, 1024, 2048])),
    "global_pool": Only((None, "avg")),
    "output_stride": Only((None, 32)),
    "stem_chs": Only((None, 64)),
    "stem_type": Only((None, "fixed")),
    **dict.fromkeys(("avg_down", "basic"), OFF),
    "preact": Only((None, True)),
    "bottle_ratio": Only((None, 0.25)),
    "act_layer": Only((None, "relu")),
    **dict.fromkeys(("norm_layer", "conv_layer"), Only((None,))),
    **dict.fromkeys(("drop_rate", "drop_path_rate", "zero_init_last"), TRAINING),
    **dict.fromkeys(("device", "dtype"), Nothing("where and how it is computed")),
}  # fmt: skip
#: Top level of config.json.
TOP: settings.Table = {
    **dict.fromkeys(("architecture", "num_classes", "global_pool", "model_args", "pretrained_cfg",
                     "label_names", pixels.OURS), READ),
    "label_descriptions": WORDS,
    "num_features": Nothing("follows from the weights"),
}  # fmt: skip


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
      UserError: timm cannot represent it.
    """
    if isinstance(config, ResNetConfig) and not config.axial_heads:
        return resnet_layout(config)
    if (
        type(config) is ViTConfig
        and config.classifier in ("token", "gap")
        and config.position_embedding == "1d"
        and config.position_embedding_at == "stem"
        and config.representation_size is None
    ):
        return vit_layout(config)
    hidden = getattr(config, "representation_size", None) is not None
    raise UserError(
        f"timm cannot represent this {config.variant}"
        + (
            " with the hidden layer of the pre-training head; use --to=huggingface, npz or native."
            if hidden
            else " (only ViTs with 1-D position embeddings, their hybrids, and BiT); "
            "use --to=native."
        )
    )


def save(directory: str | Path, config: models.ModelConfig, params: models.Params) -> None:
    """Writes a directory for `timm.create_model("local-dir:DIRECTORY", pretrained=True)`.

    Raises:
      UserError: timm cannot represent the model.
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
    facts, _ = pixels.to_pretrained_cfg(config.preprocessing, config)
    arguments: dict[str, Any] = {}
    variant = models.find_variant(config)
    if isinstance(config, ViTConfig):
        name = ARCHITECTURES.get(variant, "vit_base_patch16_@").replace("@", "224")
        arguments = {"act_layer": config.activation}
        if config.classifier == "gap":
            arguments |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
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
        "global_pool": "token" if getattr(config, "classifier", "") == "token" else "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [config.channels, height, width],
            **facts,
            "num_classes": config.num_classes,
            "first_conv": "patch_embed.proj" if isinstance(config, ViTConfig) else "stem.conv",
            "classifier": "head" if isinstance(config, ViTConfig) else "head.fc",
        },
    }
    values[pixels.OURS] = [list(pair) for pair in config.preprocessing]
    if config.labels:
        values["label_names"] = list(config.labels)
    return values


def is_timm(weights: Mapping[str, np.ndarray]) -> bool:
    """Whether these are the arrays of a timm ViT, hybrid or BiT."""
    return "patch_embed.proj.weight" in weights or "stem.conv.weight" in weights


def load(
    path: str | Path, *, variant: str | None = None
) -> tuple[models.ModelConfig, dict[str, np.ndarray]]:
    """Reads a timm directory, or a bare `.safetensors` (with timm's defaults: exact GELU).

    Raises:
      UserError: missing, damaged, or an unsupported architecture.
    """
    path = Path(path)
    values: dict[str, Any] = {}
    if path.is_dir():
        values = files.read_json(path / "config.json") or {}
        weights = weight_files.read_weights(path)
    else:
        weights = saved.read_safetensors(path)
    weights = weight_files.unwrapped(weights, str(path))
    if not is_timm(weights):
        some = ", ".join(sorted(weights)[:4])
        raise UserError(f"{path} is not a timm ViT, hybrid or BiT: it has {some}, ...")
    where = f"{path}/config.json"
    values, facts = as_written(values, where)
    config, weights = find_config(weights, values, facts, str(path), variant)
    params = from_foreign(layout(config), weights, config, str(path))
    if not values:
        print(f"{path} has no image settings: using [-1, 1] and whole images")
        return models.replace(config, preprocessing=data.FOREIGN_EVALUATION), params
    preprocessing, scale = pixels.from_pretrained_cfg(facts, config, where, values.get(pixels.OURS))
    return models.replace(config, preprocessing=preprocessing), pixels.fold(
        config, params, scale, where
    )


def as_written(values: settings.Values, where: str) -> tuple[dict, dict]:
    """`config.json` and its `pretrained_cfg`, a single object in older versions."""
    values = dict(values)
    if values and "pretrained_cfg" not in values:
        facts = {k: v for k, v in values.items() if k in pixels.PRETRAINED or k not in TOP}
        values = {key: values[key] for key in values if key in TOP and key not in ("num_classes",)}
    else:
        facts = dict(values.get("pretrained_cfg") or {})
    settings.check(values, TOP, where, strict=False)
    return values, facts


def find_config(
    weights: dict[str, np.ndarray],
    values: settings.Values,
    facts: settings.Values,
    where: str,
    variant: str | None,
) -> tuple[models.ModelConfig, dict[str, np.ndarray]]:
    """The configuration from arrays and settings, and the arrays that it needs."""
    arguments = {k: v for k, v in (values.get("model_args") or {}).items() if v is not None}
    labels = tuple(
        values.get("label_names") or facts.get("label_names") or facts.get("labels") or ()
    )
    size = arguments.get("img_size") or (facts.get("input_size") or [3, 224, 224])[1:]
    is_bit = "stem.conv.weight" in weights
    implied = _implied(values, is_bit, where)
    settings.check(arguments, BIT_ARGUMENTS if is_bit else ARGUMENTS, where)
    if is_bit:
        config: models.ModelConfig = _find_resnet(weights, models.pair(size), labels, where)
        weights = dict(weights)
        pool = "avg"
    else:
        weights, config, pool = timm_vit.read(
            weights, implied | arguments, size, "img_size" in arguments, labels, where,
            variant, bool(values),
        )  # fmt: skip
    stated = values.get("global_pool")
    if stated is not None and stated != pool:
        settings.refuse(where, "global_pool", stated, f"its model_args say {pool!r}")
    classes = config.num_classes
    for of, key in ((arguments, "num_classes"), (values, "num_classes"), (facts, "num_classes")):
        if of.get(key) not in (None, 0, classes):
            settings.refuse(where, key, of[key], f"the weights have {classes}")
    if arguments.get("in_chans", config.channels) != config.channels:
        settings.refuse(where, "in_chans", arguments["in_chans"], "the weights have others")
    return config, weights


def _implied(values: settings.Values, is_bit: bool, where: str) -> dict[str, Any]:
    """The arguments implied by an architecture's name.

    Raises:
      UserError: an unknown or unsupported architecture.
    """
    name = values.get("architecture")
    if name is None:
        return {}
    for pattern, arguments in (BIT if is_bit else VIT).items():
        if found := re.fullmatch(pattern, str(name).split(".")[0]):
            heads = HEADS.get(found.groupdict().get("size") or "")
            return ({"num_heads": heads} if heads else {}) | arguments
    why = "it is unknown; its blocks may differ from the paper's"
    settings.refuse(where, "architecture", name, why)
    raise AssertionError


def _find_resnet(
    weights: Mapping[str, np.ndarray], size: tuple[int, int], labels: tuple[str, ...], where: str
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
        labels=settings.class_names(labels, classes, where),
    )
    return models.replace(config, variant=models.find_variant(config))
