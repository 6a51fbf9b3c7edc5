"""Which part of a spec is a path, an option or a split, and which splits are used for what."""

import numpy as np
import pytest
from image_folders import class_folders, save

from vit_jax import data
from vit_jax.data import splits
from vit_jax.data.specs import parse_name, parse_spec, split_specs
from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets


@pytest.mark.parametrize(
    "spec, parts",
    [
        ("folder:/a[b][train]", ("folder", "/a[b]", "train")),
        ("folder:/a[b", ("folder", "/a[b", "")),
        ("folder:/a]b[train[:5]]", ("folder", "/a]b", "train[:5]")),
        ("hf:o/n?label=x[train+test[:9%]]", ("hf", "o/n?label=x", "train+test[:9%]")),
        ("digits?match=number[test]", ("digits", "?match=number", "test")),
        ("folder:/a:b", ("folder", "/a:b", "")),
    ],
)
def test_the_split_is_the_last_bracket(spec, parts):
    assert parse_spec(spec) == parts


def test_an_existing_path_wins(tmp_path):
    (tmp_path / "x[train]").mkdir()
    assert parse_spec(f"folder:{tmp_path}/x[train]") == ("folder", f"{tmp_path}/x[train]", "")
    (tmp_path / "y?label=z").mkdir()
    assert parse_name("folder", f"{tmp_path}/y?label=z") == (f"{tmp_path}/y?label=z", {})
    assert parse_name("folder", f"{tmp_path}/n?label=z") == (f"{tmp_path}/n", {"label": "z"})
    with pytest.raises(UserError, match=f"Did you mean 'folder:{tmp_path}'"):
        parse_spec(str(tmp_path))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("folder:/a?lable=b", "lable=b is not an option; there are image=... and label=..."),
        ("folder:/a?label=b&label=c", "label=c is not an option"),
        ("folder:/a?label=", "label= is not an option"),
        ("digits?label=x", r"label=x is not an option; there are match=..., each once"),
        ("digits?match=name", "match=name must be match=number"),
        ("vtab:svhn?image=a", "image=a is not an option"),
        ("digits:/data/digits", "no parts to name, .* images are folder:/data/digits"),
        ("tfds:x[train", "is not KIND:NAME"),
        ("digits[]", "names no split; leave the brackets out"),
        ("tfds[train]", "is not KIND:NAME|unknown kind"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        data.open_source(spec)


@pytest.mark.parametrize(
    "text, specs",
    [
        ("digits,folder:/a", ("digits", "folder:/a")),
        ("folder:/a, digits[test]", ("folder:/a", "digits[test]")),
        (
            "folder:/a,b[train],hf:x?label=a,tfds:y",
            ("folder:/a,b[train]", "hf:x?label=a", "tfds:y"),
        ),
        ("folder:/a,digits2/x", ("folder:/a,digits2/x",)),
        ("digits?match=number,digits", ("digits?match=number", "digits")),
    ],
)
def test_a_list_of_specs(text, specs):
    assert split_specs(text) == specs


def test_classes_by_number_on_request():
    """Names that mean nothing."""
    source = data.open_source("digits?match=number[test]")
    assert source.class_names == tuple(map(str, range(10)))
    assert source.fingerprint == data.open_source("digits[test]").fingerprint


# --- which split is used for what ---------------------------------------------------------------


def test_validation_is_watched_and_test_is_for_the_end(tmp_path):
    for name in ("train", "val", "test"):
        class_folders(tmp_path / name)
    base = f"folder:{tmp_path}"
    watched = data.choose_splits(base, watch=True)
    assert watched[:2] == (f"{base}[train]", f"{base}[validation]")
    assert watched.notes == [
        "training is evaluated on validation; test is for the end: vit-jax evaluate "
        f"--data='{base}[test]'"
    ]
    assert data.default_splits(base) == (f"{base}[train]", f"{base}[test]")
    assert data.evaluation_spec(base) == f"{base}[test]"
    assert data.choose_splits("digits", watch=True)[:2] == ("digits[train]", "digits[test]")
    for spec, chosen in ((base, f"{base}[validation]"), (f"{base}[test]", f"{base}[test]")):
        found = DataSets(("digits[test]",)).validation(
            data.open_source("digits"), spec, "threshold"
        )
        assert found.spec == chosen  # a temperature or threshold is not chosen on training images


def test_without_a_training_split(tmp_path):
    rows = "0.png,a,x\n1.png,b,x\n"
    for i in range(2):
        save(tmp_path / f"{i}.png")
    (tmp_path / "t.csv").write_text("path,label,split\n" + rows.replace("x", "test"))
    assert data.evaluation_spec(f"folder:{tmp_path}") == f"folder:{tmp_path}[test]"
    (tmp_path / "t.csv").write_text("path,label,split\n0.png,a,val\n1.png,b,test\n")
    assert data.evaluation_spec(f"folder:{tmp_path}") == f"folder:{tmp_path}[test]"
    assert data.evaluation_spec(f"folder:{tmp_path}", watch=True).endswith("[validation]")
    with pytest.raises(UserError, match="has no split train; it has validation, test: choose"):
        data.default_splits(f"folder:{tmp_path}")


# --- the tenth that is held out -----------------------------------------------------------------


def counts(labels, rows):
    return np.bincount(labels[rows], minlength=labels.max() + 1)


@pytest.mark.parametrize("sizes", [[30, 2, 2, 2], [3] * 100, [1] * 50 + [2] * 50, [100, 7, 1]])
def test_a_tenth_of_every_class(sizes):
    """Every class keeps an image, and gives its share, rounded."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = splits.stratified_tenth(labels)
    held = counts(labels, rows)
    total = np.array(sizes)
    assert (held < total).all() and len(set(rows)) == len(rows)
    assert (held >= np.where(total > 1, total // 10, 0)).all() and (held <= total // 10 + 1).all()
    assert len(rows) == round(len(labels) / 10)
    np.testing.assert_array_equal(rows, splits.stratified_tenth(labels))


def test_the_held_out_tenth_is_stratified_for_small_classes(tmp_path):
    """Classes of two images would be without a training image."""
    class_folders(tmp_path, classes=[f"c{i:03}" for i in range(100)], count=2)
    base = f"folder:{tmp_path}"
    train, held_out = data.default_splits(base)
    assert (train, held_out) == (f"{base}[train-kept]", f"{base}[train-held-out]")
    kept, tenth = data.open_source(train), data.open_source(held_out)
    assert (len(kept), len(tenth)) == (180, 20)
    assert not set(kept.names()) & set(tenth.names())
    assert set(kept.labels) == set(range(100))
    assert data.open_source(held_out).fingerprint == tenth.fingerprint


def test_of_four_images_one_is_held_out(tmp_path):
    class_folders(tmp_path, classes=["a", "b"], count=2)
    train, held_out = map(data.open_source, data.default_splits(f"folder:{tmp_path}"))
    assert (len(train), len(held_out)) == (3, 1) and set(train.labels) == {0, 1}


def test_classes_of_one_image_cannot_be_stratified(tmp_path):
    """The last tenth, of which the plan says that it cannot be right."""
    class_folders(tmp_path, classes=[f"c{i:03}" for i in range(50)], count=1)
    base = f"folder:{tmp_path}"
    assert data.default_splits(base) == (f"{base}[train[:90%]]", f"{base}[train[90%:]]")


def test_large_classes_keep_the_plain_split(tmp_path):
    class_folders(tmp_path, count=40)
    base = f"folder:{tmp_path}"
    assert data.default_splits(base) == (f"{base}[train[:90%]]", f"{base}[train[90%:]]")
