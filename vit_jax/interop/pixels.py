"""Image preprocessing of foreign models: their settings as our `preprocessing`, and back.

Our models take pixels in [-1, 1]. Another scale is a factor and an offset per channel, which is
folded into the linear patch embedding; logits stay the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop.settings import (
    OFF,
    READ,
    WORDS,
    Nothing,
    Only,
    Table,
    check,
    count,
    flag,
    get,
    refuse,
)

Preprocessing = models.Preprocessing
S = TypeVar("S")
T = TypeVar("T")
Scale = dict[str, npt.ArrayLike]  # "rescale" of pixels 0..255, and "mean" and "std" by channel
#: The key of our own preprocessing in their files, which they ignore.
OURS = "vit_jax_preprocessing"

PROCESSORS = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTImageProcessorPil",
              "ViTFeatureExtractor")  # fmt: skip
#: transformers' ViTImageProcessor: every key of its ImagesKwargs, and others in its files.
PROCESSOR: Table = {
    "image_processor_type": Only((*PROCESSORS, None)),
    "feature_extractor_type": Only((*PROCESSORS, None)),
    "processor_class": WORDS,
    "do_convert_rgb": Nothing("images are read as RGB"),
    "do_resize": Only((True, None)),
    "size": READ,
    "default_to_square": READ,
    "crop_size": READ,
    "resample": READ,
    "do_rescale": READ,
    "rescale_factor": READ,
    "do_normalize": READ,
    "image_mean": READ,
    "image_std": READ,
    "do_pad": OFF,
    "pad_size": Nothing("nothing is padded"),
    "do_center_crop": READ,
    "data_format": Only((None, "channels_first")),
    "input_data_format": Nothing("for arrays; files have their own"),
    "device": Nothing("where it is computed"),
    "return_tensors": Nothing("the type of the result"),
    "disable_grouping": Nothing("how images are batched"),
    "image_seq_length": Nothing("for text models"),
    OURS: READ,
}  # fmt: skip
RESAMPLE = {1: "lanczos", 2: "bilinear", 3: "bicubic"}  # Pillow's numbers
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def fold(
    config: models.ModelConfig,
    params: dict[str, np.ndarray],
    scale: Scale,
    where: str,
) -> dict[str, np.ndarray]:
    """Parameters for inputs in [-1, 1], where theirs were (pixels * rescale - mean) / std.

    Raises:
      UserError: the first layer is a convolution into which this cannot be folded.
    """
    rescale, mean, std = (np.asarray(scale[key], np.float64) for key in ("rescale", "mean", "std"))
    factor, offset = 127.5 * rescale / std, (127.5 * rescale - mean) / std
    if np.allclose(factor, 1, atol=1e-6) and np.allclose(offset, 0, atol=1e-6):
        return params
    kernel = np.asarray(params.get("patch_embedding/kernel", np.zeros(0)), np.float64)
    if "stem/conv_root/kernel" in params or not kernel.size:
        raise UserError(
            f"{where}: mean and std {mean.tolist()}, {std.tolist()} (rescale {float(rescale):.4g}) "
            f"are not supported; the first convolution of this {config.variant} is standardised "
            "and padded, so it needs mean 0.5 and std 0.5."
        )
    shape = kernel.shape[2:3]
    factor, offset = (np.broadcast_to(value, shape)[:, None] for value in (factor, offset))
    print(f"{where}: pixels are not scaled to [-1, 1]; folded into the patch embedding")
    bias = np.asarray(params["patch_embedding/bias"], np.float64) + (kernel * offset).sum((0, 1, 2))
    return params | {
        "patch_embedding/kernel": (kernel * factor).astype(np.float32),
        "patch_embedding/bias": bias.astype(np.float32),
    }


def channels(values: npt.ArrayLike, number: int) -> np.ndarray:
    """A mean or a std per channel; one number applies to all."""
    found = np.asarray(values, np.float64)
    if found.shape not in ((), (1,), (number,)) or not np.isfinite(found).all():
        raise ValueError(values)
    return np.broadcast_to(found, (number,))


def nonzero(values: npt.ArrayLike, number: int) -> np.ndarray:
    found = channels(values, number)
    if not found.all():
        raise ValueError(values)
    return found


# --- transformers -------------------------------------------------------------------------------


def from_processor(
    values: Mapping[str, object], config: models.ModelConfig, where: str
) -> tuple[Preprocessing, Scale]:
    """Our preprocessing and the pixel scale from `preprocessor_config.json`.

    Raises:
      UserError: an unsupported setting, by name.
    """
    check(values, PROCESSOR, where)

    def setting(key: str, default: T, parse: Callable[..., S]) -> S | T:
        return get(values, key, default, where, parse)

    number = config.channels
    scaled, normal = setting("do_rescale", True, flag), setting("do_normalize", True, flag)
    scale: Scale = {
        "rescale": setting("rescale_factor", 1 / 255, float) if scaled else 1.0,
        "mean": setting("image_mean", 0.5, lambda v: channels(v, number)) if normal else 0.0,
        "std": setting("image_std", 0.5, lambda v: nonzero(v, number)) if normal else 1.0,
    }
    if not np.isfinite(scale["rescale"]):
        refuse(where, "rescale_factor", values["rescale_factor"])
    number_ = values.get("resample")
    resample = 2 if number_ is None else number_
    interpolation = ""
    if isinstance(resample, int) and not isinstance(resample, bool):
        interpolation = RESAMPLE.get(resample, "")
    if not interpolation:
        refuse(
            where,
            "resample",
            resample,
            "only 1 (lanczos), 2 (bilinear) and 3 (bicubic) are supported",
        )
    square = setting("default_to_square", True, flag)
    size, fit = _size(values.get("size"), square, config.image_size if not values else None, where)
    cropped = setting("do_center_crop", False, flag)
    final = size
    if cropped:
        final, _ = _size(values.get("crop_size"), True, None, where, "crop_size")
    key = "crop_size" if cropped else "size"
    if tuple(final) != tuple(config.image_size) or (fit != "squash" and not cropped):
        refuse(
            where, key, values.get(key),
            f"images would not have the model's {config.image_size} pixels",
        )  # fmt: skip
    found: dict[str, object] = {"name": "pillow", "interpolation": interpolation}
    if cropped:
        found |= {"resize": tuple(size), "fit": fit}
    return _with_ours(found, values.get(OURS), lambda p: to_processor(p, config)[0], values), scale


def _size(
    value: object, square: bool, default: tuple[int, int] | None, where: str, key: str = "size"
) -> tuple[tuple[int, int], str]:
    """(height, width) and the fit, from a size in any of transformers' forms."""
    if value is None:
        return default or (224, 224), "squash"
    try:
        if isinstance(value, Mapping):
            sizes = {name: count(side) for name, side in value.items() if side is not None}
            if set(sizes) == {"height", "width"}:
                return (sizes["height"], sizes["width"]), "squash"
            if set(sizes) == {"shortest_edge"}:
                return (sizes["shortest_edge"],) * 2, "cover"
        elif isinstance(value, list | tuple) and len(value) == 2:
            return (count(value[0]), count(value[1])), "squash"
        else:
            return (count(value),) * 2, "squash" if square else "cover"
    except (TypeError, ValueError):
        pass
    refuse(where, key, value, "only height and width, or shortest_edge, are supported")
    raise AssertionError


def to_processor(
    preprocessing: Preprocessing, config: models.ModelConfig
) -> tuple[dict[str, object], list[str]]:
    """`preprocessor_config.json` for our preprocessing, and notes on differences."""
    ours, notes = dict(preprocessing) or {"name": "resize"}, []
    height, width = config.image_size
    size: dict[str, int] = {"height": height, "width": width}
    name, resize = ours["name"], ours.get("resize", 0)
    resample = 2
    crop = name != "resize"
    if name == "pillow":
        filter_ = ours.get("interpolation", "bilinear")
        resample = {word: number for number, word in RESAMPLE.items()}.get(filter_, 0)
        crop, fit = bool(resize), ours.get("fit", "squash")
        if crop:
            square = fit == "cover" and resize[0] == resize[1]
            size = (
                {"shortest_edge": resize[0]}
                if square
                else {"height": resize[0], "width": resize[1]}
            )
            if fit != "squash" and not square:
                notes.append(f"transformers does not keep the aspect ratio (fit={fit!r})")
        if not resample:
            resample = 2
            notes.append(f"transformers resizes bilinearly, not by {filter_}")
        if "nearest" in (ours.get("whole"), ours.get("centre")):
            notes.append("transformers rounds the crop's position down, which may be one pixel off")
    elif name == "resize_center_crop":
        size = {"shortest_edge": int(resize)}
        notes.append("transformers resizes bilinearly with antialiasing, ours by area")
    elif name == "square_center_crop":
        factor = ours.get("resize", 256 / 224)
        size = {"height": round(height * factor), "width": round(width * factor)}
    elif name == "objectnet":
        crop = False
        notes.append("transformers keeps the border but not the aspect ratio (objectnet)")
    if name in ("resize", "square_center_crop", "objectnet"):
        notes.append("transformers resizes with antialiasing, ours without")
    if not ours.get("orient"):
        notes.append("transformers' pipeline applies EXIF orientation, ours does not")
    number = config.channels
    values = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": size,
        "resample": resample,
        "do_center_crop": crop,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * number,
        "image_std": [0.5] * number,
        OURS: [list(pair) for pair in preprocessing],
    }
    return values, notes


def _with_ours(
    found: dict[str, object],
    ours: object,
    make: Callable[[Preprocessing], dict[str, object]],
    values: Mapping[str, object],
) -> Preprocessing:
    """Our own preprocessing, if present and consistent with the rest of the file."""
    if isinstance(ours, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in ours):
        kept = tuple((key, _frozen(value)) for key, value in ours)
        made = make(kept)
        if all(made[key] == values.get(key) for key in made if key != OURS):
            return kept
    return tuple(sorted((found | {"orient": True}).items()))


def _frozen(value: object) -> object:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


# --- timm ---------------------------------------------------------------------------------------

#: timm's PretrainedCfg.
PRETRAINED: Table = {
    **dict.fromkeys(
        ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load"),
        Nothing("the weights beside the configuration are read"),
    ),
    **dict.fromkeys(
        ("tag", "license", "description", "origin_url", "paper_name", "paper_ids", "notes",
         "label_descriptions"), WORDS,
    ),
    "architecture": READ,
    "input_size": READ,
    **dict.fromkeys(("test_input_size", "min_input_size", "test_crop_pct", "test_pool_size"),
                    Nothing("timm uses it by option only")),
    "fixed_input_size": Nothing("the size is that of the weights"),
    "interpolation": READ,
    "crop_pct": READ,
    "crop_mode": READ,
    "mean": READ,
    "std": READ,
    "num_classes": READ,
    "label_offset": OFF,
    "label_names": READ,
    "labels": READ,
    "pool_size": Nothing("the grid is that of the weights"),
    "first_conv": Nothing("the name of an array"),
    "classifier": Nothing("the name of an array"),
}  # fmt: skip
INTERPOLATIONS = ("bilinear", "bicubic", "lanczos", "nearest", "box", "hamming")
CROP_MODES = ("center", "squash", "border")


def from_pretrained_cfg(
    facts: Mapping[str, object], config: models.ModelConfig, where: str, ours: object = None
) -> tuple[Preprocessing, Scale]:
    """Our preprocessing and the pixel scale from a `pretrained_cfg`.

    Defaults are timm's: bicubic, a central crop of 87.5%, ImageNet's mean and std.

    Raises:
      UserError: an unsupported setting, by name.
    """
    check(facts, PRETRAINED, where)
    number, (height, width) = config.channels, config.image_size

    def setting(key: str, default: T, parse: Callable[..., S]) -> S | T:
        return get(facts, key, default, where, parse)

    scale: Scale = {
        "rescale": np.float64(1 / 255),
        "mean": setting("mean", IMAGENET["mean"], lambda v: channels(v, number)),
        "std": setting("std", IMAGENET["std"], lambda v: nonzero(v, number)),
    }
    if number != 3 and facts.get("mean") is None:
        refuse(where, "mean", None, f"there is none for {number} channels")
    words = {}
    choices = (("interpolation", "bicubic", INTERPOLATIONS), ("crop_mode", "center", CROP_MODES))
    for key, default, known in choices:
        words[key] = facts.get(key) or default
        if words[key] not in known:
            refuse(where, key, words[key], f"it is not one of {', '.join(known)}")
    share = setting("crop_pct", 0.875, float) or 0.875
    if not 0 < share <= 100:
        refuse(where, "crop_pct", share)
    size = setting("input_size", (number, height, width), lambda v: tuple(map(count, v)))
    if size != (number, height, width):
        refuse(where, "input_size", size, f"the weights are for {(number, height, width)}")
    larger = int(np.floor(height / share)), int(np.floor(width / share))
    found: dict[str, object] = {
        "name": "pillow", "interpolation": words["interpolation"], "resize": larger,
        "centre": "nearest",
    }  # fmt: skip
    mode = words["crop_mode"]
    if mode == "squash" and larger == (height, width):
        found = {"name": "pillow", "interpolation": words["interpolation"]}
    elif mode == "center":
        found |= {"fit": "cover", "whole": "down" if height == width else "nearest"}
    elif mode == "border":
        fill = tuple(round(255 * float(v)) for v in np.broadcast_to(scale["mean"], 3))
        found |= {"fit": "contain", "whole": "nearest", "fill": fill}
    return _with_ours(found, ours, lambda p: to_pretrained_cfg(p, config)[0], facts), scale


def to_pretrained_cfg(
    preprocessing: Preprocessing, config: models.ModelConfig
) -> tuple[dict[str, object], list[str]]:
    """The entries of a `pretrained_cfg` for our preprocessing, and notes on differences."""
    ours, notes = dict(preprocessing) or {"name": "resize"}, []
    height = config.image_size[0]
    name, resize = ours["name"], ours.get("resize", 0)
    share, mode, interpolation = 1.0, "squash", "bilinear"
    if name == "pillow":
        interpolation = ours.get("interpolation", "bilinear")
        mode = {"squash": "squash", "cover": "center", "contain": "border"}[
            ours.get("fit", "squash")
        ]
        share = height / resize[0] if resize else 1.0
        if ours.get("centre", "down") == "down" and resize:
            notes.append(
                "timm rounds the crop's position to the nearest, which may be one pixel off"
            )
    elif name == "resize_center_crop":
        share, mode = height / int(resize), "center"
        notes.append("timm resizes bilinearly with antialiasing, ours by area")
    elif name == "square_center_crop":
        share = 1 / ours.get("resize", 256 / 224)
    elif name == "objectnet":
        notes.append("timm keeps the border but not the aspect ratio (objectnet)")
    if name in ("resize", "square_center_crop", "objectnet"):
        notes.append("timm resizes with antialiasing, ours without")
    if ours.get("orient"):
        notes.append("timm leaves EXIF orientation to its caller")
    values = {
        "mean": [0.5] * config.channels,
        "std": [0.5] * config.channels,
        "interpolation": interpolation,
        "crop_pct": share,
        "crop_mode": mode,
    }
    return values, notes
