"""`vit_jax.preprocess`: images of any kind as input of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vit_jax.data.decode import of_pillow
from vit_jax.data.image_files import read_image_file, shown
from vit_jax.data.transforms import Transform, evaluation_transform
from vit_jax.data.web_images import Limits, fetch, is_address
from vit_jax.errors import UserError

Array = np.ndarray


def preprocess(model, images: object, *, first: int = 0) -> Array:
    """Applies the evaluation transform of `model.preprocessing` to images.

    Args:
      model: from `load_model`, or its configuration.
      images: a list of paths, URLs, encoded bytes, PIL images, or uint8 arrays (h, w), (h, w, 1, 3
        or 4); also a single one, or one array (b, h, w, c). EXIF orientation is applied if the
        model's preprocessing says so.
      first: the index of the first image, for error messages.

    Returns:
      (b, h, w, 3) float32 in [-1, 1], or as many channels as the model takes.

    Raises:
      UserError: not an image, an unreadable file, or other channels.
    """
    config = getattr(model, "config", model)
    transform = evaluation_transform(
        config.image_size, config.preprocessing, channels=config.channels
    )
    pixels = [
        _read(transform, image, f"number {i}")
        for i, image in enumerate(listed(config, images), start=first)
    ]
    return scaled(pixels, config)


def listed(config, images: object) -> Sequence:
    """The argument of `preprocess` as a list of images.

    Raises:
      UserError: no images, or an array that is neither one nor a batch.
    """
    if isinstance(images, (str, bytes, os.PathLike)) or hasattr(images, "getexif"):
        return [images]
    shape: tuple[int, ...] = getattr(images, "shape", ())
    if len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3, 4, config.channels)):
        return [images]  # one image, not a batch of grey ones
    if len(shape) == 3:  # channels first, or unknown ones, or grey images
        raise UserError(
            f"An array {shape} is not one image (h, w, {config.channels}) nor a batch "
            f"(b, h, w, {config.channels}); move channels to the end, and give grey images as a "
            "list."
        )
    if not hasattr(images, "__iter__") or getattr(images, "ndim", 1) == 0:
        raise UserError(f"A {type(images).__name__} is not an image or a list of images.")
    return list(images)


def scaled(pixels: Sequence[Array], config) -> Array:
    """uint8 images (h, w, c) as one batch of floats in [-1, 1]."""
    shape = (0, *config.image_size, config.channels)
    return (np.stack(pixels) if pixels else np.zeros(shape)).astype(np.float32) / 127.5 - 1


def read_file(transform: Transform, file: Path | str, limits: Limits = Limits()) -> Array:  # noqa: B008
    """Reads an image file or URL and applies `transform`: uint8 (h, w, 3).

    Raises:
      UserError: it cannot be read, fetched or decoded; names it.
    """
    name = shown(str(file))
    if is_address(file):
        return transform.read(fetch(str(file), limits), name)
    if "\0" in str(file):  # invalid in a file name
        raise UserError(f"There is no image {name}.")
    try:
        return transform.read(read_image_file(file), name)
    except OSError as error:
        raise UserError(f"The image {name} cannot be read ({error.strerror}).") from error


def _read(transform: Transform, image: object, name: str) -> Array:
    if isinstance(image, (str, os.PathLike)):
        place = str(image)
        return read_file(transform, place if is_address(place) else os.path.expanduser(place))
    if hasattr(image, "getexif"):
        import PIL.Image
        import PIL.ImageOps

        assert isinstance(image, PIL.Image.Image), type(image)
        image = PIL.ImageOps.exif_transpose(image) if transform.orient else image
        image = of_pillow(image, name) if transform.channels in (1, 3) else np.asarray(image)
    if isinstance(image, (bytes, bytearray, memoryview)):
        return transform.read(bytes(image), name)
    if np.ndim(image) == 0:  # type: ignore[arg-type]  # of anything
        kind = type(image).__name__
        raise UserError(f"The image {name} is a {kind}, not a path, an encoded file or pixels.")
    return transform.read(np.asarray(image), name)
