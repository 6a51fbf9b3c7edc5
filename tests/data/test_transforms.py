"""Decoding against PIL, crops and resizes against hand calculation, and what is refused."""

import importlib
import io
import pickle
import warnings
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from vit_jax.data import antialiased, decode, make_transform, transforms
from vit_jax.errors import UserError


def smooth_image(height=61, width=83):
    """A photo-like image: JPEG keeps it, and every channel differs."""
    y, x = np.mgrid[:height, :width]
    channels = (y * 255 / height, x * 255 / width, 127 + 100 * np.sin((x + y) / 9))
    return np.stack(channels, -1).astype(np.uint8)


def numbered(height, width):
    """Every pixel names its place: (row, column, 7)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y, x, np.full_like(x, 7)], -1).astype(np.uint8)


def encode(image, format, **options):
    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image)
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def with_pil(data):
    return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))


def far_apart(a, b):
    """Mean and largest difference in levels."""
    difference = np.abs(a.astype(int) - b.astype(int))
    return difference.mean(), difference.max()


# --- decode -------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [75, 90, 100])
@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_is_within_the_fast_dct_of_pil(quality, subsampling):
    data = encode(smooth_image(), "JPEG", quality=quality, subsampling=subsampling)
    ours = decode(data, "a.jpg")
    assert ours.dtype == np.uint8 and ours.shape == (61, 83, 3) and ours.flags.c_contiguous
    mean, largest = far_apart(ours, with_pil(data))
    assert mean < 2 and largest <= 16  # PIL's is the accurate DCT


def test_jpeg_of_a_plain_colour_is_that_colour_in_rgb_order():
    data = encode(np.full((32, 32, 3), (200, 100, 40), np.uint8), "JPEG", quality=95)
    assert far_apart(decode(data, "a"), with_pil(data))[1] <= 1
    assert far_apart(decode(data, "a"), np.array((200, 100, 40)))[1] <= 2


def test_progressive_jpeg():
    data = encode(smooth_image(), "JPEG", quality=90, progressive=True)
    assert far_apart(decode(data, "a"), with_pil(data))[1] <= 10


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1"])
def test_png_of_any_mode_is_rgb(mode):
    image = PIL.Image.fromarray(smooth_image()).convert(mode)
    data = encode(image, "PNG")
    ours = decode(data, "a.png")
    assert ours.shape == (61, 83, 3) and ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, with_pil(data))


def test_alpha_is_dropped_not_blended():
    pixels = np.dstack([smooth_image(), np.zeros((61, 83), np.uint8)])
    np.testing.assert_array_equal(decode(encode(pixels, "PNG"), "a"), smooth_image())


def test_palette_with_transparency_keeps_its_colours():
    image = PIL.Image.fromarray(smooth_image()).quantize(16)
    data = encode(image, "PNG", transparency=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = decode(data, "a")
    np.testing.assert_array_equal(ours, np.asarray(image.convert("RGB")))


def test_grayscale_jpeg_is_three_equal_channels():
    gray = smooth_image()[..., 2]
    ours = decode(encode(gray, "JPEG", quality=95), "a")
    assert ours.shape == (61, 83, 3)
    assert (ours == ours[..., :1]).all() and far_apart(ours[..., 0], gray)[1] <= 10


def test_cmyk_jpeg():
    data = encode(PIL.Image.fromarray(smooth_image()).convert("CMYK"), "JPEG", quality=95)
    ours = decode(data, "a.jpg")
    np.testing.assert_array_equal(ours, with_pil(data))
    assert far_apart(ours, smooth_image())[0] < 5  # not the negative


def test_16_bit_png_is_scaled_not_saturated():
    wide = (np.arange(64 * 64).reshape(64, 64) * 16).astype(np.uint16)
    ours = decode(encode(wide, "PNG"), "a.png")
    assert ours.shape == (64, 64, 3)
    assert far_apart(ours[..., 0], wide / 257)[1] <= 1
    assert (ours == 255).mean() < 0.01


def test_16_bit_extremes():
    wide = np.array([[0, 65535], [257, 257 * 128]], np.uint16)
    np.testing.assert_array_equal(decode(encode(wide, "PNG"), "a")[..., 0], [[0, 255], [1, 128]])


def test_float_tiff_is_refused_by_name_or_not_saturated():
    data = encode(PIL.Image.fromarray(np.full((8, 8), 70000.0, np.float32)), "TIFF")
    with pytest.raises(UserError, match=r"^The image a\.tif .*32-bit"):
        decode(data, "a.tif")


@pytest.mark.parametrize("format", ["PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM"])
def test_the_content_counts_not_the_suffix(format):
    data = encode(smooth_image(), format, **({"lossless": True} if format == "WEBP" else {}))
    np.testing.assert_array_equal(decode(data, "named.jpg"), with_pil(data))


def test_animated_gif_is_its_first_frame():
    frames = [PIL.Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(data, "a.gif"), np.broadcast_to((255, 0, 0), (10, 20, 3)))


@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_rotation_is_not_applied(format):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    data = encode(smooth_image(), format, exif=exif.tobytes())
    assert decode(data, "a").shape == (61, 83, 3)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
def test_pixels_in_memory(shape):
    pixels = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    ours = decode(pixels, "a")
    expected = pixels.reshape(5, 6, -1)
    expected = np.repeat(expected, 3, -1) if expected.shape[-1] == 1 else expected[..., :3]
    np.testing.assert_array_equal(ours, expected)
    assert ours.flags.c_contiguous


def test_pixels_are_not_a_window_on_the_source():
    """A transform that writes in place must not change the data set."""
    transform = make_transform(name="resize", size=(5, 6), train=False)
    pixels = np.zeros((5, 6, 3), np.uint8)
    pixels.setflags(write=False)
    assert transform(decode(pixels, "a")).shape == (5, 6, 3)


@pytest.mark.parametrize(
    "pixels, message",
    [
        (np.zeros((4, 4, 2), np.uint8), r"The image x/3 has shape \(4, 4, 2\)"),
        (np.zeros((4,), np.uint8), r"The image x/3 has shape \(4,\)"),
        (np.zeros((0, 4, 3), np.uint8), r"The image x/3 has shape \(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.float32), "The image x/3 has dtype float32, not uint8"),
    ],
)
def test_bad_pixels_are_named(pixels, message):
    with pytest.raises(UserError, match=message):
        decode(pixels, "x/3")


GOOD_JPEG = encode(smooth_image(200, 300), "JPEG", quality=90)
GOOD_PNG = encode(smooth_image(200, 300), "PNG")


@pytest.mark.parametrize(
    "data, what",
    [
        (b"", "is empty"),
        (b"not an image", "cannot be decoded (not a known image"),
        (b"\xff\xd8", "cannot be decoded"),
        (GOOD_JPEG[:200], "cannot be decoded"),
        (GOOD_JPEG[: len(GOOD_JPEG) // 2], "cannot be decoded (damaged)"),
        (GOOD_PNG[: len(GOOD_PNG) // 2], "cannot be decoded (damaged)"),
        (GOOD_PNG[:20], "cannot be decoded"),
    ],
)
def test_a_bad_file_is_named_in_one_line(data, what):
    with pytest.raises(UserError) as caught:
        decode(data, "cats/tom.jpg")
    message = str(caught.value)
    assert message.startswith("The image cats/tom.jpg ") and what in message
    assert "\n" not in message and message.endswith("replace it or leave it out.")


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_huge_image_is_refused_before_it_is_decoded(format, monkeypatch):
    monkeypatch.setattr(importlib.import_module("vit_jax.data.decode"), "_limit", 61 * 83)
    data = encode(smooth_image(), format)
    assert decode(data, "fits").shape == (61, 83, 3)
    monkeypatch.setattr(importlib.import_module("vit_jax.data.decode"), "_limit", 61 * 83 - 1)
    with pytest.raises(
        UserError, match=r"^The image big has 83x61 pixels, more than .*pixels=5062;"
    ):
        decode(data, "big")


@pytest.mark.parametrize("side, allowed", [(9_500, True), (14_000, True), (30_000, False)])
def test_pil_neither_warns_nor_decides_about_large_images(side, allowed, monkeypatch):
    """PIL warns above 89 million pixels and refuses above 179 million; ours is the one limit."""
    data = encode(PIL.Image.new("1", (side, side)), "PNG")
    monkeypatch.setattr(
        PIL.Image.Image, "convert", lambda self, mode: np.zeros((1, 1, 3), np.uint8)
    )
    if allowed:
        decode(data, "large", max_pixels=200_000_000)
    else:
        with pytest.raises(UserError, match="The image large has 30000x30000 pixels"):
            decode(data, "large")


# --- resizing and crops -------------------------------------------------------------------------


def test_bilinear_by_hand():
    image = np.array([[0, 100], [200, 40]], np.uint8)[..., None].repeat(3, -1)
    # Half-pixel centres: a row of two becomes 0, 1/4, 3/4, 1 of the way.
    ours = transforms.bilinear(image, (2, 4))
    np.testing.assert_array_equal(ours[..., 0], [[0, 25, 75, 100], [200, 160, 80, 40]])


@pytest.mark.parametrize("size", [(61, 83), (70, 90), (122, 166), (200, 84)])
def test_bilinear_enlarges_as_pil_does(size):
    image = smooth_image()
    resized = PIL.Image.fromarray(image).resize(size[::-1], PIL.Image.Resampling.BILINEAR)
    mean, largest = far_apart(transforms.bilinear(image, size), np.asarray(resized))
    assert mean < 0.5 and largest <= 2


def test_bilinear_shrinks_without_antialiasing():
    """Shrinking by 2 averages the two nearest rows and columns; by 4, still only two."""
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    ours = transforms.bilinear(image, (2, 2))
    expected = image.astype(float).reshape(2, 4, 2, 4, 3)[:, 1:3, :, 1:3].mean((1, 3))
    assert far_apart(ours, expected)[1] <= 1


def test_size_is_height_then_width():
    for train, name in ((True, "inception_crop"), (True, "resize_flip"), (False, "resize")):
        transform = make_transform(name=name, size=(24, 40), train=train)
        rng = (np.random.default_rng(0),) if train else ()
        assert transform(smooth_image(), *rng).shape == (24, 40, 3)


@pytest.mark.parametrize(
    "height, width, size, resize, scaled, corner",
    [
        (8, 8, (4, 4), 6, (6, 6), (1, 1)),
        (100, 200, (224, 224), 256, (256, 512), (16, 144)),
        (300, 200, (224, 224), 256, (384, 256), (80, 16)),
        (375, 500, (224, 224), 256, (256, 341), (16, 58)),
        (50, 51, (50, 51), 50, (50, 51), (0, 0)),
        (64, 32, (30, 20), 32, (64, 32), (17, 6)),
    ],
)
def test_resize_center_crop_by_hand(height, width, size, resize, scaled, corner):
    image = smooth_image(height, width)
    transform = make_transform(name="resize_center_crop", size=size, train=False, resize=resize)
    top, left = corner
    expected = transforms.by_area(image, scaled)
    assert expected.shape[:2] == scaled
    np.testing.assert_array_equal(
        transform(image), expected[top : top + size[0], left : left + size[1]]
    )


def test_a_long_image_takes_no_memory_where_it_is_cut_off():
    """2 x 20,000 pixels are enlarged to 256 x 2.56 million, of which 224 columns are kept."""
    image = np.random.default_rng(0).integers(0, 256, (2, 20_000, 3)).astype(np.uint8)
    transform = make_transform(name="resize_center_crop", size=(224, 224), train=False, resize=256)
    short = transform(image[:, 9_990:10_010])
    assert np.abs(transform(image).astype(int) - short).max() <= 1


@pytest.mark.parametrize("interpolation", ["bilinear", "hamming"])
def test_pillow_crops_a_long_image_before_it_is_resized(monkeypatch, interpolation):
    options = {"fit": "cover", "interpolation": interpolation, "resize": (20, 24), "whole": "down"}
    for height, width in ((75, 7), (9, 90), (80, 60)):
        image = smooth_image(height, width)
        whole = transforms.pillow(image, (16, 22), **options)
        monkeypatch.setattr(antialiased, "CROP_BEFORE_RESIZE", 0)
        assert far_apart(transforms.pillow(image, (16, 22), **options), whole)[1] <= 1
        monkeypatch.undo()
    resized = []
    resize = PIL.Image.Image.resize
    watch = lambda image, size, *more: resized.append(size) or resize(image, size, *more)  # noqa: E731
    monkeypatch.setattr(PIL.Image.Image, "resize", watch)
    strip = np.zeros((60_000, 1, 3), np.uint8)
    assert transforms.pillow(strip, (224, 224), fit="cover").shape == (224, 224, 3)
    assert resized == [(224, 224)]  # not (224, 13_440_000), 9 GB


def test_resizing_by_area_by_hand():
    """Three rows become two, each the mean of one and a half."""
    image = np.array([[0, 30], [90, 60], [30, 120]], np.uint8)[..., None].repeat(3, -1)
    found = transforms.by_area(image, (2, 1))
    expected = [(0 + 30 + (90 + 60) / 2) / 3, ((90 + 60) / 2 + 30 + 120) / 3]
    np.testing.assert_array_equal(found[:, 0, 0], np.round(expected))
    exact = np.tensordot(transforms._shares(61, 32, 32), smooth_image().astype(np.float32), 1)
    exact = np.tensordot(transforms._shares(83, 44, 44), exact, (1, 1)).transpose(1, 0, 2)
    assert np.abs(transforms.by_area(smooth_image(), (32, 44)) - exact).max() <= 0.51
    larger = transforms.by_area(image[:1], (1, 3))  # 2 columns to 3: the middle is half and half
    np.testing.assert_array_equal(larger[0, :, 0], [0, 15, 30])


@pytest.mark.parametrize("old, new", [((61, 83), (32, 44)), ((40, 30), (64, 48)), ((9, 7), (9, 3))])
def test_resizing_by_area_is_that_of_tensorflow(old, new):
    """The original's `tf.image.resize(method="area")`, rounded to whole levels."""
    tf = pytest.importorskip("tensorflow")
    image = np.random.default_rng(0).integers(0, 256, (*old, 3), dtype=np.uint8)
    wanted = tf.image.resize(image, new, method="area").numpy()
    assert np.abs(transforms.by_area(image, new) - wanted).max() <= 0.51


def test_few_shot_images_are_resized_to_a_square_and_cropped():
    """256 to 224, whatever the aspect ratio."""
    image = smooth_image()
    found = make_transform(name="square_center_crop", size=(224, 224), train=False)(image)
    np.testing.assert_array_equal(found, transforms.bilinear(image, (256, 256))[16:240, 16:240])
    small = make_transform(name="square_center_crop", size=(32, 32), train=False)(image)
    np.testing.assert_array_equal(small, transforms.bilinear(image, (37, 37))[2:34, 2:34])


def test_center_crop_pixels_without_any_resizing():
    transform = make_transform(name="resize_center_crop", size=(2, 2), train=False, resize=4)
    np.testing.assert_array_equal(transform(numbered(4, 7)), numbered(4, 7)[1:3, 2:4])


def test_resize_is_bilinear():
    transform = make_transform(name="resize", size=(20, 30), train=False)
    image = smooth_image()
    np.testing.assert_array_equal(transform(image), transforms.bilinear(image, (20, 30)))


def test_resize_crop_takes_each_window_of_the_resized_image():
    image = numbered(4, 4)
    transform = make_transform(name="resize_crop", size=(2, 2), train=True, resize=4, flip=False)
    corners = set()
    for seed in range(200):
        crop = transform(image, np.random.default_rng(seed))
        top, left = crop[0, 0, :2]
        np.testing.assert_array_equal(crop, image[top : top + 2, left : left + 2])
        corners.add((int(top), int(left)))
    assert corners == {(i, j) for i in range(3) for j in range(3)}


def test_resize_crop_of_the_whole_is_the_resized_image():
    transform = make_transform(name="resize_crop", size=(24, 24), train=True, resize=24, flip=False)
    expected = transforms.bilinear(smooth_image(), (24, 24))
    np.testing.assert_array_equal(transform(smooth_image(), np.random.default_rng(3)), expected)


@pytest.mark.parametrize("resize", [(30, 40), [30, 40]])
def test_resize_may_be_height_and_width(resize):
    options = dict(size=(24, 24), train=True, resize=resize, flip=False)
    transform = make_transform(name="resize_crop", **options)
    assert transform(smooth_image(), np.random.default_rng(0)).shape == (24, 24, 3)


def test_pad_crop_shifts_by_up_to_pad_and_fills_with_zeros():
    image = numbered(8, 8) + 1  # no zeros in the image itself
    transform = make_transform(name="pad_crop", size=(8, 8), train=True, pad=2, flip=False)
    shifts = set()
    for seed in range(400):
        crop = transform(image, np.random.default_rng(seed))
        assert crop.shape == (8, 8, 3)
        rows, columns = np.nonzero(crop[..., 2])
        inside = crop[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        dy = int(crop[rows[0], columns[0], 0]) - 1 - int(rows[0])
        dx = int(crop[rows[0], columns[0], 1]) - 1 - int(columns[0])
        assert inside.shape[:2] == (8 - abs(dy), 8 - abs(dx)) and inside.all()
        assert (crop == 0).sum() == 3 * (64 - (8 - abs(dy)) * (8 - abs(dx)))
        shifts.add((dy, dx))
    assert shifts == {(i, j) for i in range(-2, 3) for j in range(-2, 3)}


@pytest.mark.parametrize(
    "name, options",
    [
        ("inception_crop", {}),
        ("resize_crop", {"resize": 12}),
        ("resize_flip", {}),
        ("pad_crop", {}),
    ],
)
def test_every_training_transform(name, options):
    """Contiguous uint8, the same for the same rng, different for others, and picklable."""
    transform = make_transform(name=name, size=(10, 10), train=True, **options)
    image = smooth_image()
    before = image.copy()
    copy = pickle.loads(pickle.dumps(transform))
    outputs = []
    for seed in range(20):
        ours = transform(image, np.random.default_rng(seed))
        assert ours.shape == (10, 10, 3) and ours.dtype == np.uint8 and ours.flags.c_contiguous
        np.testing.assert_array_equal(ours, copy(image, np.random.default_rng(seed)))
        outputs.append(ours.tobytes())
    np.testing.assert_array_equal(image, before)
    assert len(set(outputs)) >= 2
    assert repr(transform).startswith(f"{name}(10x10")


@pytest.mark.parametrize(
    "name, options",
    [("resize_flip", {}), ("resize_crop", {"resize": 12}), ("pad_crop", {"pad": 0})],
)
def test_half_of_the_images_are_mirrored(name, options):
    transform = make_transform(name=name, size=(12, 12), train=True, **options)
    image = numbered(12, 12)
    mirrored = 0
    for seed in range(400):
        ours = transform(image, np.random.default_rng(seed))
        rising = ours[0, 1, 1] > ours[0, 0, 1]
        if not rising:
            np.testing.assert_array_equal(ours, image[:, ::-1])
        mirrored += not rising
    assert 160 < mirrored < 240


@pytest.mark.parametrize("name", ["inception_crop", "resize_flip", "pad_crop"])
def test_no_flip_when_it_is_off(name):
    transform = make_transform(name=name, size=(12, 12), train=True, flip=False)
    for seed in range(40):
        row = transform(numbered(60, 60), np.random.default_rng(seed))[6, :, 1]
        inside = row[row > 0]
        assert (np.diff(inside.astype(int)) >= 0).all()


# --- inception boxes ----------------------------------------------------------------------------


def boxes(height, width, count=3000, **options):
    rng = np.random.default_rng(0)
    drawn = [transforms.inception_box(height, width, rng, **options) for _ in range(count)]
    return np.array(drawn).T


@pytest.mark.parametrize("height, width", [(200, 200), (375, 500), (1, 1), (3, 2), (50, 400)])
def test_boxes_lie_in_the_image(height, width):
    top, left, h, w = boxes(height, width, 500)
    assert (top >= 0).all() and (left >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (top + h <= height).all() and (left + w <= width).all()


CROPS = np.load(Path(__file__).parents[1] / "golden" / "crops.npz")


@pytest.mark.parametrize("shape", sorted({name.split("/")[0] for name in CROPS}))
def test_boxes_are_distributed_as_those_of_the_original(shape):
    """Quantiles of 20,000 draws of tf.image.sample_distorted_bounding_box."""
    height, width = map(int, shape.split("x"))
    top, left, h, w = boxes(height, width, 20_000)
    found = {
        "area": h * w / (height * width),
        "aspect": w / h,
        "centre_x": (left + w / 2) / width,
        "centre_y": (top + h / 2) / height,
    }
    for name, values in found.items():
        quantiles = np.percentile(values, np.arange(101))
        assert np.abs(quantiles - CROPS[f"{shape}/{name}"]).max() < 0.02, name
    whole = ((h == height) & (w == width)).mean()
    assert abs(whole - CROPS[f"{shape}/whole"]) < 0.002


def test_an_area_that_is_drawn_uniformly_is_another_distribution():
    """What the first version did: the comparison above would have seen it."""
    rng = np.random.default_rng(0)
    area = rng.uniform(0.05, 1, 40_000)
    ratio = rng.uniform(3 / 4, 4 / 3, 40_000)
    fits = (np.sqrt(area / ratio) <= 1) & (np.sqrt(area * ratio) <= 1)
    quantiles = np.percentile(area[fits], np.arange(101))
    assert np.abs(quantiles - CROPS["224x224/area"]).max() > 0.05


def test_area_and_aspect_can_be_set():
    _, _, h, w = boxes(1000, 1000, 500, area=(0.2, 0.3), aspect=(0.5, 0.6))
    assert (h * w / 1e6 > 0.198).all() and (h * w / 1e6 < 0.302).all()
    assert (w / h > 0.498).all() and (w / h < 0.602).all()
    transform = make_transform(name="inception_crop", size=(8, 8), train=True, area=(0.9, 1.0))
    corner = [transform(numbered(99, 99), np.random.default_rng(s))[0, 0, 0] for s in range(50)]
    assert max(corner) < 20


@pytest.mark.parametrize("height, width", [(10, 2000), (2000, 10)])
def test_extreme_shapes_fall_back_to_the_whole_image(height, width):
    rng = np.random.default_rng(0)
    box = transforms.inception_box(height, width, rng, area=(0.5, 1.0))
    assert box == (0, 0, height, width)


# --- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            dict(name="inception_corp", train=True),
            "config.augment.name='inception_corp' does not exist; there are inception_crop, "
            "resize_crop, resize_flip, pad_crop. Did you mean 'inception_crop'?",
        ),
        (
            dict(name="resize_crop", train=False),
            "config.eval_preprocess.name='resize_crop' does not exist; there are resize, "
            "resize_center_crop, square_center_crop, objectnet, pillow.",
        ),
        (
            dict(name="resize_crop", train=True),
            "config.augment.resize must be set for resize_crop.",
        ),
        (
            dict(name="resize_flip", train=True, resize=32),
            "config.augment.resize is a setting that resize_flip does not read.",
        ),
        (
            dict(name="pad_crop", train=True, padd=2),
            "config.augment.padd is a setting that pad_crop does not read. Did you mean 'pad'?",
        ),
        (
            dict(name="resize_crop", train=True, resize=20),
            "config.augment.resize=20 is smaller than the image size 24x24 that is cut from it.",
        ),
        (
            dict(name="resize_center_crop", train=False, resize=23),
            "config.eval_preprocess.resize=23 is smaller than the image size 24x24",
        ),
        (
            dict(name="pillow", train=False, resize=30),
            "config.eval_preprocess.resize=30 must be (height, width) for pillow, whole numbers.",
        ),
        (
            dict(name="pillow", train=False, resize=(30.5, 30)),
            "config.eval_preprocess.resize=(30.5, 30) must be (height, width) for pillow, whole",
        ),
    ],
)
def test_unknown_names_and_options(arguments, message):
    with pytest.raises(UserError) as caught:
        make_transform(size=(24, 24), **arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("resize, fits", [((30, 48), True), ((48, 30), False), ((24, 39), False)])
def test_each_side_of_resize_is_compared_with_its_own(resize, fits):
    arguments = dict(name="resize_crop", size=(24, 40), train=True, resize=resize)
    if fits:
        image = make_transform(**arguments)(smooth_image(), np.random.default_rng(0))
        assert image.shape == (24, 40, 3)
    else:
        with pytest.raises(UserError, match="is smaller than the image size 24x40"):
            make_transform(**arguments)


def test_a_long_image_is_contained_by_one_pixel_at_least():
    transform = make_transform(name="pillow", size=(8, 8), train=False, fit="contain")
    image = transform(np.full((1, 500, 3), 200, np.uint8))
    assert image.shape == (8, 8, 3) and (image[:, 0, 0] == 200).sum() == 1
