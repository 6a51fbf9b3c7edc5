"""Specs, splits and the four kinds of data sets, on real files; one clear line for bad input."""

import pickle
import random
import sys
import types

import numpy as np
import PIL.Image
import pytest
import tfds_directory

from vit_jax import data
from vit_jax.data.source import TableSource, Without, digest, shared_records
from vit_jax.data.specs import parse_spec
from vit_jax.data.splits import slice_split
from vit_jax.errors import UserError


def save(path, colour=(200, 30, 30), size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    PIL.Image.new("RGB", size, colour).save(path)


@pytest.fixture
def folder(tmp_path):
    """train/val folders; the class "c" is only in train."""
    for split, counts in {"train": (4, 3, 2), "val": (2, 2, 0)}.items():
        for name, count in zip("abc", counts, strict=True):
            for i in range(count):
                suffix = (".jpg", ".PNG", ".webp", ".bmp")[i % 4]
                save(tmp_path / "set" / split / name / f"{i}{suffix}")
    return tmp_path / "set"


# --- specs and splits ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, parts",
    [
        ("digits", ("digits", "", "")),
        ("digits[test]", ("digits", "", "test")),
        ("folder:/a/b", ("folder", "/a/b", "")),
        ("folder:/a[train[:9%]+test]", ("folder", "/a", "train[:9%]+test")),
        ("tfds:cifar10:3.0.2[train]", ("tfds", "cifar10:3.0.2", "train")),
        ("hf:org/name[validation]", ("hf", "org/name", "validation")),
    ],
)
def test_parse_spec(spec, parts):
    assert parse_spec(spec) == parts


@pytest.mark.parametrize(
    "spec, message",
    [
        ("digit", "Did you mean 'digits'"),
        ("folders:/a", "Did you mean 'folder'"),
        ("folder:", "has nothing after folder:"),
        ("digits[train", "is not KIND:NAME"),
        ("digits[tset]", "Did you mean 'test'"),
        ("digits[train[1:2:3]]", r"is not NAME or NAME\[a:b\]"),
        ("digits[train[10:10]]", "has no examples"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message) as error:
        data.open_source(spec)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "split, ranges",
    [
        ("train", [("train", range(10))]),
        ("train[:90%]", [("train", range(9))]),
        ("train[90%:]", [("train", range(9, 10))]),
        ("train[2:5]", [("train", range(2, 5))]),
        ("train[-3:]", [("train", range(7, 10))]),
        ("train[:-3]", [("train", range(7))]),
        ("train[-20%:]", [("train", range(8, 10))]),
        ("train[:12.5%]", [("train", range(1))]),
        ("train[2:50%]", [("train", range(5))]),  # 2 is a percent, too
        ("all", [("train", range(10)), ("test", range(4))]),
        ("train[8:]+test[:1]", [("train", range(8, 10)), ("test", range(1))]),
    ],
)
def test_slices_are_those_of_tfds(split, ranges):
    assert slice_split(split, {"train": 10, "test": 4}, "x") == ranges


@pytest.mark.parametrize(
    "split", ["train[:200]", "train[-11:]", "train[:101%]", "train[1.5:]", "train[:]", "train[3]"]
)
def test_slices_that_tfds_refuses(split):
    with pytest.raises(UserError, match="train"):
        slice_split(split, {"train": 10}, "x")


def test_slices_equal_those_of_tfds_itself():
    """Rounding, mixed units and what is out of range, on 100,000 sizes and expressions."""
    from tensorflow_datasets.core.splits import ReadInstruction

    rng = random.Random(0)

    def bound(size):
        kind = rng.random()
        if kind < 0.1:
            return ""
        if kind < 0.6:
            return f"{rng.randint(-101, 101)}%"
        if kind < 0.7:
            return f"{rng.uniform(-100, 100):.2f}%"
        return str(rng.randint(-size - 2, size + 2))

    refused = 0
    for _ in range(100_000):
        size = rng.randint(1, rng.choice((10, 100, 5000)))
        split = f"train[{bound(size)}:{bound(size)}]"
        try:
            (wanted,) = ReadInstruction.from_spec(split).to_absolute(
                {"train": types.SimpleNamespace(num_examples=size)}
            )
        except ValueError:
            refused += 1
            with pytest.raises(UserError):
                slice_split(split, {"train": size}, "x")
            continue
        low = wanted.from_ or 0
        high = size if wanted.to is None else wanted.to
        ((_, found),) = slice_split(split, {"train": size}, "x")
        assert list(found) == list(range(low, high)), (size, split)
    assert 1000 < refused < 50_000


def test_a_union_has_the_records_of_its_parts_in_order():
    source = data.open_source("digits[test[:3]+train[5:7]]")
    test, train = data.open_source("digits[test]"), data.open_source("digits[train]")
    names = [source[i]["name"] for i in range(len(source))]
    assert names == [test[i]["name"] for i in range(3)] + [train[i]["name"] for i in (5, 6)]
    assert source.num_classes == 10 and not source.notes


@pytest.mark.parametrize(
    "split, again",
    [
        ("train+train", 1437),
        ("train[:60]+test+train[:50]", 50),
        ("train[10:20]+train[:15]+train[12:30]", 13),
        ("all+test[:3]", 3),
        ("train[:10]+train[10:]+test", 0),
    ],
)
def test_records_that_are_named_twice_are_said(split, again):
    """They are kept, as by TFDS."""
    source = data.open_source(f"digits[{split}]")
    assert len(source.names()) - len(set(source.names())) == again
    wanted = (f"digits[{split}] names {again:,} records again, and they count again",)
    assert source.notes == (wanted if again else ())


# --- digits -------------------------------------------------------------------------------------


def test_digits_are_split_without_overlap():
    train, test = data.open_source("digits"), data.open_source("digits[test]")
    assert (len(train), len(test), train.num_classes) == (1437, 360, 10)
    assert not set(train.names()) & set(test.names())
    record = test[0]
    assert record["image"].shape == (8, 8, 3) and record["image"].dtype == np.uint8
    assert record["image"].max() == 239  # 15 of 16 levels of the first digit, a zero
    assert record["label"] == 0
    assert {train[i]["label"] for i in range(50)} == set(range(10))


# --- folders ------------------------------------------------------------------------------------


def test_classes_are_those_of_all_splits(folder):
    train = data.open_source(f"folder:{folder}[train]")
    val = data.open_source(f"folder:{folder}[val]")
    assert train.class_names == val.class_names == ("a", "b", "c")
    assert (len(train), len(val)) == (9, 4)
    assert {val[i]["label"] for i in range(4)} == {0, 1}
    assert data.default_splits(f"folder:{folder}") == (
        f"folder:{folder}[train]",
        f"folder:{folder}[validation]",
    )


def test_records_are_files_with_their_label(folder):
    source = data.open_source(f"folder:{folder}[train]")
    for i in range(len(source)):
        record = source[i]
        split, name, _ = record["name"].split("/")
        assert split == "train" and source.class_names[record["label"]] == name
        assert data.decode(record["image"], record["name"]).shape == (10, 12, 3)
    assert sorted(source.names()) == sorted(source[i]["name"] for i in range(9))


def test_without_split_folders_a_tenth_is_held_out(tmp_path):
    for name in "xy":
        for i in range(20):
            save(tmp_path / name / f"{i}.png")
    train, test = data.default_splits(f"folder:{tmp_path}")
    assert (train, test) == (f"folder:{tmp_path}[train[:90%]]", f"folder:{tmp_path}[train[90%:]]")
    train, test = data.open_source(train), data.open_source(test)
    names = [set(s.names()) for s in (train, test)]
    assert (len(train), len(test)) == (36, 4) and not names[0] & names[1]
    assert {test[i]["label"] for i in range(4)} == {0, 1}  # shuffled, not the last class only


def test_a_fingerprint_follows_the_files(folder):
    before = data.open_source(f"folder:{folder}").fingerprint
    assert data.open_source(f"folder:{folder}").fingerprint == before
    save(folder / "train" / "a" / "new.png")
    assert data.open_source(f"folder:{folder}").fingerprint != before


def test_csv_with_a_split_column(tmp_path):
    for i in range(4):
        save(tmp_path / "images" / f"{i}.png")
    rows = "".join(
        f"images/{i}.png,{name},{split}\n"
        for i, (name, split) in enumerate(
            [("dog", "train"), ("cat", "train"), ("cat", "val"), ("dog", "test")]
        )
    )
    (tmp_path / "list.csv").write_text("path,label,split\n" + rows)
    source = data.open_source(f"folder:{tmp_path}/list.csv")
    assert source.class_names == ("cat", "dog") and len(source) == 2
    assert {source[i]["name"]: source[i]["label"] for i in range(2)} == {
        "images/0.png": 1,
        "images/1.png": 0,
    }
    assert len(data.open_source(f"folder:{tmp_path}/list.csv[validation]")) == 1


def test_csv_per_split_with_numbers(tmp_path):
    save(tmp_path / "0.png")
    save(tmp_path / "1.png")
    (tmp_path / "train.csv").write_text("file,class\n0.png,2\n1.png,0\n")
    (tmp_path / "test.csv").write_text("file,class\n0.png,1\n1.png,2\n")
    source = data.open_source(f"folder:{tmp_path}[test]")
    assert source.class_names == ("0", "1", "2")
    assert {source[i]["name"]: source[i]["label"] for i in range(2)} == {"0.png": 1, "1.png": 2}


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\n", "has no rows"),
        ("image,kind\n0.png,a\n", "needs a column label or class; it has image, kind"),
        ("path,label\n0.png,a\ngone.png,a\n", "line 3: there is no file .*gone.png"),
        ("path,label\n0.png,\n", "line 2: the label is empty"),
        ("path,label\n0.png,-1\n", "line 2: the label -1 is negative"),
    ],
)
def test_bad_csv(tmp_path, text, message):
    save(tmp_path / "0.png")
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        data.open_source(f"folder:{tmp_path}")


def test_bad_folders(folder):
    (folder / "train" / "empty").mkdir()
    with pytest.raises(UserError, match=r"class folder .*train/empty has no images"):
        data.open_source(f"folder:{folder}")
    with pytest.raises(UserError, match=r"There is no folder .*sett\. Did you mean 'set'\?"):
        data.open_source(f"folder:{folder}t")
    (folder / "nothing").mkdir()
    with pytest.raises(UserError, match="has no class folders"):
        data.open_source(f"folder:{folder}/nothing")


def test_a_file_that_vanished_is_named(folder):
    source = data.open_source(f"folder:{folder}")
    gone = source[0]["name"]
    (folder / gone).unlink()
    with pytest.raises(UserError, match=f"{gone} cannot be read"):
        source[0]


def test_exclude(folder, tmp_path, monkeypatch):
    names = data.open_source(f"folder:{folder}").names()
    (tmp_path / "ids.txt").write_text("\n".join([*names[:2], "not there"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    for exclude in (str(tmp_path / "ids.txt"), "~/ids.txt"):
        assert data.open_source(f"folder:{folder}", exclude=exclude).names() == names[2:]
    (tmp_path / "none.txt").write_text("zzz\n")
    with pytest.raises(UserError, match="matches no record"):
        data.open_source(f"folder:{folder}", exclude=str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match="Cannot read"):
        data.open_source(f"folder:{folder}", exclude=str(tmp_path / "missing.txt"))


@pytest.mark.parametrize("removed", [[0], [9], [0, 1, 2], [2, 3, 7], [0, 4, 9], list(range(9))])
def test_without_keeps_the_order_of_the_rest(removed):
    source = data.ArraySource(np.zeros((10, 2, 2, 3), np.uint8), range(10))
    left = Without(source, np.array(removed, np.int64))
    expected = [i for i in range(10) if i not in removed]
    assert [left[i]["label"] for i in range(len(left))] == expected
    assert left.names() == [f"arrays/{i}" for i in expected]
    assert pickle.loads(pickle.dumps(left)).fingerprint == left.fingerprint != source.fingerprint


@pytest.mark.parametrize(
    "train, evaluation, shared",
    [
        ("digits[train]", "digits[test]", 0),
        ("digits[train[:90%]]", "digits[train[90%:]]", 0),
        ("digits[train[:100]]", "digits[train[90:120]]", 10),
        ("digits[train+test]", "digits[test[:7]]", 7),
        ("digits[train[5:]]", "digits[all]", 1432),
    ],
)
def test_records_of_both_parts_are_counted(train, evaluation, shared):
    """By where they are stored, for slices and unions."""
    opened = data.open_source(train), data.open_source(evaluation)
    assert shared_records(*opened) == shared


def test_an_image_of_two_tables_is_shared_but_not_one_that_is_excluded(folder, tmp_path):
    whole = data.open_source(f"folder:{folder}")
    some = whole.names()[:3]
    (tmp_path / "ids.txt").write_text("\n".join(some))
    left = data.open_source(f"folder:{folder}", exclude=str(tmp_path / "ids.txt"))
    assert shared_records(left, whole) == len(whole) - 3
    rows = "".join(f"{name},x{i % 2},{split}\n" for i, name in enumerate(some) for split in "ab")
    (folder / "two.csv").write_text(f"path,label,split\n{rows}")
    table = f"folder:{folder}/two.csv"
    assert shared_records(data.open_source(f"{table}[a]"), data.open_source(f"{table}[b]")) == 3
    assert shared_records(data.open_source(f"{table}[a]"), whole) == 3


def test_excluded_records_are_counted(folder, tmp_path):
    """All of it is refused, and names that are not there are said."""
    source = data.open_source(f"folder:{folder}")
    file = tmp_path / "ids.txt"
    file.write_text("\n".join(source.names()))
    with pytest.raises(UserError, match=f"removes all {len(source)} records"):
        data.open_source(f"folder:{folder}", exclude=str(file))
    file.write_text("\n".join([*source.names()[:2], "nowhere.png", "cut of"]))
    left = data.open_source(f"folder:{folder}", exclude=str(file))
    assert (len(left.removed), left.missing) == (2, 2)


# --- TFDS ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    records = [(tfds_directory.png(np.full((8, 9, 3), i, np.uint8)), i % 3) for i in range(10)]
    splits = {"train": records, "test": records[:4]}
    tfds_directory.write(directory, "toy", splits, ["x", "y", "z"])
    tfds_directory.write(directory, "old", splits, ["x", "y", "z"], file_format="tfrecord")
    return str(directory)


def test_tfds(tfds_dir):
    source = data.open_source("tfds:toy[train[:50%]+test]", data_dir=tfds_dir)
    assert source.class_names == ("x", "y", "z") and len(source) == 9
    pixels = [data.decode(source[i]["image"], "a")[0, 0, 0] for i in range(9)]
    labels = [source[i]["label"] for i in range(9)]
    assert [p % 3 for p in pixels] == labels
    assert isinstance(source[0]["image"], bytes)  # decoded in the pipeline, not by TFDS
    assert not source.notes
    twice = data.open_source("tfds:toy[train+test+train[:2]]", data_dir=tfds_dir)
    assert len(twice.notes) == 1 and "names 2 records again" in twice.notes[0]
    other = data.open_source("tfds:toy[train[40%:80%]]", data_dir=tfds_dir)
    assert shared_records(source, other) == 1 and shared_records(other, source) == 1
    copy = pickle.loads(pickle.dumps(source))
    assert copy[3]["image"] == source[3]["image"] and copy.fingerprint == source.fingerprint
    assert "tensorflow" not in sys.modules


def test_exclude_of_a_table_reads_numbers_instead_of_making_names(tfds_dir, tmp_path, monkeypatch):
    spec = "tfds:toy[train]"
    file = tmp_path / "ids.txt"
    file.write_text("".join(f"{spec}/{i}\n" for i in (3, 0, 9, 10, "03", "-1", "x")))
    monkeypatch.setattr(TableSource, "names", None)  # 303M names would fill the memory
    left = data.open_source(spec, data_dir=tfds_dir, exclude=str(file))
    assert [left[i]["name"] for i in range(len(left))] == [
        f"{spec}/{i}" for i in (1, 2, *range(4, 9))
    ]
    file.write_text("tfds:toy[test]/1")
    with pytest.raises(UserError, match="matches no record"):
        data.open_source(spec, data_dir=tfds_dir, exclude=str(file))


def test_tfds_splits_without_labels_are_not_chosen(tmp_path):
    """-1, as i_naturalist has it."""
    png = tfds_directory.png(np.zeros((4, 4, 3), np.uint8))
    splits = {"train": [(png, 0), (png, 1)] * 3, "validation": [(png, 1)], "test": [(png, -1)] * 3}
    tfds_directory.write(tmp_path, "toy", splits, ["x", "y"])
    assert data.default_splits("tfds:toy", data_dir=str(tmp_path)) == (
        "tfds:toy[train]",
        "tfds:toy[validation]",
    )
    with pytest.raises(UserError, match=r"record tfds:toy\[test\]/0 has no label"):
        data.open_source("tfds:toy[test]", data_dir=str(tmp_path), labelled=True)


def test_tfds_columns_are_named(tfds_dir):
    """As of every kind of data."""
    named = data.open_source("tfds:toy?image=image&label=label[train]", data_dir=tfds_dir)
    plain = data.open_source("tfds:toy[train]", data_dir=tfds_dir)
    assert named.class_names == plain.class_names and shared_records(named, plain) == 10
    with pytest.raises(UserError, match=r"has no class label 'species'.*tfds:toy\?label=COLUMN"):
        data.open_source("tfds:toy?label=species", data_dir=tfds_dir)
    with pytest.raises(UserError, match=r"has no image 'photo'.*tfds:toy\?image=COLUMN"):
        data.open_source("tfds:toy?image=photo", data_dir=tfds_dir)


def test_tfds_default_splits(tfds_dir):
    assert data.default_splits("tfds:toy", data_dir=tfds_dir) == (
        "tfds:toy[train]",
        "tfds:toy[test]",
    )


@pytest.mark.parametrize(
    "spec, message",
    [
        ("tfds:ty", "no prepared TFDS data set 'ty' in .*; run `vit-jax prepare tfds:ty`"),
        ("tfds:toy[tets]", "there is no split 'tets'; there are train, test"),
        ("tfds:old", "stored as TFRecord, .* run `vit-jax prepare tfds:old` once"),
    ],
)
def test_bad_tfds(tfds_dir, spec, message):
    with pytest.raises(UserError, match=message) as error:
        data.open_source(spec, data_dir=tfds_dir)
    assert "\n" not in str(error.value)


def test_a_truncated_tfds_shard_is_noticed(tmp_path):
    records = [(tfds_directory.png(np.zeros((4, 4, 3), np.uint8)), 0)] * 6
    where = tfds_directory.write(tmp_path, "toy", {"train": records}, ["x"])
    shards = sorted(where.glob("*array_record*"))
    tfds_directory.write(tmp_path / "other", "toy", {"train": records[:2]}, ["x"])
    smaller = sorted((tmp_path / "other").rglob("*array_record*"))
    shards[0].write_bytes(smaller[0].read_bytes())
    with pytest.raises(UserError, match=r"00000-of-00002 should have 3 examples and has 1"):
        data.open_source("tfds:toy", data_dir=str(tmp_path))
    shards[0].write_bytes(shards[1].read_bytes()[:50])
    with pytest.raises(UserError, match=r"00000-of-00002 cannot be read"):
        data.open_source("tfds:toy", data_dir=str(tmp_path))


# --- Hugging Face -------------------------------------------------------------------------------


def test_hugging_face_directory(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = [PIL.Image.new("RGB", (9, 8), (i, i, i)) for i in range(6)]
    features = datasets.Features(
        {"img": datasets.Image(), "fine": datasets.ClassLabel(names=["p", "q"])}
    )
    table = datasets.Dataset.from_dict(
        {"img": images, "fine": [i % 2 for i in range(6)]}, features=features
    )
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(
        str(tmp_path / "set")
    )
    spec = f"hf:{tmp_path}/set"
    source = data.open_source(f"{spec}[train]")
    assert source.class_names == ("p", "q") and len(source) == 6
    record = source[3]
    assert record["label"] == 1
    np.testing.assert_array_equal(data.decode(record["image"], "a"), np.full((8, 9, 3), 3))
    assert data.default_splits(spec) == (f"{spec}[train]", f"{spec}[test]")


def test_hugging_face_without_labels(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(
        str(tmp_path / "set")
    )
    with pytest.raises(UserError, match=r"needs an image column .* it has text \(Value\)"):
        data.open_source(f"hf:{tmp_path}/set")


def test_a_fingerprint_tells_where_one_part_ends():
    """The same bytes in other parts are other data: labels that are taken for pixels."""
    assert digest(b"ab", b"c") != digest(b"a", b"bc") != digest(b"abc")
    assert digest(b"ab", b"c") == digest(b"ab", b"c")
