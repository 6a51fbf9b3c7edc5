"""The table of variants: one row per model (Table 1 and section 4.1 of the paper)."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Sequence
from typing import Any

from vit_jax.errors import UserError, nearest
from vit_jax.models.axial import AxialConfig
from vit_jax.models.resnet import ResNetConfig
from vit_jax.models.vit_config import ViTConfig

#   hidden_size, num_layers, mlp_dim, num_heads
SIZES = {
    "debug": (64, 2, 128, 4),
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "b": (384, 12, 1536, 6),  # Fig. 4: B with half the hidden size
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
}

#        size, patch size, stages of the ResNet stem (None: no stem)
VIT_ROWS: dict[str, tuple[str, int, tuple[int, ...] | None]] = {
    "debug": ("debug", 8, None),
    "debug-hybrid": ("debug", 1, (1, 1)),
    "Ti/16": ("Ti", 16, None),
    "S/32": ("S", 32, None),
    "S/16": ("S", 16, None),
    "b/32": ("b", 32, None),
    "B/32": ("B", 32, None),
    "B/16": ("B", 16, None),
    "L/32": ("L", 32, None),
    "L/16": ("L", 16, None),
    "H/14": ("H", 14, None),
    # Hybrids: /32 reads stage 4; /16 has stage 4's three units moved into stage 3 (section 4.1).
    "R50+B/32": ("B", 1, (3, 4, 6, 3)),
    "R50+B/16": ("B", 1, (3, 4, 9)),
    "R50+L/32": ("L", 1, (3, 4, 6, 3)),
    "R50+L/16": ("L", 1, (3, 4, 9)),
    # Hybrids released later.
    "R+Ti/16": ("Ti", 8, ()),  # 8x8 patches after a stride of 4: 32 in total, despite its name
    "R26+S/32": ("S", 1, (2, 2, 2, 2)),
    "R26+B/32": ("B", 1, (2, 2, 2, 2)),
}

#               stages             width factor
RESNET_ROWS: dict[str, tuple[tuple[int, ...], float]] = {
    "debug-resnet": ((1, 1), 0.5),
    "R50x1": ((3, 4, 6, 3), 1),
    "R50x2": ((3, 4, 6, 3), 2),
    "R50x3": ((3, 4, 6, 3), 3),
    "R101x1": ((3, 4, 23, 3), 1),
    "R101x3": ((3, 4, 23, 3), 3),
    "R152x1": ((3, 8, 36, 3), 1),
    "R152x2": ((3, 8, 36, 3), 2),
    "R152x4": ((3, 8, 36, 3), 4),
    "R200x3": ((3, 24, 36, 3), 3),
}

#: Appendix D.6: size, patch size.
AXIAL_ROWS = {"Axial-B/32": ("B", 32), "Axial-B/16": ("B", 16), "debug-axial": ("debug", 8)}

ModelConfig = ViTConfig | ResNetConfig


#: The debug models are for 32-pixel images, all others for 224.
DEBUG = (32, 32)


def _vit(name: str) -> ViTConfig:
    size, patch, stem = VIT_ROWS[name]
    config = ViTConfig(name, (patch, patch), *SIZES[size], stem_depths=stem)
    if size != "debug":
        return config
    return dataclasses.replace(config, image_size=DEBUG, stem_width=0.5 if stem else 1.0)


def _axial(name: str) -> ViTConfig:
    size, patch = AXIAL_ROWS[name]
    config = AxialConfig(name, (patch, patch), *SIZES[size])
    return dataclasses.replace(config, image_size=DEBUG) if size == "debug" else config


def _axial_resnet(name: str) -> ResNetConfig:
    depths, width = RESNET_ROWS[name.removeprefix("Axial-")]
    return ResNetConfig(name, depths=depths, width_factor=width, axial_heads=8)


def _resnet(name: str) -> ResNetConfig:
    depths, width = RESNET_ROWS[name]
    config = ResNetConfig(name, depths=depths, width_factor=width)
    return dataclasses.replace(config, image_size=DEBUG) if name == "debug-resnet" else config


VARIANTS: dict[str, Callable[[str], ModelConfig]] = {
    **dict.fromkeys(VIT_ROWS, _vit),
    **dict.fromkeys(RESNET_ROWS, _resnet),
    **dict.fromkeys(AXIAL_ROWS, _axial),
    "Axial-R50x1": _axial_resnet,
}


def variants() -> tuple[str, ...]:
    """The names of all models: Table 1, hybrids, BiT's ResNets, axial and small ones."""
    return tuple(VARIANTS)


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A size as (height, width); one number means square.

    Raises:
      UserError: it is neither.
    """
    sides = value if isinstance(value, (tuple, list)) else (value, value)
    if len(sides) != 2 or not all(isinstance(side, numbers.Integral) for side in sides):
        raise UserError(f"A size is a whole number, or (height, width), not {value!r}.")
    return int(sides[0]), int(sides[1])


def get_config(variant: str, **overrides: object) -> ModelConfig:
    """The configuration of a named variant, with any of its fields replaced.

    `image_size` and `patch_size` may be one number. `representation_size="hidden"` means the hidden
    size, as in the paper's pre-training head. None leaves a field as it is.

    Raises:
      UserError: no such variant, or the variant has no such field; names the nearest.
    """
    if not isinstance(variant, str) or variant not in VARIANTS:
        hint = nearest(variant, VARIANTS) or f" There are {', '.join(VARIANTS)}."
        raise UserError(f"There is no variant {variant!r}.{hint}")
    return override(VARIANTS[variant](variant), **overrides)


#: The fields that define a variant; the rest are settings.
SHAPE_FIELDS = {
    ViTConfig: (
        "patch_size", "hidden_size", "num_layers", "mlp_dim", "num_heads", "stem_depths",
        "stem_width",
    ),
    ResNetConfig: ("depths", "width_factor", "axial_heads"),
}  # fmt: skip


def find_variant(config: ModelConfig) -> str:
    """The name of the variant that has the shape of `config`, or "custom"."""
    for kind, fields in SHAPE_FIELDS.items():
        if type(config) is kind:
            for name, make in VARIANTS.items():
                row = make(name)
                if type(row) is kind and all(
                    getattr(row, field) == getattr(config, field) for field in fields
                ):
                    return name
    return "custom"


def named(config: ModelConfig) -> str:
    """The variant, and what of its shape was changed: custom (Ti/16, hidden size 128, ...)."""
    if config.variant not in VARIANTS:  # of a checkpoint of another shape
        return config.variant
    row = VARIANTS[config.variant](config.variant)
    fields = next(fields for kind, fields in SHAPE_FIELDS.items() if isinstance(config, kind))
    changed = [
        f"{field.removeprefix('num_').replace('_', ' ')} {text(getattr(config, field))}"
        for field in fields
        if getattr(config, field) != getattr(row, field)
    ]
    return f"custom ({', '.join([config.variant, *changed])})" if changed else config.variant


def text(value: object) -> str:
    """4x4 of (4, 4)."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def override(config: ModelConfig, **overrides: Any) -> ModelConfig:
    """A configuration with some fields replaced, as `get_config` takes them.

    Raises:
      UserError: there is no such field; names the nearest.
    """
    fields = {field.name for field in dataclasses.fields(config)}
    overrides = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in overrides.items()
        if value is not None
    }
    for key in overrides:
        if key not in fields:
            raise UserError(f"{config.variant} has no setting model.{key}.{nearest(key, fields)}")
    for key in ("image_size", "patch_size"):
        if key in overrides:
            overrides[key] = pair(overrides[key])
    if overrides.get("representation_size") == "hidden":
        own = getattr(config, "hidden_size", None)
        overrides["representation_size"] = overrides.get("hidden_size", own)
    return dataclasses.replace(config, **overrides)
