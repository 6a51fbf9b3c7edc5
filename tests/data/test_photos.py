"""EXIF orientation through every decoder and kind of data, and vit_jax.preprocess."""

import io

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest

import vit_jax
from vit_jax import data, models
from vit_jax.data import decode, photos, source, turbojpeg
from vit_jax.data.columns import Columns
from vit_jax.data.decode import Encoded, open_image, orientation
from vit_jax.errors import UserError

PIXELS = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8))
PIXELS = PIXELS.resize((61, 43), PIL.Image.Resampling.BICUBIC)
FORMATS = [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})]


def encoded(turn, kind="JPEG", mode="RGB", **options):
    exif = PIL.Image.Exif()
    if turn:
        exif[0x0112] = turn
    file = io.BytesIO()
    PIXELS.convert(mode).save(file, kind, exif=exif, **options)
    return file.getvalue()


def by_pillow(data):
    """What Pillow makes of it: the stored pixels as our decoder has them, turned by Pillow."""
    opened = PIL.Image.open(io.BytesIO(data))
    if opened.format != "JPEG":
        return np.asarray(PIL.ImageOps.exif_transpose(opened))
    exif = opened.getexif()
    image = PIL.Image.fromarray(decode(data, "x"))
    image.getexif()[0x0112] = exif.get(0x0112, 1)
    return np.asarray(PIL.ImageOps.exif_transpose(image))


@pytest.mark.parametrize("turn", [*range(10), 255])
@pytest.mark.parametrize("kind, options", FORMATS)
def test_all_orientations_as_pillow_has_them(turn, kind, options):
    """All orientations, and values that are none."""
    data_ = encoded(turn, kind, **options)
    found = decode(data_, "x", orient=True)
    np.testing.assert_array_equal(found, by_pillow(data_))
    assert found.shape == ((61, 43, 3) if turn in (5, 6, 7, 8) else (43, 61, 3))
    assert found.flags["C_CONTIGUOUS"]
    if kind != "TIFF":  # which Pillow turns by itself
        assert decode(data_, "x").shape == (43, 61, 3)  # TFDS' way
        assert (2 <= turn <= 8) == (orientation(data_) != 1)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_are_turned_too(mode):
    data_ = encoded(6, mode=mode)
    np.testing.assert_array_equal(decode(data_, "x", orient=True), by_pillow(data_))


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("subsampling", [0, 2])
def test_a_decoded_region_is_of_the_oriented_image(turn, subsampling):
    """Through TurboJPEG's region decoder, where it is there."""
    data_ = encoded(turn, quality=95, subsampling=subsampling)
    whole = decode(data_, "x", orient=True)
    opened = open_image(data_, "x", orient=True)
    assert isinstance(opened, Encoded) == (turbojpeg.library() is not None)
    assert tuple(opened.shape) == whole.shape
    for box in ((3, 17, 5, 29), (0, 43, 0, 43), (20, 41, 30, 42)):
        top, bottom, left, right = box
        found = opened[top:bottom, left:right]
        np.testing.assert_array_equal(found, whole[top:bottom, left:right])


def test_a_training_crop_of_a_turned_photo_is_that_of_the_upright_one():
    crop = data.make_transform(name="inception_crop", size=(16, 16), train=True, orient=True)
    photo = encoded(6, quality=95)
    upright = decode(photo, "x", orient=True)
    for seed in range(5):
        found = crop.read(photo, "x", np.random.default_rng(seed))
        np.testing.assert_array_equal(found, crop(upright, np.random.default_rng(seed)))


def test_damaged_exif_leaves_the_image_as_it_is():
    data_ = bytearray(encoded(6))
    at = data_.index(b"Exif\0\0")
    for start, length in ((at + 6, 8), (at + 10, 8)):
        bad = bytes(data_[:start]) + b"\xfe" * length + bytes(data_[start + length :])
        assert decode(bad, "x", orient=True).shape == (43, 61, 3)


def test_which_kinds_of_data_apply_exif_orientation(tmp_path):
    """Folders and Hugging Face are, as `datasets` does; TFDS never is."""
    record = {"image": encoded(6), "label": 0}
    resize = data.make_transform(name="resize", size=(8, 12), train=False, orient=True)
    lying, upright = decode(record["image"], "x"), decode(record["image"], "x", orient=True)
    (tmp_path / "a.jpg").write_bytes(record["image"])
    folder = source.FileSource(str(tmp_path), np.array(["a.jpg"]), np.zeros(1), ["a"], "folder:x")
    columns = Columns("image", "label")
    table = dict(rows=[record], read=columns, class_names=["a"], spec="t", version="1")
    cases = [
        (folder, upright),
        (source.TableSource(**table, exif=True), upright),
        (source.TableSource(**table), lying),  # TFDS
        (source.Subset(source.TableSource(**table), np.array([0]), "s"), lying),
    ]
    for records, wanted in cases:
        (batch,) = list(data.eval_batches(records, resize, batch_size=1))
        np.testing.assert_array_equal(batch["image"][0], resize(wanted))


def test_a_model_of_the_first_version_leaves_photos_as_they_are_stored():
    """The setting travels with the model; a model without it means the first version's."""
    photo = encoded(6)
    lying, upright = decode(photo, "x"), decode(photo, "x", orient=True)
    for preprocessing, wanted in (
        ((), lying),
        ((("name", "resize"),), lying),
        ((("name", "resize"), ("orient", False)), lying),
        ((("name", "resize"), ("orient", True)), upright),
    ):
        transform = data.evaluation_transform((16, 16), preprocessing)
        np.testing.assert_array_equal(transform.read(photo, "x"), transform(wanted))


def test_preprocess_takes_files_pil_images_and_arrays(tmp_path):
    model = vit_jax.create_model("debug", num_classes=3, preprocessing=data.FOREIGN_EVALUATION)
    photo = encoded(6, "PNG")
    (tmp_path / "a.png").write_bytes(photo)
    upright = decode(photo, "x", orient=True)
    pil = PIL.Image.open(tmp_path / "a.png")
    images = vit_jax.preprocess(
        model, [tmp_path / "a.png", str(tmp_path / "a.png"), photo, pil, upright]
    )
    assert images.shape == (5, 32, 32, 3) and images.dtype == np.float32
    assert all((image == images[0]).all() for image in images)
    resize = data.make_transform(name="resize", size=(32, 32), train=False)
    np.testing.assert_array_equal(images[0], resize(upright).astype(np.float32) / 127.5 - 1)
    assert np.asarray(model(images)).shape == (5, 3)
    assert vit_jax.preprocess(model, str(tmp_path / "a.png")).shape == (1, 32, 32, 3)
    assert vit_jax.preprocess(model, list(np.zeros((2, 9, 9), np.uint8))).shape[0] == 2
    for wrong, message in (
        ([tmp_path / "no.png"], "no.png cannot be read"),
        (["~nobody-of-this-name/no.png"], "no.png cannot be read"),
        ([b"no image"], "cannot be decoded"),
        (["a\0b.png"], r"There is no image a\\x00b.png"),
        ([PIL.Image.new("F", (9, 9))], "32-bit or signed channels"),
        ([PIL.Image.new("LAB", (9, 9))], "whose conversion to RGB is ambiguous"),
        ([np.zeros((4, 4, 3), np.float32)], "dtype float32, not uint8"),
    ):
        with pytest.raises(UserError, match=message):
            vit_jax.preprocess(model, wrong)
    with pytest.raises(UserError, match=r"has 3 channels .* and the model takes 4"):
        photos.preprocess(models.get_config("debug", channels=4), [photo])


def test_16_bits_of_a_pil_image_are_scaled_as_those_of_a_file():
    config = models.get_config("debug")
    grey = PIL.Image.fromarray(np.full((9, 9), 30_000, np.uint16))
    file = io.BytesIO()
    grey.save(file, "PNG")
    found = photos.preprocess(config, [grey, file.getvalue()])
    np.testing.assert_allclose(found, 30_000 / 65_535 * 2 - 1, atol=1 / 127)


def test_one_image_is_a_batch_of_one():
    config = models.get_config("debug", num_classes=3)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 30, 3), np.uint8)
    one = photos.preprocess(config, image)
    assert one.shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(one, photos.preprocess(config, [image]))
    np.testing.assert_array_equal(one, photos.preprocess(config, image[None]))
    assert photos.preprocess(config, image[..., 0]).shape == (1, 32, 32, 3)
    for odd in (None, 3, 2.5, np.array(3)):
        with pytest.raises(UserError, match="not an image or a list of images"):
            photos.preprocess(config, odd)
