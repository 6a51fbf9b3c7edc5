"""Reads timm's arrays of a ViT or a hybrid, with their arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop import settings
from vit_jax.models import ViTConfig
from vit_jax.models.vit_config import stem_stride

Arrays = dict[str, np.ndarray]
Size = int | Sequence[int]
T = TypeVar("T")
ACTIVATIONS = {
    "gelu": "gelu", "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu",
    "silu": "silu", "swish": "silu",
}  # fmt: skip
#: Arrays that our models do not support, and the argument that they come from.
STRANGERS = {
    r"reg_token": ("reg_tokens", "register tokens"),
    r"norm_pre\.": ("pre_norm", "a norm before the blocks"),
    r"attn_pool\.": ("global_pool", "attention pooling"),
    r"dist_token": ("architecture", "a distillation token"),
    r"blocks\.0\.attn\.q_norm\.": ("qk_norm", "norms of queries and keys"),
    r"blocks\.0\.attn\.norm\.": ("scale_attn_norm", "a norm inside the attention"),
    r"blocks\.0\.mlp\.norm\.": ("scale_mlp_norm", "a norm inside the MLP"),
    r"blocks\.0\.mlp\.(fc1_g|w1|w12|w3)\.": ("mlp_layer", "a gated MLP (SwiGLU)"),
    r"patch_embed\.norm\.": ("embed_norm_layer", "a norm of the patches"),
}


def read(
    weights: Mapping[str, np.ndarray],
    arguments: Mapping[str, object],
    size: Size,
    size_is_said: bool,
    labels: tuple[str, ...],
    where: str,
    variant: str | None,
    is_directory: bool,
) -> tuple[Arrays, ViTConfig, str]:
    """The arrays for our layout, the configuration, and how tokens are pooled.

    Raises:
      UserError: an unsupported argument or array, by name.
    """
    check_unsupported_arrays(weights, where)
    weights = dict(weights)

    def argument(key: str, default: T, parse: Callable[..., T]) -> T:
        return settings.get(arguments, key, default, where, parse)

    def agree(key: str, found: object, parse: Callable[..., object] = settings.count) -> None:
        if argument(key, found, parse) != found:
            settings.refuse(where, key, arguments[key], f"the weights have {found}")

    if "pos_embed" not in weights or argument("pos_embed", "learn", str) != "learn":
        settings.refuse(where, "pos_embed", arguments.get("pos_embed", "none"),
                        "only learned position embeddings are supported")  # fmt: skip
    token = "cls_token" in weights
    if argument("class_token", token, settings.flag) != token:
        settings.refuse(where, "class_token", arguments["class_token"], "the weights differ")
    if not token and not is_directory:
        raise UserError(
            f"{where} has no class token (cls_token), and without its config.json the pooling is "
            "unknown; give its directory."
        )
    pool = pooling(arguments, token, where)
    # With the class token it makes no difference.
    if argument("fc_norm", pool in ("avg", "avgmax", "max"), settings.flag):
        weights |= {f"norm.{p}": weights.pop(f"fc_norm.{p}") for p in ("weight", "bias")
                    if f"fc_norm.{p}" in weights}  # fmt: skip
    activation = argument("act_layer", "gelu", str)
    if activation not in ACTIVATIONS:
        settings.refuse(where, "act_layer", activation, f"there are {', '.join(ACTIVATIONS)}")

    blocks = {int(m[1]) for name in weights if (m := re.match(r"blocks\.(\d+)\.", name))}
    hidden, channels, ph, pw = weights["patch_embed.proj.weight"].shape
    agree("embed_dim", hidden)
    agree("depth", len(blocks))
    agree("patch_size", (ph, pw), models.pair)
    fold_scales(weights, sorted(blocks))
    for key, names in (
        ("qkv_bias", ("attn.qkv",)),
        ("proj_bias", ("attn.proj", "mlp.fc1", "mlp.fc2")),
    ):
        if not argument(key, True, settings.flag):
            for name in (f"blocks.{i}.{part}" for i in blocks for part in names):
                kernel = weights.get(f"{name}.weight", np.zeros((0, 0), np.float32))
                weights.setdefault(f"{name}.bias", np.zeros(len(kernel), np.float32))
    first, second = (weights.get(f"blocks.0.mlp.fc{n}.weight") for n in (1, 2))
    if first is None or second is None or len(first) != second.shape[1]:
        why = "its MLP is gated (SwiGLU) or another; only two dense layers are supported"
        settings.refuse(where, "mlp_layer", arguments.get("mlp_layer"), why)
    assert first is not None
    if "mlp_ratio" in arguments and int(hidden * argument("mlp_ratio", 4.0, float)) != len(first):
        settings.refuse(
            where, "mlp_ratio", arguments["mlp_ratio"], f"the weights have {len(first)}"
        )
    if "head.weight" not in weights:  # for features, and to be fine-tuned
        classes = max(len(labels), 1)
        weights["head.weight"] = np.zeros((classes, hidden), np.float32)
        weights["head.bias"] = np.zeros(classes, np.float32)
    classes = len(weights["head.weight"])

    stem, root = find_stem(weights)
    if root:
        channels = weights[root].shape[1]
    if argument("no_embed_class", False, settings.flag) and token:
        position = weights["pos_embed"]
        weights["pos_embed"] = np.concatenate([np.zeros_like(position[:, :1]), position], axis=1)
    tokens = weights["pos_embed"].shape[1] - token
    stride = 1 if stem is None else stem_stride(stem)
    grid = find_grid(tokens, size, (ph * stride, pw * stride), size_is_said, where)
    config = ViTConfig(
        variant="custom",
        patch_size=(ph, pw),
        hidden_size=hidden,
        num_layers=len(blocks),
        mlp_dim=len(first),
        num_heads=find_heads(arguments, variant, hidden, len(blocks), len(first)),
        image_size=(grid[0] * ph * stride, grid[1] * pw * stride),
        channels=channels,
        num_classes=classes,
        classifier="token" if token else "gap",
        stem_depths=stem,
        stem_width=weights[root].shape[0] / 64 if root else 1.0,
        activation=ACTIVATIONS[activation],
        labels=settings.class_names(labels, classes, where),
    )
    if stem is not None:  # as timm's hybrids have them
        config = models.replace(
            config,
            stem_group_norm_epsilon=1e-5,
            stem_standardisation="var",
            stem_standardisation_epsilon=1e-8,
        )
    return weights, models.replace(config, variant=models.find_variant(config)), pool


def check_unsupported_arrays(weights: Iterable[str], where: str) -> None:
    """Raises UserError for arrays of another kind of model."""
    for pattern, (key, what) in STRANGERS.items():
        for name in weights:
            if re.match(pattern, name):
                raise UserError(f"{where}: our models do not support {what} ({key}): {name}.")


def pooling(arguments: Mapping[str, object], token: bool, where: str) -> str:
    """timm's name of the pooling, if our models support it."""
    pool = arguments.get("global_pool", "token")
    if pool == "avg" and token:
        settings.refuse(
            where, "global_pool", pool, "with a class token, which ours would average too"
        )
    if pool not in ("token", "avg") or (pool == "token" and not token):
        why = "only 'token', and 'avg' without a class token, are supported"
        settings.refuse(where, "global_pool", pool, why)
    if pool == "avg" and arguments.get("fc_norm") is not False:
        why = "with 'avg' the norm is after the pooling, in ours before it (fc_norm=false)"
        settings.refuse(where, "fc_norm", arguments.get("fc_norm"), why)
    return str(pool)


def fold_scales(weights: Arrays, blocks: list[int]) -> None:
    """Layer scale (`init_values`): gamma is folded into the last layer of each branch."""
    for i in blocks:
        for scale, layer in (("ls1", "attn.proj"), ("ls2", "mlp.fc2")):
            if f"blocks.{i}.{scale}.gamma" not in weights:
                continue
            gamma = weights.pop(f"blocks.{i}.{scale}.gamma")
            for part in ("weight", "bias"):
                name = f"blocks.{i}.{layer}.{part}"
                if name in weights:
                    value = weights[name].astype(np.float32)
                    weights[name] = (value.T * gamma.astype(np.float32)).T


def find_stem(weights: Iterable[str]) -> tuple[tuple[int, ...] | None, str]:
    """The depths of a hybrid's stem, and the name of its first kernel; (None, "") without one."""
    unit = re.compile(r"patch_embed\.backbone\.stages\.(\d+)\.blocks\.(\d+)\.conv1")
    units = [(int(m[1]), int(m[2])) for name in weights if (m := unit.match(name))]
    first = re.compile(r"patch_embed\.backbone(\.stem)?\.conv\.weight")
    root = next((name for name in weights if first.fullmatch(name)), "")
    stages = sorted({stage for stage, _ in units})
    return (tuple(max(u for s, u in units if s == n) + 1 for n in stages) if root else None), root


def find_grid(
    tokens: int, size: Size, step: tuple[int, int], size_is_said: bool, where: str
) -> tuple[int, int]:
    """Rows and columns of the position embeddings: by the image size, otherwise square."""
    height, width = models.pair(size)
    grid = height // step[0], width // step[1]
    if grid[0] * grid[1] == tokens:
        return grid
    if size_is_said:
        settings.refuse(where, "img_size", size, f"the weights have {tokens} patches")
    side = round(tokens**0.5)
    if side * side != tokens:
        raise UserError(f"{where}: position embeddings of {tokens} patches are not square.")
    return side, side


def find_heads(arguments: Mapping, variant: str | None, hidden: int, layers: int, mlp: int) -> int:
    """The number of heads: from the arguments, the variant, the table, or head size 64."""
    if "num_heads" in arguments:
        return int(arguments["num_heads"])
    for name in [variant] if variant else list(models.VARIANTS):
        row = models.get_config(name)
        shape = [getattr(row, f, None) for f in ("hidden_size", "num_layers", "mlp_dim")]
        if shape == [hidden, layers, mlp]:
            return row.num_heads  # type: ignore[union-attr]
    return max(hidden // 64, 1)
