"""Images of every depth and mode: scaled right, or refused by name; never black, white or noise."""

import io
import struct

import numpy as np
import PIL.Image
import pytest

from vit_jax import data
from vit_jax.data.decode import image_size
from vit_jax.errors import UserError

WIDE = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
GREY = (WIDE // 257).astype(np.uint8)
WHITE_IS_ZERO, BLACK_IS_ZERO = 0, 1


def encode(image, format):
    file = io.BytesIO()
    image.save(file, format)
    return file.getvalue()


def tiff(samples, bits, photometric, sign=1):
    """An 8x8 grey TIFF whose header says what its samples are."""
    content = samples if isinstance(samples, bytes) else samples.tobytes()
    size = len(content)
    entries = [(256, 3, 8), (257, 3, 8), (258, 3, bits), (259, 3, 1), (262, 3, photometric),
               (273, 4, 8), (277, 3, 1), (278, 3, 8), (279, 4, size), (339, 3, sign)]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8 + size) + content + struct.pack("<H", len(entries))
    return head + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries) + b"\0" * 4


def packed_12(values):
    pairs = values.ravel().reshape(-1, 2).astype(int)
    return b"".join(bytes([a >> 4, (a & 15) << 4 | b >> 8, b & 255]) for a, b in pairs)


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_16_bits_are_scaled_in_every_format(format):
    pixels = data.decode(encode(PIL.Image.fromarray(WIDE), format), "a")
    np.testing.assert_array_equal(pixels, np.repeat(GREY[..., None], 3, -1))


@pytest.mark.parametrize(
    "content",
    [
        tiff(WIDE, 16, BLACK_IS_ZERO),
        tiff(65535 - WIDE, 16, WHITE_IS_ZERO),
        tiff(GREY, 8, BLACK_IS_ZERO),
        tiff(255 - GREY, 8, WHITE_IS_ZERO),
        tiff(packed_12(WIDE >> 4), 12, BLACK_IS_ZERO),
        *(
            b"P5 8 8 %d\n" % top + (WIDE.astype(np.int64) * top // 65535).astype(">u2").tobytes()
            for top in (4095, 1000, 65535)
        ),
    ],
)
def test_depth_and_polarity_of_the_header_count(content):
    """12 bits are not black, white-is-zero is not the negative."""
    pixels = data.decode(content, "a.tif")
    assert np.abs(pixels[..., 0].astype(int) - GREY).max() <= 1


@pytest.mark.parametrize(
    "content",
    [
        encode(PIL.Image.fromarray(WIDE.astype(np.int32)), "TIFF"),
        encode(PIL.Image.fromarray(GREY.astype(np.int32)), "TIFF"),
        tiff(WIDE.astype(np.uint32) << 16, 32, BLACK_IS_ZERO),
        tiff(WIDE.view(np.int16) // 2, 16, BLACK_IS_ZERO, sign=2),
        encode(PIL.Image.fromarray(np.float32(WIDE)), "TIFF"),
        encode(PIL.Image.fromarray(np.float32(WIDE)), "PPM"),  # portable float map
        encode(PIL.Image.merge("LAB", [PIL.Image.fromarray(GREY)] * 3), "TIFF"),
        tiff(np.float16(WIDE / 65535), 16, BLACK_IS_ZERO, sign=3),
        tiff(np.float64(WIDE), 64, BLACK_IS_ZERO, sign=3),
    ],
)
def test_values_without_a_known_range_are_refused_by_name(content):
    """int32 as float32."""
    with pytest.raises(UserError, match=r"^The image x/a\.tif .*(convert it to|leave it out)"):
        data.decode(content, "x/a.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
def test_every_mode_of_a_tiff(mode):
    levels = GREY if mode != "1" else np.where(GREY > 127, 255, 0).astype(np.uint8)
    image = PIL.Image.fromarray(levels).convert("RGB" if mode == "CMYK" else "L").convert(mode)
    pixels = data.decode(encode(image, "TIFF"), "a")
    assert pixels.shape == (8, 8, 3)
    assert np.abs(pixels.astype(int) - levels[..., None]).max() <= 1


def test_image_size_is_read_from_the_header():
    assert image_size(encode(PIL.Image.new("RGB", (30, 20)), "JPEG"), "a") == (20, 30)
    assert image_size(np.zeros((4, 5, 3), np.uint8), "a") == (4, 5)
    with pytest.raises(UserError, match="The image a cannot be decoded"):
        image_size(b"no", "a")
