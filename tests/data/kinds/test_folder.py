"""Folders as people have them: what is a class, a split or an image, what is said of the rest."""

import os
import unicodedata

import numpy as np
import PIL.Image
import pytest
from image_folders import class_folders, save

from vit_jax import data
from vit_jax.data.image_files import image_suffixes
from vit_jax.data.kinds.folder import open_folder
from vit_jax.errors import UserError


def names_of(spec):
    return data.open_source(spec).class_names


@pytest.mark.parametrize("path", ["gs://bucket/pets", "s3://bucket/pets?multilabel=true"])
def test_a_url_is_not_a_folder(path):
    with pytest.raises(UserError, match=r"reads file systems, not .*bucket/pets\. Mount"):
        data.open_source(f"folder:{path}")


# --- splits in the place of classes, and classes a level deeper -----------------------------------


@pytest.mark.parametrize(
    "train, test, split",
    [
        ("training_set", "test_set", "test"),
        ("Train", "TESTING", "test"),
        ("seg_train", "seg_test", "test"),
        ("train_images", "val-images", "validation"),
        ("trainset", "eval", "validation"),
        ("train2017", "val2017", "validation"),
    ],
)
def test_folders_named_after_splits_are_splits(tmp_path, train, test, split):
    for name in (train, test):
        class_folders(tmp_path / name)
    opened = open_folder(str(tmp_path), None, {})
    assert set(opened.names()) == {"train", split}
    assert opened("train").class_names == ("blue", "green", "red")
    assert all(name.startswith(f"{train}/") for name in opened("train").names())
    assert data.open_source(f"folder:{tmp_path}[{test}]").names() == opened(split).names()


def test_a_split_folder_within_itself(tmp_path):
    """training_set/training_set/CLASS, as one of the best known archives has it."""
    for name in ("training_set", "test_set"):
        class_folders(tmp_path / name / name, classes=("cats", "dogs"))
    assert names_of(f"folder:{tmp_path}[test]") == ("cats", "dogs")


@pytest.mark.parametrize("two", [("val", "valid"), ("Train", "train"), ("test", "testing")])
def test_two_folders_of_one_split_are_refused(tmp_path, two):
    for name in ("train", *two):
        class_folders(tmp_path / name)
    with pytest.raises(UserError, match=f"has {two[0]} and {two[1]}, which both mean the split"):
        data.open_source(f"folder:{tmp_path}")


def test_splits_without_class_folders_are_refused(tmp_path):
    """The splits are not the classes."""
    for name in ("train", "test"):
        save(tmp_path / name / "cat.0.jpg")
    with pytest.raises(UserError, match=r"has test and train, which are splits, not classes"):
        data.open_source(f"folder:{tmp_path}")


def test_splits_below_a_split_are_refused(tmp_path):
    for name in ("training", "test"):
        class_folders(tmp_path / "train" / name)
    with pytest.raises(UserError, match="train has test and training instead of class"):
        data.open_source(f"folder:{tmp_path}")


def test_a_class_may_be_called_train(tmp_path):
    class_folders(tmp_path, classes=("bus", "train", "plane"))
    assert names_of(f"folder:{tmp_path}") == ("bus", "plane", "train")


def test_a_folder_one_level_too_high_is_recognised(tmp_path):
    """One class is not refused for features or duplicates, but says what it is."""
    class_folders(tmp_path / "dataset")
    source = data.open_source(f"folder:{tmp_path}")
    (note,) = source.notes
    assert source.class_names == ("dataset",)
    assert "(blue, green, red); if those are the classes or the splits, give" in note
    assert note.endswith(f"folder:{tmp_path}/dataset")
    class_folders(tmp_path / "other")
    assert "are in subfolders" in data.open_source(f"folder:{tmp_path}").notes[0]
    save(tmp_path / "other" / "direct.png")
    assert data.open_source(f"folder:{tmp_path}").notes == ()


def test_a_split_of_none_of_the_classes_is_passed_over_and_said(tmp_path):
    """test/unsorted/*.png, as Kaggle's test sets are: no labels, and no class of their own."""
    class_folders(tmp_path / "train", ("cat", "dog"))
    class_folders(tmp_path / "test", ("unsorted",))
    source = data.open_source(f"folder:{tmp_path}[train]")
    assert tuple(source.class_names) == ("cat", "dog")
    assert any("the split test: its folders (unsorted) are not classes" in n for n in source.notes)
    with pytest.raises(UserError, match="test"):
        data.open_source(f"folder:{tmp_path}[test]")


def test_files_beside_the_splits_are_noted(tmp_path):
    class_folders(tmp_path / "train")
    save(tmp_path / "test" / "1.png")  # without labels
    save(tmp_path / "unlabeled" / "2.png")
    (note,) = data.open_source(f"folder:{tmp_path}").notes
    assert note == "skipped beside train: test, unlabeled (without class folders)"


# --- names ----------------------------------------------------------------------------------------


def test_a_class_has_one_name_in_every_unicode_form(tmp_path):
    """NFC in train/ and NFD in test/, as archives from a Mac have it."""
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    for split, name in (("train", composed), ("test", decomposed)):
        class_folders(tmp_path / split, classes=(name, "thé"))
    train, test = (data.open_source(f"folder:{tmp_path}[{s}]") for s in ("train", "test"))
    assert train.class_names == test.class_names == (composed, "thé")
    assert {test[i]["name"] for i in range(len(test))} == {
        f"test/{c}/{i}.png" for c in (composed, "thé") for i in range(2)
    }
    class_folders(tmp_path / "train", classes=(decomposed,))
    with pytest.raises(UserError, match="exists twice, in two Unicode forms"):
        data.open_source(f"folder:{tmp_path}")


def test_the_same_data_has_the_same_fingerprint_in_every_unicode_form(tmp_path):
    for form in ("NFC", "NFD"):
        names = [unicodedata.normalize(form, name) for name in ("café", "thé")]
        class_folders(tmp_path / form, classes=names, count=5)
    one, other = (data.open_source(f"folder:{tmp_path}/{form}") for form in ("NFC", "NFD"))
    assert one.fingerprint == other.fingerprint and one.names() == other.names()


@pytest.mark.parametrize("where", [("", ""), ("train/", "test/")])
def test_classes_that_differ_in_case_are_refused(tmp_path, where):
    """Two folders here, "Cat" and "cat", and one elsewhere."""
    for folder, name in zip(where, ("Cat", "cat"), strict=True):
        class_folders(tmp_path / folder, classes=(name, "dog"))
    with pytest.raises(UserError, match=r"classes 'Cat' \(.*Cat\) and 'cat' \(.*cat\) differ in"):
        data.open_source(f"folder:{tmp_path}")


def test_names_that_are_not_utf8(tmp_path):
    """Bytes are hashed as they are, and shown so that they can be printed and excluded."""
    root = os.fsencode(tmp_path) + b"/s\xe9t"
    for name in (b"caf\xe9", b"th\xff"):
        os.makedirs(root + b"/" + name)
        for i in (b"0", b"\xfc"):
            PIL.Image.new("RGB", (9, 9)).save(os.fsdecode(root + b"/" + name + b"/" + i + b".png"))
    spec = f"folder:{os.fsdecode(root)}"
    source = data.open_source(spec)
    assert source.class_names == ("caf\\xe9", "th\\xff")
    for text in (source.spec, repr(source), *source.class_names, *source.names()):
        text.encode()  # printable
    for i in range(4):
        assert data.decode(source[i]["image"], source[i]["name"]).shape == (9, 9, 3)
    assert data.open_source(data.default_splits(spec)[0]).class_names == source.class_names
    exclude = tmp_path / "ids.txt"
    exclude.write_text(source.names()[1] + "\n")
    assert len(data.open_source(spec, exclude=str(exclude))) == 3
    exclude.write_bytes(b"th\xff/\xfc.png\n")  # as `find` lists it
    assert len(data.open_source(spec, exclude=str(exclude))) == 3
    os.remove(root + b"/th\xff/\xfc.png")
    with pytest.raises(UserError, match="cannot be read") as error:
        [source[i] for i in range(4)]
    str(error.value).encode()


@pytest.mark.parametrize(
    "name", ["a b", "-rf", "x#1", "what?", "a?b=c", "50%", "k:v", "x=1", "[a]", "b[", "a,b", "c]"]
)
def test_any_name_of_a_folder(tmp_path, name):
    """An existing path is taken as it is written."""
    class_folders(tmp_path / name / "train", classes=(f"p{name}", "q"))
    class_folders(tmp_path / name / "test", classes=(f"p{name}", "q"), count=1)
    class_folders(tmp_path / "x", classes=("other", "still other"))  # what [ ] would have found
    spec = f"folder:{tmp_path}/{name}"
    assert set(names_of(spec)) == {f"p{name}", "q"}
    assert len(data.open_source(f"{spec}[test]")) == 2
    train, test = data.default_splits(spec)
    assert len(data.open_source(train)) == 4 and len(data.open_source(test)) == 2
    assert data.evaluation_spec(spec) == f"{spec}[test]"
    assert len(data.open_source(f"{spec}/[train]")) == 4


def test_home_links_and_slashes(tmp_path, monkeypatch):
    class_folders(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.setenv("HOME", str(tmp_path))
    wanted = data.open_source(f"folder:{tmp_path}/real").fingerprint
    monkeypatch.chdir(tmp_path)
    for path in ("~/real", "~/link/", f"{tmp_path}//real/.", "real", "./link"):
        assert data.open_source(f"folder:{path}").fingerprint == wanted


# --- images and what is none ----------------------------------------------------------------------


def test_every_image_that_is_read_counts(tmp_path):
    """Whatever the installed Pillow writes, and files without a suffix."""
    suffixes = [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".pgm", ".jp2"]
    suffixes += [".avif", ".pnm", ".tga", ".ico", ".pcx", ".dds", ".qoi", ".jfif", ".apng"]
    assert {suffix.lower() for suffix in suffixes} <= image_suffixes()
    assert not {".pdf", ".eps", ".h5", ".mpg", ".txt", ".csv", ".mp4"} & image_suffixes()
    for name in ("a", "b"):
        for i, suffix in enumerate(suffixes):
            save(tmp_path / name / f"{i}{suffix}", size=(16, 16))
        for i, suffix in enumerate(("", ".jpg~", ".1")):
            (tmp_path / name / f"x{i}{suffix}").write_bytes(
                (tmp_path / name / "2.png").read_bytes()
            )
    source = data.open_source(f"folder:{tmp_path}")
    assert len(source) == 2 * (len(suffixes) + 3) and source.notes == ()
    for i in range(len(source)):
        record = source[i]
        pixels = data.decode(record["image"], record["name"]).astype(int)
        assert pixels.shape == (16, 16, 3)
        assert np.abs(pixels[8, 8] - (200, 30, 30)).max() < 9, record["name"]


def test_skipped_files_are_counted_and_noted(tmp_path):
    """Once, by kind; HEIC with the package that reads it."""
    class_folders(tmp_path, count=1)
    for name in ("1.heic", "2.HEIC", "notes.txt", ".DS_Store", "._0.png", "Thumbs.db", "clip.mp4"):
        (tmp_path / "red" / name).write_bytes(b"no image")
    (tmp_path / "red" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "red" / "pipe.png")
    (tmp_path / "red" / "up").symlink_to(tmp_path / "red")
    (tmp_path / "red" / "further").symlink_to(tmp_path)  # whose other classes are not red
    (tmp_path / "__MACOSX" / "red").mkdir(parents=True)
    save(tmp_path / "loose.png")
    (tmp_path / "README.md").write_text("x")
    source = data.open_source(f"folder:{tmp_path}")
    assert len(source) == 3
    first, note = source.notes
    assert first == "skipped: 1 images outside of the class folders"
    assert note.startswith("skipped, not readable as images: 2 .heic (pip install pillow")
    for part in ("1 .txt", "1 .DS_Store", "1 ._*", "1 .db", "1 .mp4", "1 broken links",
                 "1 special files", "2 links to a parent folder", "1 __MACOSX/",
                 "1 .md"):  # fmt: skip
        assert part in note
    for part in (f"folder:{tmp_path}[train[:2]]", f"folder:{tmp_path}[train[:1]+train[2:]]"):
        assert data.open_source(part).notes == (first, note)


def test_a_fifo_is_no_table(tmp_path):
    class_folders(tmp_path, count=1)
    os.mkfifo(tmp_path / "train.csv")
    notes = data.open_source(f"folder:{tmp_path}").notes
    assert "train.csv is not a regular file" in notes[0]


def test_a_class_of_unreadable_images_names_the_package(tmp_path):
    class_folders(tmp_path, count=1)
    (tmp_path / "phone").mkdir()
    (tmp_path / "phone" / "1.heic").write_bytes(b"....ftypheic")
    with pytest.raises(UserError, match=r"phone has no images \(.*1 \.heic \(pip install pillow-"):
        data.open_source(f"folder:{tmp_path}")
    with pytest.raises(UserError, match=r"1.heic cannot be decoded .pip install pillow-heif"):
        data.decode(b"....ftypheic", "phone/1.heic")


def test_predict_finds_the_same_images(tmp_path, capsys):
    """`predict FOLDER`."""
    from vit_jax.evaluation.predict import find_images

    for name in ("b.avif", "a.jp2", "c/d.bmp", ".hidden.png"):
        save(tmp_path / name, size=(16, 16))
    (tmp_path / "e.heic").write_bytes(b"x")
    (tmp_path / "f.txt").write_bytes(b"x")
    said = []
    assert find_images([str(tmp_path)], said.append) == [
        tmp_path / name for name in ("a.jp2", "b.avif", "c/d.bmp")
    ]
    assert "1 .heic (pip install pillow-heif" in said[0] and "1 .txt" in said[0] and len(said) == 1
    find_images([str(tmp_path)])
    out, err = capsys.readouterr()
    assert out == "" and "1 .heic" in err
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "e.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"g has no images \(.*pillow-heif"):
        find_images([str(tmp_path / "g")])
    with pytest.raises(UserError, match="name of an image is empty"):
        find_images([""])  # not the working directory


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    class_folders(tmp_path)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot be read .Permission denied"):
        data.open_source(f"folder:{tmp_path}")
    from vit_jax.evaluation.predict import find_images

    with pytest.raises(UserError, match=r"cannot be read .Permission denied"):
        find_images([str(tmp_path)])
