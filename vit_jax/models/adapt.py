"""Fits loaded parameters to another model: head surgery and position-embedding interpolation."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models.variants import pair


def resize_position_embedding(
    pos: np.ndarray,
    new_grid: int | tuple[int, int],
    *,
    old_grid: tuple[int, int] | None = None,
    has_class_token: bool = True,
) -> np.ndarray:
    """Interpolates position embeddings to another grid (section 3.2), separably.

    Bilinear with aligned corners: the outermost old positions are the outermost new ones.

    Args:
      pos: (1, n, d), raster order; with `has_class_token`, pos[:, 0] is kept as it is.
      new_grid: tokens (down, across), or one number.
      old_grid: the same for `pos`; None means square.

    Returns:
      (1, n', d) float32.

    Raises:
      UserError: `pos` does not match `old_grid`, or is not square where `old_grid` is None.
    """
    pos = np.asarray(pos, np.float32)
    if pos.ndim != 3 or len(pos) != 1:
        raise UserError(f"Position embeddings must be (1, n, d), but these are {pos.shape}.")
    tokens, grid = (pos[0, :1], pos[0, 1:]) if has_class_token else (pos[0, :0], pos[0])
    if old_grid is None:
        side = math.isqrt(len(grid))
        old_grid = (side, side)
    if old_grid[0] * old_grid[1] != len(grid):
        raise UserError(
            f"Position embeddings of {len(grid)} patches do not form a grid of "
            f"{old_grid[0]}x{old_grid[1]}; pass old_grid=(rows, columns)."
        )
    new_grid = pair(new_grid)
    if not len(grid) or min(new_grid) < 1:
        raise UserError(
            f"Position embeddings of {len(grid)} patches cannot have a grid of "
            f"{new_grid[0]}x{new_grid[1]}; both need at least one patch."
        )
    if new_grid != tuple(old_grid):
        rows, columns = (_interpolation(n, m) for n, m in zip(old_grid, new_grid, strict=True))
        image = grid.reshape(*old_grid, -1).astype(np.float64)
        image = np.einsum("ar,bc,rcd->abd", rows, columns, image, optimize=True)
        grid = image.reshape(-1, pos.shape[-1]).astype(np.float32)
    return np.concatenate([tokens, grid])[None]


def _interpolation(old: int, new: int) -> np.ndarray:
    """(new, old) matrix of linear interpolation with aligned end points."""
    position = np.linspace(0, old - 1, new) if new > 1 else np.zeros(1)
    low = np.minimum(position.astype(int), max(old - 2, 0))
    fraction = position - low
    matrix = np.zeros((new, old))
    matrix[np.arange(new), low] = 1 - fraction
    if old > 1:
        matrix[np.arange(new), low + 1] += fraction
    return matrix


#: The kernels that read pixels: the patch embedding, a hybrid's stem, a ResNet's root.
FIRST_KERNELS = ("patch_embedding/kernel", "stem/conv_root/kernel", "conv_root/kernel")


def resample_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first kernel (h, w, c, d) for another number of input channels.

    Each of the n new channels gets the sum over the old ones divided by n, so that an image with
    equal channels has the same embedding as before.
    """
    kernel = np.asarray(kernel, np.float32)
    if kernel.shape[2] == channels:
        return kernel
    share = kernel.sum(axis=2, keepdims=True) / channels
    return np.repeat(share, channels, axis=2)


def with_channels(
    preprocessing: Iterable[tuple[str, object]], channels: int
) -> tuple[tuple[str, object], ...]:
    """A model's preprocessing for `channels` channels; with 3 the option is left out."""
    others = [(key, value) for key, value in preprocessing if key != "channels"]
    return tuple(sorted([*others, *([("channels", channels)] if channels != 3 else [])]))


def is_zero_head(params: models.Params) -> bool:
    """Whether the classifier is untrained: its kernel, which may be sharded, is all zeros."""
    return not jnp.any(params["head/kernel"])


def check_head(params: models.Params) -> None:
    """Raises UserError if the classifier is untrained, since its predictions would be arbitrary."""
    if is_zero_head(params):
        raise UserError(
            "The classifier of this checkpoint is all zeros, as in published ImageNet-21k weights, "
            "so every class is equally likely; fine-tune it first, or use its features."
        )


def adapt(
    config: models.ModelConfig,
    params: Mapping[str, np.ndarray],
    target: models.ModelConfig,
    *,
    new_head: bool | None = None,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Parameters of `config` for the model `target`, and one line for each adaptation.

    Position embeddings are interpolated to the new grid. A new head is a zero-initialised linear
    layer that replaces the whole old one, pre-logits layer included (section 3.2, Appendix D.3).

    Args:
      new_head: None: only if the number of classes, the labels or the head differ.

    Raises:
      UserError: the models differ elsewhere; the message names the first difference.
    """
    wanted = models.abstract_params(target)
    adapted: dict[str, np.ndarray] = {}
    notes = []

    def same(field: str) -> bool:
        return getattr(config, field, None) == getattr(target, field, None)

    fits = same("num_classes") and same("representation_size")
    fits = fits and (same("labels") or not (config.labels and target.labels))
    if new_head is None:
        new_head = not fits
    if not new_head and not fits:
        raise UserError(
            f"The head of {config.variant} ({config.num_classes} classes) cannot be kept: the new "
            f"one has {target.num_classes} classes, other labels or another structure."
        )
    if new_head:
        notes.append(f"head: {config.num_classes} classes -> {target.num_classes}, from zero")
    missing = sorted(set(wanted) - set(params))
    if missing:
        raise UserError(_differs(config, target, f"it has no {missing[0]}"))
    dropped = "pre_logits/" if new_head else "nothing/"
    surplus = sorted(path for path in set(params) - set(wanted) if not path.startswith(dropped))
    if surplus:
        raise UserError(_differs(config, target, f"the model has no {surplus[0]}"))
    for path, leaf in wanted.items():
        if new_head and path.startswith("head/"):
            value = getattr(target, "head_bias", 0.0) if path == "head/bias" else 0.0
            adapted[path] = np.full(leaf.shape, value, np.float32)
        elif path.startswith("position_embedding/") and path.endswith("/embedding"):
            has_token = getattr(config, "classifier", "") == "token"
            adapted[path] = resize_position_embedding(
                params[path], target.grid, old_grid=config.grid, has_class_token=has_token
            )
            if config.grid != target.grid:
                notes.append(f"{path}: grid {config.grid} -> {target.grid}, bilinear")
        elif path.startswith("position_embedding/") and path[-2:] in ("/x", "/y"):
            matrix = _interpolation(len(params[path]), leaf.shape[0])
            adapted[path] = (matrix @ np.asarray(params[path], np.float64)).astype(np.float32)
            if len(matrix) != len(params[path]):
                notes.append(f"{path}: {len(params[path])} -> {len(matrix)} positions, linear")
        elif path in FIRST_KERNELS and params[path].shape[2] != leaf.shape[2]:
            adapted[path] = resample_channels(params[path], leaf.shape[2])
            notes.append(
                f"{path}: {config.channels} input channels -> {target.channels}, equal on grey"
            )
        else:
            adapted[path] = np.asarray(params[path], np.float32)
        if adapted[path].shape != leaf.shape:
            raise UserError(
                _differs(config, target, f"{path} is {adapted[path].shape}, not {leaf.shape}")
            )
    return adapted, notes


def _differs(config: models.ModelConfig, target: models.ModelConfig, how: str) -> str:
    return (
        f"A checkpoint of {config.variant} does not fit the model {target.variant}: {how}. "
        f"Set config.model.variant={config.variant!r} or load another checkpoint."
    )


def fold_temperature(
    config: models.ModelConfig, params: dict[str, np.ndarray]
) -> tuple[models.ModelConfig, dict[str, np.ndarray], list[str]]:
    """Folds the temperature into the classifier, for formats that cannot store it.

    Probabilities stay the same. The list says so; [] without a temperature.
    """
    if config.temperature is None:
        return config, params, []
    head = {
        k: v / np.float32(config.temperature) for k, v in params.items() if k.startswith("head/")
    }
    note = f"the classifier is divided by the temperature {config.temperature:.4g}"
    return dataclasses.replace(config, temperature=None), params | head, [note]


def retarget(config: models.ModelConfig, **changes) -> models.ModelConfig:
    """`config` with the settings of `load_model(image_size=..., num_classes=...)`."""
    changes = {key: value for key, value in changes.items() if value is not None}
    if "image_size" in changes:
        new, old = pair(changes["image_size"]), config.image_size
        options = dict(config.preprocessing)
        before = options.get("resize")  # the size that the image is cut from: in proportion
        if isinstance(before, tuple):
            options["resize"] = tuple(
                round(b * n / o) for b, n, o in zip(before, new, old, strict=True)
            )
        elif options.get("name") == "resize_center_crop" and before is not None:  # the short side
            options["resize"] = round(before * min(new) / min(old))
        changes |= {"image_size": new, "preprocessing": tuple(options.items())}
    if changes.get("channels", config.channels) != config.channels:
        known = changes.get("preprocessing", config.preprocessing) or (("name", "resize"),)
        changes["preprocessing"] = with_channels(known, changes["channels"])
    if changes.get("num_classes", config.num_classes) != config.num_classes:
        changes |= {"labels": changes.get("labels", ()), "thresholds": (), "temperature": None}
        if getattr(config, "representation_size", None) is not None:
            changes.setdefault("representation_size", None)
    return dataclasses.replace(config, **changes)
