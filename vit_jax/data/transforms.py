"""Training crops and evaluation resizes, on uint8 (h, w, 3) RGB, on the host.

Normalised to [-1, 1] on the device. Resized bilinearly without antialiasing, as the original does.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Container, Iterable, Mapping

import numpy as np

from vit_jax.data.antialiased import pillow
from vit_jax.data.decode import Encoded, Image, decode, open_image
from vit_jax.data.trivial_augment import POLICIES, check_policy
from vit_jax.errors import UserError, nearest

Size = tuple[int, int]
INCEPTION_TRIES = 100


class TooSmall(UserError):
    """An image of too few pixels for a transform; the message lacks its name."""


@functools.cache
def _cv2():
    import cv2

    cv2.setNumThreads(0)  # the pipeline's threads already parallelise
    return cv2


def bilinear(image: Image, size: Size) -> Image:
    """Resizes to (height, width), bilinear without antialiasing; the same size is a no-op."""
    if image.shape[:2] == tuple(size):
        return image
    cv2 = _cv2()
    return _three_axes(cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_LINEAR))


def _three_axes(image: Image) -> Image:
    """(h, w, c) of an OpenCV result, which drops the last axis of one channel."""
    return image[..., None] if image.ndim == 2 else image


def by_area(image: Image, size: Size, crop: Size | None = None) -> Image:
    """Resizes to (height, width) by area: each pixel is the mean of the area that it covers.

    crop: keeps the central part of this size; None: all.
    """
    crop = crop or size
    if image.shape[:2] == tuple(size):
        return _central_crop(image, crop)
    if image.shape[0] >= size[0] and image.shape[1] >= size[1]:
        cv2 = _cv2()
        resized = cv2.resize(image, (size[1], size[0]), interpolation=cv2.INTER_AREA)
        return _central_crop(_three_axes(resized), crop)
    # OpenCV differs when enlarging. Only what is kept is computed: a long image may fill gigabytes.
    rows, columns = map(_shares, image.shape, size, crop)
    resized = np.tensordot(rows, np.tensordot(image, columns, (1, 1)), 1)  # (h, c, w)
    return resized.transpose(0, 2, 1).round().clip(0, 255).astype(np.uint8)


@functools.lru_cache(maxsize=64)
def _shares(old: int, new: int, kept: int) -> np.ndarray:
    """(kept, old) float32: the fraction of each (central) new pixel that each old one covers."""
    first = (new - kept) // 2
    edges = np.arange(first, first + kept + 1) * (old / new)
    pixels = np.arange(old)
    covered = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (covered.clip(0) * new / old).astype(np.float32)


def _crop(image: Image | Encoded, top: int, left: int, size: Size) -> Image:
    return image[top : top + size[0], left : left + size[1]]


def _random_crop(image: Image, rng: np.random.Generator, size: Size) -> Image:
    top = int(rng.integers(image.shape[0] - size[0] + 1))
    left = int(rng.integers(image.shape[1] - size[1] + 1))
    return _crop(image, top, left, size)


def _maybe_flip(image: Image, rng: np.random.Generator, flip: bool) -> Image:
    if flip and rng.random() < 0.5:
        return _three_axes(_cv2().flip(image, 1))
    return image


def inception_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A random box (top, left, height, width), as TensorFlow's sample_distorted_bounding_box.

    The aspect ratio, width over height, is uniform in its range. Then the *height* is uniform among
    the integers for which the box has an area in its range and fits the image (so the area is not
    uniform: small boxes are likelier), and the corner is uniform among the possible ones. If
    rounding to pixels leaves the area's range, or no height fits, it is drawn again; after 100
    attempts it is the whole image.
    """
    least, most = (share * height * width for share in area)
    for _ in range(INCEPTION_TRIES):
        ratio = rng.uniform(*aspect)
        widest = math.ceil((width + 0.5) / ratio) - 1  # the largest height for which the width fits
        high = min(round(math.sqrt(most / ratio)), height, widest)
        h = int(rng.integers(min(round(math.sqrt(least / ratio)), high), high + 1))
        if h * round(h * ratio) < least:
            h += 1
        elif h * round(h * ratio) > most:
            h -= 1
        w = round(h * ratio)
        if least <= h * w <= most and 0 < h <= height and 0 < w <= width:
            # TensorFlow's last position is one pixel before the border.
            top, left = rng.integers(max(height - h, 1)), rng.integers(max(width - w, 1))
            return int(top), int(left), h, w
    return 0, 0, height, width


def inception_crop(
    image: Image | Encoded,
    rng: np.random.Generator,
    size: Size,
    *,
    area: tuple[float, float] = (0.05, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = True,
) -> Image:
    """Pre-training: a random box of 5-100% of the image, resized, flipped half of the time."""
    height, width = image.shape[:2]
    top, left, h, w = inception_box(height, width, rng, area=area, aspect=aspect)
    return _maybe_flip(bilinear(_crop(image, top, left, (h, w)), size), rng, flip)


def resize_crop(
    image: Image, rng: np.random.Generator, size: Size, *, resize: int | Size, flip: bool = True
) -> Image:
    """Fine-tuning, as in BiT: resize to a square, random crop, flip (e.g. 448 -> 384)."""
    resize = (resize, resize) if isinstance(resize, int) else resize
    return _maybe_flip(_random_crop(bilinear(image, resize), rng, size), rng, flip)


def resize_flip(image: Image, rng: np.random.Generator, size: Size, *, flip: bool = True) -> Image:
    """No crop (for VTAB tasks whose label a crop would change): resize, optional flip."""
    return _maybe_flip(bilinear(image, size), rng, flip)


def pad_crop(
    image: Image, rng: np.random.Generator, size: Size, *, pad: int = 4, flip: bool = True
) -> Image:
    """Small images: zero padding, random crop (a shift of up to `pad` pixels), flip."""
    image = np.pad(bilinear(image, size), [(pad, pad), (pad, pad), (0, 0)])
    return _maybe_flip(_random_crop(image, rng, size), rng, flip)


def resize(image: Image, size: Size) -> Image:
    """Evaluation of fine-tuned models: resize to the size, ignoring the aspect ratio."""
    return bilinear(image, size)


def resize_center_crop(image: Image, size: Size, *, resize: int) -> Image:
    """Evaluation in pre-training: short side to `resize` by area, central crop (256 -> 224)."""
    height, width = image.shape[:2]
    scale = resize / min(height, width)
    scaled = max(round(height * scale), size[0]), max(round(width * scale), size[1])
    return by_area(image, scaled, size)


def square_center_crop(image: Image, size: Size, *, resize: float = 256 / 224) -> Image:
    """The few-shot protocol: resize to a square, ignoring the aspect ratio, then a central crop.

    `resize` is the side of the square relative to the crop: 256 pixels for 224.
    """
    square = round(size[0] * resize), round(size[1] * resize)
    return _central_crop(bilinear(image, square), size)


def _central_crop(image: Image, size: Size) -> Image:
    top, left = (image.shape[0] - size[0]) // 2, (image.shape[1] - size[1]) // 2
    return _crop(image, top, left, size)


def objectnet(image: Image, size: Size) -> Image:
    """ObjectNet as in BiT: remove the red border, short side to 512/480 of the size, centre."""
    border = 2
    if min(image.shape[:2]) <= 2 * border:
        raise TooSmall(
            f"has {image.shape[1]}x{image.shape[0]} pixels, too few for the border of {border} "
            "that ObjectNet's images have; leave it out."
        )
    inside = image[border:-border, border:-border]
    return resize_center_crop(inside, size, resize=round(max(size) * 512 / 480))


TRAIN: dict[str, Callable[..., Image]] = {
    "inception_crop": inception_crop,
    "resize_crop": resize_crop,
    "resize_flip": resize_flip,
    "pad_crop": pad_crop,
}
#: Transforms that begin with a crop, so that the rest need not be decoded.
CROP_FIRST = {"inception_crop"}
EVAL: dict[str, Callable[..., Image]] = {
    "resize": resize,
    "resize_center_crop": resize_center_crop,
    "square_center_crop": square_center_crop,
    "objectnet": objectnet,
    "pillow": pillow,
}
#: Settings of `pillow` with a fixed set of values.
WORDS = {
    "interpolation": ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"),
    "fit": ("squash", "cover", "contain"),
    "whole": ("down", "nearest"),
    "centre": ("down", "nearest"),
}


def make_transform(
    *,
    name: str,
    size: Size,
    train: bool,
    orient: bool = False,
    max_pixels: int | None = None,
    policy: str = "none",
    channels: int = 3,
    **options,
) -> Transform:
    """A picklable transform: (image, rng) -> image in training, (image) -> image in evaluation.

    orient: apply EXIF orientation to encoded images.
    max_pixels: refuse larger images, see `decode`.
    policy: in training, augmentation after the crop, see POLICIES.
    channels: of the images, see `decode`.

    Raises:
      UserError: no such transform, an unknown option, or an invalid value.
    """
    table, where = (TRAIN, "augment") if train else (EVAL, "eval_preprocess")
    if name not in table:
        raise UserError(
            f"config.{where}.name={name!r} does not exist; there are {', '.join(table)}."
            f"{nearest(name, table)}"
        )
    parameters = inspect.signature(table[name]).parameters
    taken = [key for key, value in parameters.items() if value.kind is value.KEYWORD_ONLY]
    for key in options:
        if key not in taken:
            raise UserError(
                f"config.{where}.{key} is a setting that {name} does not read.{nearest(key, taken)}"
            )
    for key in taken:
        if parameters[key].default is inspect.Parameter.empty and key not in options:
            raise UserError(f"config.{where}.{key} must be set for {name}.")
    for key, words in WORDS.items():
        if key in taken and options.get(key, words[0]) not in words:
            raise UserError(
                f"config.{where}.{key}={options[key]!r} must be one of {', '.join(words)}."
            )
    larger = options.get("resize")
    if larger is not None and name != "pillow":  # which the transform fills in
        # An integer is both sides in training, the short side in evaluation.
        sides = tuple(larger) if isinstance(larger, (tuple, list)) else (larger, larger)
        needed = size if train else (min(size),) * 2
        if sides[0] < needed[0] or sides[1] < needed[1]:
            raise UserError(
                f"config.{where}.resize={larger} is smaller than the image size "
                f"{size[0]}x{size[1]} that is cut from it."
            )
    whole = isinstance(larger, (tuple, list)) and all(isinstance(side, int) for side in larger)
    if name == "pillow" and larger is not None and not whole:
        raise UserError(
            f"config.{where}.resize={larger} must be (height, width) for pillow, whole numbers."
        )
    check_policy(policy, where, channels if train else 0)
    if name == "pillow" and channels != 3:
        raise UserError(f"config.{where}.name=pillow does not support {channels} channels.")
    return Transform(
        name, table[name], (size[0], size[1]), options, train, orient, max_pixels, policy, channels
    )


#: Default evaluation transform of a model, as after fine-tuning.
DEFAULT_EVALUATION = {"name": "resize"}
#: The same for weights in a foreign format; applies EXIF orientation.
FOREIGN_EVALUATION = (("name", "resize"), ("orient", True))


def evaluation_transform(
    size: Size,
    preprocessing: Iterable[tuple[str, object]],
    *,
    max_pixels: int | None = None,
    channels: int | None = None,
) -> Transform:
    """The transform of a model's `preprocessing`.

    channels: of the model, if its preprocessing does not say.

    Models of the first version have no `orient`, which means False.
    """
    options: dict = dict(preprocessing) or DEFAULT_EVALUATION
    if channels is not None:
        options = options | {"channels": channels}
    check_free(options, ("size", "train", "max_pixels"), "eval_preprocess")
    return make_transform(size=size, train=False, max_pixels=max_pixels, **options)


def check_free(options: Mapping, given: Container[str], where: str) -> None:
    """Raises UserError for an option of a transform that is given otherwise, such as its size."""
    for key in options:
        if key in given:
            raise UserError(
                f"config.{where}.{key} is a setting that {options['name']} does not read."
            )


class Transform:
    """A transform with its options; a class so that it can be pickled and printed."""

    def __init__(
        self,
        name: str,
        function: Callable,
        size: Size,
        options: dict,
        train: bool,
        orient: bool,
        max_pixels: int | None = None,
        policy: str = "none",
        channels: int = 3,
    ):
        self.max_pixels, self.policy, self.channels = max_pixels, policy, channels
        self.name, self.function, self.size = name, function, size
        self.options, self.train, self.orient = options, train, orient

    def __call__(self, image: Image | Encoded, rng: np.random.Generator | None = None) -> Image:
        arguments = (image, rng, self.size) if self.train else (image, self.size)
        found = self.function(*arguments, **self.options)
        if (change := POLICIES[self.policy]) is not None:
            found = change(np.ascontiguousarray(found), rng)  # type: ignore[arg-type]  # in training
        return np.ascontiguousarray(found)

    def read(
        self,
        data: bytes | Image,
        name: str,
        rng: np.random.Generator | None = None,
        *,
        exif: bool = True,
    ) -> Image:
        """Decodes as much of a record's image as needed, and transforms it.

        exif: False for data sets without EXIF orientation, such as TFDS.
        """
        options: dict = {"orient": self.orient and exif, "max_pixels": self.max_pixels}
        image: Image | Encoded
        if self.channels != 3:
            image = decode(data, name, channels=self.channels, **options)
        else:
            open_ = open_image if self.name in CROP_FIRST else decode
            image = open_(data, name, **options)
        try:
            return self(image, rng)
        except TooSmall as error:
            raise UserError(f"The image {name} {error}") from None

    def __repr__(self) -> str:
        known = self.options | ({} if self.policy == "none" else {"policy": self.policy})
        options = "".join(f", {key}={value}" for key, value in sorted(known.items()))
        return f"{self.name}({self.size[0]}x{self.size[1]}{options})"
