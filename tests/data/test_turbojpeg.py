"""A region of a JPEG has the pixels of the whole, whichever library there is, or none."""

import importlib.util
import io

import numpy as np
import PIL.Image
import pytest

from vit_jax.data import decode, make_transform, transforms, turbojpeg
from vit_jax.data.decode import Encoded, open_image
from vit_jax.errors import UserError

# Where the package is installed its library must pass; being turned down is a failure here.
needs_library = pytest.mark.skipif(
    importlib.util.find_spec("turbojpeg") is None and turbojpeg.library() is None,
    reason="no TurboJPEG 3: pip install 'vit_jax[turbojpeg]'",
)
HEIGHT, WIDTH = 101, 147
CROP = make_transform(name="inception_crop", size=(48, 40), train=True)


def jpeg(mode="RGB", **options):
    """Noise over a slope, as a file: every block has high frequencies."""
    rng = np.random.default_rng(0)
    slope = np.linspace(0, 200, WIDTH)[None, :, None]
    pixels = (slope + rng.integers(0, 56, (HEIGHT, WIDTH, 3))).astype(np.uint8)
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


FILES = {
    "444": jpeg(subsampling=0, quality=95),
    "422": jpeg(subsampling=1),
    "420": jpeg(subsampling=2),
    "progressive": jpeg(subsampling=2, progressive=True),
    "grey": jpeg("L"),
    "restart markers": jpeg(subsampling=2, restart_marker_rows=1),
}


@needs_library
@pytest.mark.parametrize("name", FILES)
def test_a_box_has_the_pixels_of_the_whole(name):
    whole = decode(FILES[name], name)
    image = open_image(FILES[name], name)
    assert isinstance(image, Encoded) and image.shape == whole.shape
    rng = np.random.default_rng(1)
    boxes = [transforms.inception_box(HEIGHT, WIDTH, rng) for _ in range(200)]
    boxes += [(0, 0, HEIGHT, WIDTH), (0, 0, 1, 1), (HEIGHT - 1, WIDTH - 1, 1, 1), (16, 16, 16, 16)]
    for top, left, height, width in boxes:
        box = slice(top, top + height), slice(left, left + width)
        np.testing.assert_array_equal(image[box], whole[box])


@needs_library
@pytest.mark.parametrize("name", FILES)
def test_training_images_are_the_same_without_the_library(name, monkeypatch):
    fast = CROP.read(FILES[name], name, np.random.default_rng(2))
    monkeypatch.setattr(turbojpeg, "library", lambda: None)
    assert not isinstance(open_image(FILES[name], name), Encoded)
    slow = CROP.read(FILES[name], name, np.random.default_rng(2))
    np.testing.assert_array_equal(fast, slow)


def test_other_formats_are_decoded_whole():
    png = io.BytesIO()
    PIL.Image.new("RGB", (20, 10)).save(png, "PNG")
    for data in (png.getvalue(), jpeg("CMYK"), np.zeros((10, 20, 3), np.uint8)):
        assert isinstance(open_image(data, "x"), np.ndarray)
        assert CROP.read(data, "x", np.random.default_rng(0)).shape == (48, 40, 3)


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_named_whatever_the_box(keep):
    data = FILES["420"][: int(len(FILES["420"]) * keep)]
    for seed in range(10):
        with pytest.raises(UserError, match=r"^The image cats/1\.jpg cannot be decoded"):
            CROP.read(data, "cats/1.jpg", np.random.default_rng(seed))


@needs_library
def test_damage_that_a_box_meets_is_named():
    data = bytearray(FILES["420"])
    data[2000:2100] = b"\xff\xd8" * 50
    with pytest.raises(UserError, match=r"^The image cats/1\.jpg cannot be decoded"):
        open_image(bytes(data), "cats/1.jpg")[0:HEIGHT, 0:WIDTH]


@needs_library
def test_a_library_with_other_pixels_is_not_used(monkeypatch):
    exact = turbojpeg._decode
    assert turbojpeg.library.__wrapped__() is not None
    monkeypatch.setattr(turbojpeg, "_decode", lambda *arguments: exact(*arguments) ^ 1)
    assert turbojpeg.library.__wrapped__() is None


def test_a_library_of_another_kind_is_not_used(monkeypatch):
    monkeypatch.setattr(turbojpeg, "candidates", lambda: iter(["libm.so.6", "no such library"]))
    assert turbojpeg.library.__wrapped__() is None
