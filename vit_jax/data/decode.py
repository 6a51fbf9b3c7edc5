"""Decodes images to uint8 (h, w, 3) RGB, or to the number of channels of a model."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.data import turbojpeg
from vit_jax.data.image_files import PACKAGES, formats
from vit_jax.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

Image = np.ndarray


#: Larger images are refused unless `config.data.max_image_pixels` allows them: a 300 KB file can
#: hold a billion pixels of one colour.
MAX_PIXELS = 100_000_000
_limit = MAX_PIXELS


def allow_pixels(most: int) -> None:
    """Default of this process for the largest image, in pixels."""
    global _limit
    _limit = most


#: Formats whose mode "I" is 16-bit grey; in a TIFF it is 32-bit, signed or unsigned.
OF_16_BITS = ("PNG", "PPM", "JPEG2000")
#: Modes with an unambiguous conversion to RGB.
TO_RGB = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr", "HSV")
BITS_PER_SAMPLE, PHOTOMETRIC, WHITE_IS_ZERO = 258, 262, 0  # TIFF's tags


#: The magic bytes of a file of numpy.save.
NPY = b"\x93NUMPY"


def decode(
    data: bytes | Image,
    name: str,
    *,
    orient: bool = False,
    max_pixels: int | None = None,
    channels: int = 3,
) -> Image:
    """Any image as uint8 (h, w, 3) RGB; with other `channels` (h, w, channels).

    JPEG decodes with the fast DCT, which equals TFDS's decoder bit for bit. 16-bit grey (12-bit in
    a TIFF) is scaled, not clipped; alpha is dropped; an animation gives its first frame.

    Args:
      data: an encoded file, or pixels (h, w), (h, w, 1), (h, w, 3) or (h, w, 4).
      name: what to call the record in an error.
      orient: apply EXIF orientation; TFDS does not.
      max_pixels: larger images (by their header) are refused; None: the process's default.
      channels: 1 converts to grey. Other numbers than 1 and 3 must match the image: pixels, a file
        of numpy.save, or RGBA, CMYK (4) and LA (2).

    Raises:
      UserError: not an image, damaged, other channels, more than `max_pixels`, or an unknown range
        of values (32 bits per channel, LAB).
    """
    if isinstance(data, np.ndarray):
        return _as_rgb(data, name) if channels == 3 else _with_channels(data, name, channels)
    if data[: len(NPY)] == NPY:
        return _with_channels(_array(data, name), name, channels)
    if data and channels not in (1, 3):
        found = _with_channels(_bands(data, name, max_pixels or _limit), name, channels)
        return np.ascontiguousarray(upright(found, orientation(data) if orient else 1))
    if not data:
        raise UserError(f"The image {name} is empty (0 bytes); replace it or leave it out.")
    most = max_pixels or _limit
    image = _decode_jpeg(data, most) if data[:2] == b"\xff\xd8" else None
    if image is None:
        image = _decode_any(data, name, most)
    turn = orientation(data) if orient else 1
    image = np.ascontiguousarray(upright(image, turn)) if turn != 1 else image
    return image if channels == 3 else _grey(image)


def _grey(image: Image) -> Image:
    """(h, w, 3) RGB to (h, w, 1) by ITU-R 601, exact for three equal channels."""
    weighted = image.astype(np.uint32) @ np.array([299, 587, 114], np.uint32)
    return ((weighted + 500) // 1000).astype(np.uint8)[..., None]


def _with_channels(pixels: Image, name: str, channels: int) -> Image:
    """Pixels (h, w) or (h, w, c) as (h, w, channels).

    Raises:
      UserError: the channels differ and cannot be converted.
    """
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or 0 in pixels.shape or pixels.dtype != np.uint8:
        advice = "scale its values to 0 to 255, and store it as uint8"
        if pixels.dtype == np.uint8:
            advice = "replace it or leave it out"
        raise UserError(
            f"The image {name} is {pixels.dtype} {pixels.shape}, not uint8 (h, w, {channels}); "
            f"{advice}."
        )
    found = pixels.shape[-1]
    if found == channels:
        return np.ascontiguousarray(pixels)
    if channels == 1 and found in (3, 4):
        return _grey(pixels[..., :3])
    if channels == 3 and found == 1:
        return np.repeat(pixels, 3, axis=-1)
    first = " It may be channels first: move them to the end." if len(pixels) == channels else ""
    raise UserError(
        f"The image {name} has {found} channels (shape {pixels.shape}) and the model takes "
        f"{channels}.{first or f' Set config.model.channels={found}, or leave the image out.'}"
    )


def stored(data: bytes | Image, name: str) -> Image:
    """As `decode`, but arrays keep their channels, uint8 (h, w, c)."""
    array = data
    if isinstance(data, bytes) and data[: len(NPY)] == NPY:
        array = _array(data, name)
    if isinstance(array, np.ndarray) and array.ndim == 3 and array.shape[-1] not in (1, 3):
        return _with_channels(array, name, array.shape[-1])
    return decode(data, name)


def picture(data: bytes | Image, name: str) -> Image:
    """An image as (h, w, 3) to look at: of more than four channels the means of three groups."""
    pixels = stored(data, name)
    count = pixels.shape[-1]
    if count == 2:
        return np.repeat(pixels[..., :1], 3, axis=-1)
    if count <= 4:
        return pixels[..., :3]
    groups = np.array_split(pixels, 3, axis=-1)
    return np.stack([np.rint(group.mean(axis=-1)) for group in groups], axis=-1).astype(np.uint8)


def _array(data: bytes, name: str) -> Image:
    """Reads a file of numpy.save, without unpickling."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:
        raise UserError(f"The image {name} is a damaged .npy file, or contains objects.") from error


def _bands(data: bytes, name: str, most: int) -> Image:
    """A file's channels as they are stored."""
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with PIL.Image.open(io.BytesIO(data), formats=formats()) as image:
            if image.width * image.height <= most and image.mode in TO_RGB[1:]:
                return np.asarray(image)
    except Exception:  # errors are reported as for any other image
        pass
    return _decode_any(data, name, most)


#: EXIF orientations other than 1 (upright): whether to transpose, then the steps of rows and
#: columns.
ORIENTATIONS = {
    2: (False, 1, -1), 3: (False, -1, -1), 4: (False, -1, 1),
    5: (True, 1, 1), 6: (True, 1, -1), 7: (True, -1, -1), 8: (True, -1, 1),
}  # fmt: skip


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded image, 1 to 8, as Pillow finds it; 1 without one."""
    import PIL.Image

    if data[:4] in (b"II*\0", b"MM\0*"):  # TIFF: Pillow applies it when decoding
        return 1
    if data[:2] == b"\xff\xd8" and not any(_metadata(data)):
        return 1
    try:
        with PIL.Image.open(io.BytesIO(data), formats=formats()) as image:
            found = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF; the pixels are fine
        return 1
    return found if found in ORIENTATIONS else 1


def _metadata(data: bytes) -> Iterator[bool]:
    """For each segment before a JPEG's pixels, whether it is EXIF or XMP; avoids Pillow."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        if data[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        yield data[at + 1] == 0xE1
        at += 2 + int.from_bytes(data[at + 2 : at + 4])


def upright(image: Image, turn: int) -> Image:
    """A view of an image (h, w, 3) with EXIF orientation applied; may be (w, h, 3)."""
    if turn not in ORIENTATIONS:
        return image
    swap, rows, columns = ORIENTATIONS[turn]
    return (image.swapaxes(0, 1) if swap else image)[::rows, ::columns]


def _decode_jpeg(data: bytes, most: int) -> Image | None:
    """A plain JPEG, or None where PIL must handle it (CMYK, damaged, enormous)."""
    import simplejpeg

    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if colorspace in ("CMYK", "YCCK") or height * width > most:
            return None
        return simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True)
    except ValueError:
        return None


class Encoded:
    """A JPEG that is decoded lazily: `image[a:b, c:d]` decodes that box alone.

    shape: as stored; the attribute and boxes refer to the upright image.
    """

    def __init__(
        self,
        data: bytes,
        name: str,
        shape: tuple[int, int, int],
        subsampling: str,
        turn: int = 1,
        max_pixels: int | None = None,
    ):
        self.max_pixels = max_pixels
        self.data, self.name, self.subsampling, self.turn = data, name, subsampling, turn
        self.width = shape[1]  # as stored
        swap, *_ = ORIENTATIONS.get(turn, (False,))
        self.shape = (shape[1], shape[0], 3) if swap else shape

    def __getitem__(self, box: tuple[slice, slice]) -> Image:
        edges = [part.indices(size)[:2] for part, size in zip(box, self.shape[:2], strict=True)]
        swap, *steps = ORIENTATIONS.get(self.turn, (False, 1, 1))
        for axis, step in enumerate(steps):  # from the upright image to the stored one
            if step < 0:
                first, end = edges[axis]
                edges[axis] = self.shape[axis] - end, self.shape[axis] - first
        (top, bottom), (left, right) = edges[::-1] if swap else edges
        try:
            stored = turbojpeg.decode_box(
                self.data, self.subsampling, self.width, (top, left, bottom - top, right - left)
            )
        except ValueError:  # damaged: PIL may read it, or gives the reason
            return upright(self._whole(), self.turn)[box]
        return upright(stored, self.turn)

    def _whole(self) -> Image:
        return decode(self.data, self.name, max_pixels=self.max_pixels)


def open_image(
    data: bytes | Image, name: str, *, orient: bool = False, max_pixels: int | None = None
) -> Image | Encoded:
    """As `decode`, for a transform that begins with a crop: decodes lazily where possible.

    The pixels are the same either way. A truncated file is decoded whole, so that it is reported.
    """
    if not isinstance(data, bytes) or turbojpeg.library() is None:
        return decode(data, name, orient=orient, max_pixels=max_pixels)
    if (data[:2], data[-2:]) == (b"\xff\xd8", b"\xff\xd9"):
        import simplejpeg

        try:
            height, width, colorspace, subsampling = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return decode(data, name, orient=orient, max_pixels=max_pixels)
        plain = colorspace in ("YCbCr", "Gray") and height * width <= (max_pixels or _limit)
        if plain and subsampling in turbojpeg.BLOCK_WIDTH:
            turn = orientation(data) if orient else 1
            return Encoded(data, name, (height, width, 3), subsampling, turn, max_pixels)
    return decode(data, name, orient=orient, max_pixels=max_pixels)


def _decode_any(data: bytes, name: str, most: int) -> Image:
    import PIL.Image

    PIL.Image.MAX_IMAGE_PIXELS = None  # `most` is the only limit
    try:
        with PIL.Image.open(io.BytesIO(data), formats=formats()) as image:
            if image.width * image.height > most:
                raise UserError(
                    f"The image {name} has {image.width}x{image.height} pixels, more than "
                    f"max_image_pixels={most}; make it smaller or leave it out."
                )
            return of_pillow(image, name)
    except UserError:
        raise
    except Exception as error:
        kind = "damaged" if isinstance(error, (OSError, SyntaxError)) else type(error).__name__
        if isinstance(error, PIL.UnidentifiedImageError):
            kind = "not a known image format"
            if package := PACKAGES.get(os.path.splitext(name)[1].lower()):
                kind = f"pip install {package} to read it"
        raise UserError(
            f"The image {name} cannot be decoded ({kind}); replace it or leave it out."
        ) from error


def of_pillow(image: PIL.Image.Image, name: str) -> Image:
    """An image of Pillow as (h, w, 3); 16-bit grey is scaled.

    Raises:
      UserError: 32 bits, signed, or LAB.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in OF_16_BITS):
        raise UserError(
            f"The image {name} has 32-bit or signed channels (mode {image.mode}), whose white is "
            "unknown; convert it to 8 or 16 bits."
        )
    if image.mode.startswith("I"):  # 16 bits; convert("RGB") would clip at 255
        return _as_rgb(_scaled(image), name)
    if image.mode not in TO_RGB:
        raise UserError(
            f"The image {name} has the mode {image.mode}, whose conversion to RGB is ambiguous; "
            "convert it to RGB."
        )
    return np.ascontiguousarray(image.convert("RGB"))


def _scaled(image: object) -> Image:
    """16-bit grey as (h, w) uint8; a TIFF may say that it has 9 to 15 bits, or that white is 0."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(BITS_PER_SAMPLE, (16,))[0]
    wide = np.asarray(image, np.uint32)
    if 8 < bits < 16:
        wide = wide * 65535 // (2**bits - 1)
    grey = (wide // 257).clip(0, 255).astype(np.uint8)
    return 255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey


def image_size(data: bytes | Image, name: str) -> tuple[int, int]:
    """(height, width) of an encoded image, read from its header.

    Raises:
      UserError: not an image.
    """
    if not isinstance(data, np.ndarray) and data[: len(NPY)] == NPY:
        data = _array(data, name)
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    import PIL.Image

    try:
        with PIL.Image.open(io.BytesIO(data), formats=formats()) as image:
            return image.height, image.width
    except Exception as error:
        raise UserError(f"The image {name} cannot be decoded; leave it out.") from error


def _as_rgb(pixels: Image, name: str) -> Image:
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3, 4) or 0 in pixels.shape:
        raise UserError(
            f"The image {name} has shape {pixels.shape}, not (h, w, 1, 3 or 4); channels come last."
        )
    if pixels.dtype != np.uint8:
        raise UserError(f"The image {name} has dtype {pixels.dtype}, not uint8 (0 to 255).")
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    return np.ascontiguousarray(pixels[..., :3])
