"""Hugging Face data sets in every way that the library saves them, and every kind of label."""

import io

import numpy as np
import PIL.Image
import pytest
from image_folders import class_folders

from vit_jax import data
from vit_jax.errors import UserError

datasets = pytest.importorskip("datasets")
Image, ClassLabel, Value = datasets.Image, datasets.ClassLabel, datasets.Value


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def picture(i):
    return PIL.Image.new("RGB", (9, 8), (i, i, i))


def encoded(i):
    file = io.BytesIO()
    picture(i).save(file, "png")
    return file.getvalue()


def rows(columns, **features):
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def labelled(labels, feature, column="label", **more):
    images = {"image": [picture(i) for i in range(len(labels))], column: list(labels)}
    extra = {key: [0] * len(labels) for key in more}
    return rows(images | extra, image=Image(), **{column: feature}, **more)


def saved(tmp_path, **splits):
    datasets.DatasetDict(splits).save_to_disk(str(tmp_path / "set"))
    return f"hf:{tmp_path}/set"


def classes_by_image(source):
    """{grey value of the image: name of its class}."""
    found = {}
    for i in range(len(source)):
        record = source[i]
        grey = int(data.decode(record["image"], record["name"])[0, 0, 0])
        found[grey] = source.class_names[record["label"]] if record["label"] >= 0 else None
    return found


# --- ways of saving -----------------------------------------------------------------------------


def test_a_single_table(tmp_path):
    """save_to_disk of one Dataset; its split keeps its name where it has one."""
    table = labelled([0, 1, 0], ClassLabel(names=["p", "q"]))
    table.save_to_disk(str(tmp_path / "one"))
    spec = f"hf:{tmp_path}/one"
    assert classes_by_image(data.open_source(spec)) == {0: "p", 1: "q", 2: "p"}
    parts = (f"{spec}[train-kept]", f"{spec}[train-held-out]")  # train[90%:] has none of three
    assert data.default_splits(spec) == parts
    named = rows(table.to_dict() | {"image": [picture(i) for i in range(3)]}, **table.features)
    named._split = datasets.NamedSplit("test")
    named.save_to_disk(str(tmp_path / "named"))
    assert data.evaluation_spec(f"hf:{tmp_path}/named") == f"hf:{tmp_path}/named[test]"


def test_directories_and_files_that_the_library_loads(tmp_path):
    """Image folders, parquet directories and files."""
    class_folders(tmp_path / "images" / "train", classes=("p", "q"))
    class_folders(tmp_path / "images" / "test", classes=("p", "q"), count=1)
    spec = f"hf:{tmp_path}/images"
    assert data.open_source(f"{spec}[test]").class_names == ("p", "q")
    assert len(data.open_source(spec)) == 4
    table = labelled([0, 1, 0], ClassLabel(names=["p", "q"]))
    (tmp_path / "parquet").mkdir()
    table.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    table.select([1]).to_parquet(tmp_path / "parquet" / "test-00000.parquet")
    for spec in (f"hf:{tmp_path}/parquet", f"hf:{tmp_path}/parquet/train-00000.parquet"):
        assert classes_by_image(data.open_source(spec)) == {0: "p", 1: "q", 2: "p"}
    assert classes_by_image(data.open_source(f"hf:{tmp_path}/parquet[test]")) == {1: "q"}
    table.to_parquet(tmp_path / "p[x].parquet")
    table.select([1]).to_parquet(tmp_path / "px.parquet")  # what the library reads for it
    assert len(data.open_source(f"hf:{tmp_path}/p[x].parquet")) == 3
    (tmp_path / "images").rename(tmp_path / "images[x]")
    with pytest.raises(UserError, match=r"images\[x\] cannot be loaded .*; rename it, as \["):
        data.open_source(f"hf:{tmp_path}/images[x]")
    (tmp_path / "x.csv").write_text("a,b\n")
    with pytest.raises(UserError, match=r"x.csv cannot be loaded .*CSV is folder:"):
        data.open_source(f"hf:{tmp_path}/x.csv")


def test_the_reason_of_a_broken_file_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"label": 1}{')
    with pytest.raises(UserError, match=r"a\.jsonl cannot be loaded \((?!An error occurred)\w"):
        data.open_source(f"hf:{tmp_path}/a.jsonl")


def test_images_as_bytes_dicts_and_paths(tmp_path):
    """A parquet file that pandas wrote."""
    labels, names = [0, 1, 1], {0: "0", 1: "1", 2: "1"}
    raw = [encoded(i) for i in range(3)]
    for i, content in enumerate(raw):
        (tmp_path / f"{i}.png").write_bytes(content)
    dicts = [{"bytes": content, "path": None} for content in raw]
    struct = {"bytes": Value("binary"), "path": Value("string")}
    for values, feature in ((raw, Value("binary")), (dicts, struct)):
        table = rows({"jpg": values, "label": labels}, jpg=feature, label=Value("int64"))
        table.to_parquet(tmp_path / "t.parquet")
        spec = f"hf:{tmp_path}/t.parquet"
        assert classes_by_image(data.open_source(spec)) == names
        assert classes_by_image(data.open_source(f"{spec}?image=jpg&label=label")) == names
    paths = rows(
        {"file": [f"{i}.png" for i in range(3)], "label": labels},
        file=Value("string"),
        label=Value("int64"),
    )
    paths.to_parquet(tmp_path / "p.parquet")
    with pytest.raises(UserError, match="needs an image column"):
        data.open_source(f"hf:{tmp_path}/p.parquet")
    assert classes_by_image(data.open_source(f"hf:{tmp_path}/p.parquet?image=file")) == names


# --- columns ------------------------------------------------------------------------------------


def test_several_candidates_are_refused_and_listed(tmp_path):
    """coarse_label before fine_label."""
    coarse, fine = ClassLabel(names=["animal", "plant"]), ClassLabel(names=["cat", "dog", "oak"])
    table = rows(
        {"img": [picture(i) for i in range(3)], "coarse": [0, 0, 1], "fine": [0, 1, 2]},
        img=Image(), coarse=coarse, fine=fine,
    )  # fmt: skip
    spec = saved(tmp_path, train=table)
    with pytest.raises(UserError, match=r"could be the label: coarse, fine; it has img \(Image\)"):
        data.open_source(spec)
    assert classes_by_image(data.open_source(f"{spec}?label=fine")) == {
        0: "cat",
        1: "dog",
        2: "oak",
    }
    source = data.open_source(f"{spec}?image=img&label=coarse[train]")
    assert source.class_names == ("animal", "plant")
    assert source.notes == (f"{spec}?image=img&label=coarse: unused columns: fine",)
    assert source.fingerprint != data.open_source(f"{spec}?image=img&label=fine").fingerprint
    with pytest.raises(UserError, match=r"has no column 'fien'.*Did you mean 'fine'"):
        data.open_source(f"{spec}?label=fien")
    two = rows({"a": [picture(0)], "b": [picture(1)], "label": [0]},
               a=Image(), b=Image(), label=fine)  # fmt: skip
    two.to_parquet(tmp_path / "two.parquet")
    with pytest.raises(UserError, match="could be the image: a, b"):
        data.open_source(f"hf:{tmp_path}/two.parquet")


@pytest.mark.parametrize(
    "labels, feature, names",
    [
        ([0, 1, 2], Value("int64"), ["0", "1", "2"]),
        ([1, 0, 1], Value("uint8"), ["1", "0", "1"]),
        ([5, 1000, 5], Value("int32"), ["5", "1000", "5"]),
        ([0.0, 1.0, 0.0], Value("float32"), ["0", "1", "0"]),
        (["cat", "dog", "cat"], Value("string"), ["cat", "dog", "cat"]),
        (["007", "7", "abc"], Value("string"), ["007", "7", "abc"]),
        ([True, False, True], Value("bool"), ["True", "False", "True"]),
        ([[0], [1], [0]], datasets.Sequence(Value("int64")), ["0", "1", "0"]),
        ([[0], [1], [0]], datasets.Sequence(ClassLabel(names=["p", "q"])), ["p", "q", "p"]),
        ([2, 1, 0], ClassLabel(num_classes=4), ["2", "1", "0"]),
    ],
)
def test_every_kind_of_label(tmp_path, labels, feature, names):
    spec = saved(tmp_path, train=labelled(labels, feature))
    assert classes_by_image(data.open_source(spec)) == dict(enumerate(names))


@pytest.mark.parametrize(
    "labels, feature, message",
    [
        ([0.5, 1.0], Value("float32"), r"\[train\]/0: the label 0.5 is not a class"),
        ([[0], [0, 1]], datasets.Sequence(Value("int64")), r"\[train\]/1 has 2 labels \(0, 1\)"),
        (["a", "b", "a,b"], Value("string"), r"\[train\], row 2: the label 'a,b' lists several"),
        (
            ["Cat", "cat"],
            Value("string"),
            r"'Cat' \(.*row 0\) and 'cat' \(.*row 1\) differ in case",
        ),
        ([0, -7, 1], Value("int64"), r"\[train\], row 1: the label -7 is negative"),
        (["1", "1.0"], Value("string"), r"'1' \(.*row 0\) and '1.0' \(.*row 1\) are the same"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, labels, feature, message):
    spec = saved(tmp_path, train=labelled(labels, feature))
    with pytest.raises(UserError, match=message):
        data.open_source(spec)


@pytest.mark.parametrize("withheld", [-1, None])
@pytest.mark.parametrize("feature", [ClassLabel(names=["p", "q"]), Value("int64")])
def test_a_split_without_labels_is_not_chosen(tmp_path, withheld, feature):
    """As i_naturalist and imagenet-1k have it."""
    spec = saved(
        tmp_path,
        train=labelled([0, 1, 1], feature),
        validation=labelled([1, 0], feature),
        test=labelled([withheld] * 3, feature),
    )
    assert data.default_splits(spec) == (f"{spec}[train]", f"{spec}[validation]")
    assert "[test] is not used: its labels are withheld" in data.choose_splits(spec).notes[0]
    assert data.open_source(f"{spec}[test]")[0]["label"] == -1


def test_a_split_without_the_label_column_is_passed_over(tmp_path):
    table = labelled([0, 1, 0], ClassLabel(names=["p", "q"]))
    spec = saved(tmp_path, train=table, test=table.remove_columns("label"))
    source = data.open_source(spec)
    assert source.notes == (f"skipped {spec}[test]: it has no column label",)


# --- classes by name ----------------------------------------------------------------------------


def test_a_union_maps_the_classes_of_its_parts_by_name(tmp_path):
    """[train+test] whose names are in another order."""
    train = labelled([0, 1, 2], ClassLabel(names=["a", "b", "c"]))
    spec = saved(tmp_path, train=train, test=labelled([0, 1, 2], ClassLabel(names=["c", "a", "b"])))
    union = data.open_source(f"{spec}[train+test]")
    assert union.class_names == ("a", "b", "c")
    assert [union[i]["label"] for i in range(6)] == [0, 1, 2, 2, 0, 1]
    np.testing.assert_array_equal(union.labels, [0, 1, 2, 2, 0, 1])
    assert union.names() == [f"{spec}[{s}]/{i}" for s in ("train", "test") for i in range(3)]


@pytest.mark.parametrize("names", [["c", "b"], ["b", "d", "a", "c"]])
def test_a_union_with_fewer_or_more_classes(tmp_path, names):
    """By name as well, and the longer list counts."""
    spec = saved(
        tmp_path,
        train=labelled([0, 1, 2], ClassLabel(names=["a", "b", "c"])),
        test=labelled([0, 1], ClassLabel(names=names)),
    )
    union = data.open_source(f"{spec}[train+test]")
    found = [union.class_names[union[i]["label"]] for i in range(5)]
    assert found == ["a", "b", "c", *names[:2]]


def test_a_union_of_other_classes_is_refused(tmp_path):
    """The first that differs is named, also where the count is the same."""
    spec = saved(
        tmp_path,
        train=labelled([0, 1], ClassLabel(names=["a", "b"])),
        test=labelled([0, 1], ClassLabel(names=["a", "x"])),
    )
    with pytest.raises(UserError, match=r"has the class 'x', which .* does not know"):
        data.open_source(f"{spec}[train+test]")
