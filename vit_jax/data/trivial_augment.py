"""TrivialAugment (arXiv 2103.10158): one random operation per image, at a random strength.

Not part of the Vision Transformer paper; `config.augment.policy=trivial` is for your own data. The
"wide" space of operations and strengths is table 7 there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.errors import UserError, nearest

if TYPE_CHECKING:
    import PIL.Image

#: Number of strengths, from none to the maximum.
LEVELS = 31
#: Maxima, by which a strength of 0 to 1 is multiplied: a factor, pixels, degrees.
SHEAR, TRANSLATION, ROTATION, FACTOR = 0.99, 32, 135, 0.99

Change = Callable[["PIL.Image.Image", float], "PIL.Image.Image"]


def affine(image, matrix: tuple[float, ...]):
    """The image sampled at (ax + by + c, dx + ey + f); black outside."""
    import PIL.Image

    return image.transform(image.size, PIL.Image.Transform.AFFINE, matrix)


def enhanced(name: str) -> Change:
    """One of Pillow's enhancers, with the factor 1 + strength times FACTOR."""

    def change(image, strength: float):
        from PIL import ImageEnhance

        return getattr(ImageEnhance, name)(image).enhance(1 + FACTOR * strength)

    return change


def operation(name: str, parameter: Callable[[float], int] | None = None) -> Change:
    """A function of Pillow's ImageOps, with the scaled strength if it takes one."""

    def change(image, strength: float):
        from PIL import ImageOps

        return getattr(ImageOps, name)(image, *([parameter(strength)] if parameter else []))

    return change


#: {name: (image, strength) -> image}. The strength is in [-1, 1] for the first nine...
SIGNED: dict[str, Change] = {
    "shear_x": lambda image, s: affine(image, (1, SHEAR * s, 0, 0, 1, 0)),
    "shear_y": lambda image, s: affine(image, (1, 0, 0, SHEAR * s, 1, 0)),
    "translate_x": lambda image, s: affine(image, (1, 0, round(TRANSLATION * s), 0, 1, 0)),
    "translate_y": lambda image, s: affine(image, (1, 0, 0, 0, 1, round(TRANSLATION * s))),
    "rotate": lambda image, s: image.rotate(ROTATION * s),
    "brightness": enhanced("Brightness"),
    "colour": enhanced("Color"),
    "contrast": enhanced("Contrast"),
    "sharpness": enhanced("Sharpness"),
}
#: ... and in [0, 1] for the others, some of which ignore it.
UNSIGNED: dict[str, Change] = {
    "posterize": operation("posterize", lambda s: 8 - round(6 * s)),
    "solarize": operation("solarize", lambda s: round(256 - 256 * s)),
    "identity": lambda image, s: image,
    "autocontrast": operation("autocontrast"),
    "equalize": operation("equalize"),
}
NAMES = (*SIGNED, *UNSIGNED)


def trivial_augment(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Applies a random one of NAMES to an image (h, w, 3) or (h, w, 1) uint8."""
    name, strength = NAMES[rng.integers(len(NAMES))], rng.integers(LEVELS) / (LEVELS - 1)
    if name in SIGNED and rng.random() < 0.5:
        strength = -strength
    return changed(image, name, float(strength))


def changed(image: np.ndarray, name: str, strength: float) -> np.ndarray:
    """Applies `name` of NAMES to an image (h, w, 3) or (h, w, 1) uint8; the same shape."""
    import PIL.Image

    pixels = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    found = np.asarray((SIGNED | UNSIGNED)[name](pixels, strength))
    return found.reshape(image.shape)


POLICIES: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray] | None] = {
    "none": None,
    "trivial": trivial_augment,
}


def check_policy(policy: str, where: str, channels: int) -> None:
    """Raises UserError for an unknown policy, or one that does not support these channels."""
    if policy not in POLICIES or not (channels or policy == "none"):
        raise UserError(
            f"config.{where}.policy={policy!r} does not exist; for training there are "
            f"{', '.join(POLICIES)}.{nearest(policy, POLICIES)}"
        )
    if policy != "none" and channels not in (1, 3):
        raise UserError(
            f"config.{where}.policy={policy} does not support {channels} channels; leave it out."
        )
