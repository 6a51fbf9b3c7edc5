"""Several labels an image: every way in which people write them, and what is refused."""

import numpy as np
import pytest
from image_folders import save
from tfds_directory import png

from vit_jax import data
from vit_jax.data import multilabel, prepare
from vit_jax.data.relabel import Relabelled, with_classes
from vit_jax.data.source import ArraySource
from vit_jax.errors import UserError

#: Of images 0 to 3, the last of which has no label.
WANTED = {"0": {"cat", "dog"}, "1": {"dog"}, "2": {"cat"}, "3": set()}
TRANSFORM = data.make_transform(name="resize", size=(8, 8), train=False)


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png", (60 * i, 0, 0))
    return tmp_path


def write(folder, text, name="train.csv"):
    (folder / name).write_text(text)
    return f"folder:{folder}"


def found(source):
    """{name of the image's file without its suffix: the names of its labels}."""
    labels = {}
    for i in range(len(source)):
        record = source[i]
        assert record["label"].dtype == np.int8 and record["label"].shape == (source.num_classes,)
        np.testing.assert_array_equal(record["label"], source.labels[i])
        name = record["name"].rpartition("/")[2].removesuffix(".png")
        labels[name] = {source.class_names[k] for k in np.flatnonzero(record["label"])}
    return labels


LISTED = "path,label\n0.png,cat;dog\n1.png,dog\n2.png, cat;\n3.png,\n"
ROWS = "path,label\n0.png,cat\n0.png,dog\n1.png,dog\n2.png,cat\n2.png,cat\n3.png,\n"
MATRIX = "path,cat,dog\n0.png,1,1\n1.png,0,1\n2.png,1.0,0.0\n3.png,0,0\n"
WIDE = "width,path,cat,dog\n9,0.png,1,1\n9,1.png,0,1\n9,2.png,1,0\n9,3.png,0,0\n"


@pytest.mark.parametrize(
    "text, query",
    [
        (LISTED, "?separator=;"),
        (LISTED.replace(";", "%26"), "?multilabel=true&separator=%2526"),
        (ROWS, "?multilabel=true"),
        (ROWS.replace("label", "Tags"), "?multilabel=true"),
        (MATRIX, "?multilabel=true"),
        (MATRIX.replace("path", ",path").replace("\n", "\n1,")[:-2], "?multilabel=true"),  # pandas
        (WIDE, "?multilabel=true&label=cat,dog"),
    ],
)
def test_tables(images, text, query):
    source = data.open_source(write(images, text) + query)
    assert source.multilabel and source.class_names == ("cat", "dog")
    assert found(source) == WANTED
    assert source.labels.dtype == np.int8


def test_labels_are_a_column_with_a_split(images):
    text = "path,tags,part\n0.png,cat dog,train\n1.png,dog,train\n2.png,cat,test\n3.png,,test\n"
    spec = write(images, text) + "/train.csv?label=tags&split=part&separator= "
    assert found(data.open_source(f"{spec}[train]")) == {k: WANTED[k] for k in "01"}
    assert found(data.open_source(f"{spec}[test]")) == {k: WANTED[k] for k in "23"}
    assert found(data.open_source(f"{spec}[train+test]")) == WANTED
    assert found(data.open_source(f"{spec}[all]")) == WANTED


def test_without_asking_nothing_changes(images):
    """One label a record, with the same fingerprint and types as before."""
    source = data.open_source(write(images, "path,label\n0.png,cat\n1.png,dog\n"))
    assert not source.multilabel and source.labels.dtype == np.int32
    assert isinstance(source[0]["label"], int)
    assert source.fingerprint == "17b657b6666836be"
    for text in (LISTED, ROWS):
        text = text.replace("3.png,\n", "")
        with pytest.raises(UserError, match=r"multi-label data in docs/data\.md"):
            data.open_source(write(images, text))


def test_a_label_that_is_in_one_split_only(images):
    write(images, "path,label\n0.png,cat;dog\n1.png,bird\n")
    spec = write(images, "path,label\n2.png,cat;dgo\n", "test.csv") + "?separator=;"
    with pytest.raises(UserError, match=r"test\.csv, line 2: .* label 'dgo'.*mean 'dog'\?"):
        data.open_source(spec)
    write(images, "path,label\n2.png,cat\n3.png,\n", "test.csv")  # fewer are well
    labels = data.open_source(f"{spec}[test]").labels
    assert sorted(labels.tolist()) == [[0, 0, 0], [0, 1, 0]]


def test_withheld_labels_are_not_the_same_as_none(images):
    write(images, LISTED)
    for cell in ("", "-1", "-1.0"):
        spec = write(images, f"path,label\n0.png,{cell}\n1.png,\n", "test.csv") + "?separator=;"
        assert data.open_source(f"{spec}[test]").labels.tolist() == [[-1, -1], [-1, -1]]
        assert data.choose_splits(spec).evaluation.endswith("[train[90%:]]")
        with pytest.raises(UserError, match="no label"):
            data.open_source(f"{spec}[test]", labelled=True)


@pytest.mark.parametrize(
    "text, query, message",
    [
        (MATRIX.replace("0.0", "2"), "", r"line 4: the column 'dog' has '2', not 0 or 1"),
        (MATRIX.replace("0.0", "nan"), "", "'nan', not 0 or 1"),
        (MATRIX.replace(",0.0", ""), "", "the column 'dog' has '', not 0 or 1"),
        ("path,class,bee\n0.png,0,1\n1.png,1,1\n", "", r"all labels are 0 or 1\. If the table"),
        (MATRIX, "&separator=;", "has a column per class, and separator= is for one that"),
        ("path,label,tags\n0.png,a,b\n", "", "could be the labels: label, tags; choose one"),
        (WIDE, "", r"the column 'width' has '9'.*label=A,B,C"),
        (WIDE, "&label=cat,dig", r"has no column 'dig'; it has .*mean 'dog'\?"),
        ("path,cat,dog,cat\n0.png,1,0,1\n", "", "two columns called 'cat'"),
        ("path,label,label\n0.png,a,b\n", "", "two columns called 'label'"),
        ("path,label,label\n0.png,a,b\n", "&label=label", "two columns called 'label'"),
        (MATRIX + "0.png,0,1\n", "", r"line 6: 0\.png is listed twice with different labels"),
        (
            LISTED,
            "",
            r"'cat;' lists several classes; set the separator by .*&separator=",
        ),
        ("path,label\n0.png,\n1.png,\n", "", "no image has a label"),
        ("path,label\n0.png,0;2\n1.png,-3;1\n", "&separator=;", "-3 is negative"),
        ("path\n0.png\n", "", "needs a column of labels, or a column of 0 and 1 per class"),
        (LISTED.replace("cat\n", "Cat\n").replace(" cat", "Cat"), "&separator=;", "in case only"),
    ],
)
def test_tables_that_are_refused(images, text, query, message):
    spec = f"{write(images, text)}/train.csv?multilabel=true{query}"
    with pytest.raises(UserError, match=message):
        data.open_source(spec)


def test_matrices_have_the_same_classes(images):
    write(images, MATRIX)
    spec = write(images, "path,dog,cat\n1.png,1,0\n", "test.csv") + "?multilabel=true"
    assert found(data.open_source(f"{spec}[test]")) == {"1": {"dog"}}  # in any order
    write(images, "path,dog\n1.png,1\n", "test.csv")
    with pytest.raises(UserError, match=r"test\.csv has no column 'cat', which .*train\.csv has"):
        data.open_source(spec)
    write(images, "path,dog,cat,bird\n1.png,1,0,0\n", "test.csv")
    with pytest.raises(UserError, match=r"train\.csv has no column 'bird', which .*test\.csv has"):
        data.open_source(spec)
    write(images, "path,label\n1.png,dog\n", "test.csv")
    with pytest.raises(UserError, match="differ in format"):
        data.open_source(spec)


def test_options_are_refused_by_name(images):
    spec = write(images, LISTED)
    for query, message in (
        ("?multilabel=1", "must be multilabel=true"),
        ("?multilabel=false&separator=;", "separator= is for several labels"),
        ("?multilable=true", "mean 'multilabel'"),
    ):
        with pytest.raises(UserError, match=message):
            data.open_source(spec + query)
    with pytest.raises(UserError, match=r"\?multilabel=true is not an option"):
        data.open_source("digits?multilabel=true")
    for name in ("a", "b"):
        save(images / "classes" / name / "0.png")
    with pytest.raises(UserError, match="options are for tables"):
        data.open_source(f"folder:{images}/classes?multilabel=true")


def test_a_separator_that_never_occurs_is_said(images):
    source = data.open_source(write(images, "path,label\n0.png,cat\n1.png,dog\n") + "?separator=|")
    assert any("'|' does not occur in any" in note for note in source.notes)


def test_more_labels_than_fit(monkeypatch):
    monkeypatch.setattr(multilabel, "MOST_BYTES", 100)
    with pytest.raises(UserError, match="30 records of 4 classes each"):
        multilabel.matrix([{0}] * 30, 4, "x")


# --- Hugging Face and TFDS ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["names", "numbers", "text", "cells", "floats", "flags", "bytes"])
def test_hugging_face(tmp_path, monkeypatch, kind):
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    value, names = datasets.Value, ["cat", "dog", "eel"]
    labels, feature = {
        "names": ([[0, 1], [1], [0], []], datasets.Sequence(datasets.ClassLabel(names=names))),
        "numbers": ([[0, 1], [1], [0], [2]], datasets.Sequence(value("int64"))),
        "text": ([["cat", "dog"], ["dog"], ["cat"], []], datasets.Sequence(value("string"))),
        "cells": (["cat/dog", "dog", "cat", ""], value("string")),
        "floats": ([[1, 1], [0, 1], [1, 0], [0, 0]], datasets.Sequence(value("float32"))),
        "flags": ([[1, 1], [0, 1], [1, 0], [0, 0]], datasets.Sequence(value("bool"))),
        "bytes": ([[1, 1, 0], [0, 1, 0], [1, 0, 0], [0] * 3], datasets.Sequence(value("uint8"))),
    }[kind]
    table = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(np.zeros((4, 4, 3), np.uint8))}] * 4, "labels": labels},
        features=datasets.Features(image=datasets.Image(), labels=feature),
    )
    table.save_to_disk(str(tmp_path / "set"))
    query = "separator=/" if kind == "cells" else "multilabel=true"
    source = data.open_source(f"hf:{tmp_path}/set?{query}")
    assert source.multilabel and source[0]["label"].tolist() == source.labels[0].tolist()
    wanted = [[1, 1, 0], [0, 1, 0], [1, 0, 0], [0, 0, int(kind == "numbers")]]
    assert source.labels.tolist() == [row[: source.num_classes] for row in wanted]
    if kind == "numbers":
        labels = datasets.Dataset.from_dict({"image": [b""], "label": [[[0]]]})
        labels.save_to_disk(str(tmp_path / "nested"))
        with pytest.raises(UserError, match=r"/0: the labels in column 'label' are not a list of"):
            data.open_source(f"hf:{tmp_path}/nested?multilabel=true")
    if kind == "names":
        assert source.class_names == ("cat", "dog", "eel")
        with pytest.raises(UserError, match=r"has 2 labels.*several with .*\?multilabel=true"):
            data.open_source(f"hf:{tmp_path}/set")
        with pytest.raises(UserError, match=r"separator= is for text"):
            data.open_source(f"hf:{tmp_path}/set?separator=;")


def test_tfds(tmp_path):
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    directory = tmp_path / "tags" / "1.0.0"
    directory.mkdir(parents=True)
    names = ["cat", "dog", "eel"]
    prepare.write_metadata(directory, "tags", names, {"train": [3]})
    tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.Sequence(tfds.features.ClassLabel(names=names)),
            "hot": tfds.features.Tensor(shape=(3,), dtype=np.int64),
        }
    ).save_config(str(directory))
    file = prepare.shard_file(directory, "tags", "train", 0, 1)
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for labels in ([2, 0], [1], []):
        example = tf_example_pb2.Example()
        feature = example.features.feature
        feature["image"].bytes_list.value.append(png(np.zeros((4, 4, 3), np.uint8)))
        feature["label"].int64_list.value.extend(labels)
        feature["hot"].int64_list.value.extend([int(k in labels) for k in range(3)])
        writer.write(example.SerializeToString())
    writer.close()
    for query, classes in (("", tuple(names)), ("&label=hot", ("0", "1", "2"))):
        spec = f"tfds:tags?multilabel=true{query}"
        source = data.open_source(spec, data_dir=str(tmp_path), labelled=True)
        assert source.multilabel and source.class_names == classes
        assert [source[i]["label"].tolist() for i in range(3)] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    with pytest.raises(UserError, match=r"several labels per record.*\?multilabel=true"):
        data.open_source("tfds:tags", data_dir=str(tmp_path))
    with pytest.raises(UserError, match=r"has no class label 'image'; .*labels are label"):
        data.open_source("tfds:tags?multilabel=true&label=image", data_dir=str(tmp_path))


# --- what is done with them ---------------------------------------------------------------------


def several(labels, names=None, spec="several"):
    images = np.zeros((len(labels), 8, 8, 3), np.uint8)
    return ArraySource(images, np.asarray(labels), names, spec=spec)


def test_classes_are_matched_by_name():
    source = several([[1, 0], [0, 1], [-1, -1]], ("dog", "cat"))
    mapped = with_classes(source, ("ape", "cat", "dog"), "another")
    assert isinstance(mapped, Relabelled) and mapped.multilabel
    wanted = [[0, 0, 1], [0, 1, 0], [-1, -1, -1]]
    assert mapped.labels.tolist() == wanted
    assert [mapped[i]["label"].tolist() for i in range(3)] == wanted
    with pytest.raises(UserError, match="has the class 'dog'"):
        with_classes(source, ("ape", "cat"), "another")


def test_batches():
    source = several([[1, 1], [0, 0], [0, 1]])
    batches = data.eval_batches(source, TRANSFORM, batch_size=2)
    first, last = list(batches)
    assert first["label"].dtype == np.int8 and first["label"].tolist() == [[1, 1], [0, 0]]
    assert last["label"].tolist() == [[0, 1], [0, 0]] and last["mask"].tolist() == [True, False]
    batches = data.train_batches(source, TRANSFORM, batch_size=3, seed=0)
    assert sorted(next(batches)["label"].tolist()) == [[0, 0], [0, 1], [1, 1]]
    batches.close()
    hidden = data.eval_batches(several([[1, 1], [-1, -1]]), TRANSFORM, batch_size=2)
    with pytest.raises(UserError, match="withheld, or not 0 or 1"):
        next(hidden)


def test_counts_and_numbers():
    labels = np.array([[1, 1], [0, 0], [0, 1], [-1, -1]], np.int8)
    assert multilabel.counts(labels, 3).tolist() == [1, 2, 0]
    assert multilabel.counts(np.array([0, 2, 2, -1]), 4).tolist() == [1, 0, 2, 0]
    assert multilabel.from_numbers(np.array([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
