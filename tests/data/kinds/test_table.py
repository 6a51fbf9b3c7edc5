"""Tables as people's programs write them: encodings, delimiters, columns, labels, other files."""

import os
import unicodedata

import numpy as np
import PIL.Image
import pytest
from image_folders import class_folders, save

from vit_jax import data
from vit_jax.errors import UserError


@pytest.fixture
def images(tmp_path):
    for i in range(4):
        save(tmp_path / f"{i}.png")
    return tmp_path


def table(folder, labels, name="train.csv", header="path,label"):
    rows = "".join(f"{i % 4}.png,{label}\n" for i, label in enumerate(labels))
    (folder / name).write_text(f"{header}\n{rows}")
    return f"folder:{folder}"


def labels_of(spec):
    """{record: name of its class}."""
    source = data.open_source(spec)
    records = [source[i] for i in range(len(source))]
    return {record["name"]: source.class_names[record["label"]] for record in records}


# --- labels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, names",
    [
        (("007", "7", "abc"), ("007", "7", "abc")),
        (("007", "009", "abc"), ("007", "009", "abc")),
        (("00", "01", "02"), ("00", "01", "02")),
        (("100201", "203094"), ("100201", "203094")),
        (("0", "1", "2"), ("0", "1", "2")),
        (("2", "0", "1", "2"), ("0", "1", "2")),
        (("1", "2", "10", "3"), ("1", "2", "3", "10")),  # no 0: names, in their own order
        (("0", "2"), ("0", "2")),
        (("1.0", "0.0"), ("0.0", "1.0")),
        (("١", "٢"), ("١", "٢")),
        (("1e3", "+1"), ("+1", "1e3")),
        (("100000000", "0"), ("0", "100000000")),
    ],
)
def test_labels_keep_their_spelling(images, labels, names):
    """Numbers only if all are plain decimals without leading zeros, and dense."""
    spec = table(images, labels)
    assert data.open_source(spec).class_names == names
    found = labels_of(spec)
    assert [found[f"{i}.png"] for i in range(len(labels))] == list(labels)


@pytest.mark.parametrize(
    "labels",
    [
        ("cat", "dog", '"cat,dog"', "bird"),
        ("cat", '"cat,dog"', "bird", "bird"),
        ('"cat,dog"', '"dog,bird"', "fish", "fish"),
        ("cat", "dog", '"cat, dog"', "bird"),
        ("cat", "dog", "cat;dog", "bird"),
        ("cat", "dog", "dog|cat", "bird"),
        ("cat", "dog", "cat dog", "bird"),
        ("cat", "dog", "cat/dog", "bird"),
        ("a", "b", "\"['a', 'b']\"", "b"),
        ("0", "1", '"0,1"', "1"),
    ],
)
def test_a_label_that_lists_several_classes_is_refused(images, labels):
    with pytest.raises(UserError, match=r"train.csv, line \d: the label .* lists several classes"):
        data.open_source(table(images, labels))


@pytest.mark.parametrize(
    "labels",
    [
        ('"tench, Tinca tinca"', '"goldfish, Carassius auratus"', "crane", '"maillot, tank suit"'),
        ("maillot", '"maillot, tank suit"', '"missile"', '"projectile, missile"'),
        ("golden retriever", "labrador retriever", "retriever", "golden cat"),
        ('"Paris, Texas"', "Paris", "Rome", "Rome"),
        ("black/white", "red", "green", "green"),
    ],
)
def test_a_name_with_a_comma_is_a_name(images, labels):
    """Unless the class really is called so."""
    assert set(data.open_source(table(images, labels)).class_names) == {
        label.strip('"') for label in labels
    }


def test_class_names_contained_in_others(images):
    """ImageNet has a ski, a mask and a ski mask."""
    labels = ["ski", "mask", "ski mask", *(f"c{i}" for i in range(40))]
    (images / "train.csv").write_text("path,label\n")
    for i, label in enumerate(labels):
        save(images / "im" / f"{i}.png", size=(2, 2))
        with open(images / "train.csv", "a") as file:
            file.write(f"im/{i}.png,{label}\n")
    assert len(data.open_source(f"folder:{images}").class_names) == 43


def test_an_image_with_two_classes_is_refused(images):
    """As rows."""
    (images / "train.csv").write_text("path,label\n0.png,cat\n1.png,dog\n0.png,dog\n")
    with pytest.raises(UserError, match=r"line 4: 0.png is a 'dog', but a 'cat' in .*line 2"):
        data.open_source(f"folder:{images}")


def test_labels_that_differ_in_case_or_form(images):
    with pytest.raises(
        UserError, match=r"'Cat' \(.*line 2\) and 'cat' \(.*line 4\) differ in case"
    ):
        data.open_source(table(images, ("Cat", "dog", "cat")))
    forms = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]
    assert data.open_source(table(images, (*forms, "tea"))).class_names == (forms[0], "tea")


def test_a_split_without_labels_is_not_chosen(images):
    """Empty or -1."""
    rows = "0.png,a,train\n1.png,b,train\n2.png,{0},test\n3.png,{0},test\n0.png,b,val\n"
    for withheld in ("", "-1", "-1.0"):
        (images / "all.csv").write_text("path,label,split\n" + rows.format(withheld))
        spec = f"folder:{images}"
        choice = data.choose_splits(spec)
        assert choice[:2] == (f"{spec}[train]", f"{spec}[validation]")
        assert "[test] is not used: its labels are withheld" in choice.notes[0]
        source = data.open_source(f"{spec}[test]")
        assert source.class_names == ("a", "b") and source[0]["label"] == -1
    (images / "all.csv").write_text("path,label,split\n" + rows.format("") + "3.png,a,test\n")
    with pytest.raises(UserError, match="line 4: the label is empty"):
        data.open_source(spec)


# --- columns ------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["Split", "SPLIT", " split "])
def test_the_split_column_in_any_case(images, column):
    rows = "0.png,a,Train\n1.png,b,TRAINING\n2.png,a,Test\n3.png,b,val\n"
    (images / "list.csv").write_text(f"Path,Label,{column}\n{rows}")
    found = {s: len(data.open_source(f"folder:{images}/list.csv[{s}]")) for s in ("train", "test")}
    assert found == {"train": 2, "test": 1}


def test_columns_that_are_not_used_are_said(images):
    (images / "train.csv").write_text("path,width,label,note\n0.png,9,a,x\n1.png,9,b,y\n")
    (note,) = data.open_source(f"folder:{images}").notes
    assert note.endswith("train.csv: unused columns: width, note")


def test_a_split_column_by_another_name(images):
    """Known by its content, it is not passed over."""
    (images / "list.csv").write_text(
        "path,label,subset\n0.png,a,train\n1.png,b,train\n2.png,a,test\n"
    )
    spec = f"folder:{images}/list.csv"
    with pytest.raises(UserError, match=r"subset seems to name the split .*\?split=subset"):
        data.open_source(spec)
    assert len(data.open_source(f"{spec}?split=subset[test]")) == 1
    assert data.default_splits(f"{spec}?split=subset") == (
        f"{spec}?split=subset[train]",
        f"{spec}?split=subset[test]",
    )


def test_columns_are_named(images):
    """One way for every kind of data."""
    (images / "a b.csv").write_text("id,photo,kind,class,label\n1,0.png,x,u,0\n2,1.png,y,v,1\n")
    spec = f"folder:{images}/a b.csv"
    with pytest.raises(
        UserError, match=r"needs a column path or file or filename or image; it has"
    ):
        data.open_source(spec)
    with pytest.raises(UserError, match=r"could be the label: class, label; .*photo&label=class"):
        data.open_source(f"{spec}?image=photo")
    assert labels_of(f"{spec}?image=photo&label=kind[train]") == {"0.png": "x", "1.png": "y"}
    assert labels_of(f"{spec}?image=PHOTO&label=class") == {"0.png": "u", "1.png": "v"}
    with pytest.raises(UserError, match=r"needs a column 'knid'.*Did you mean 'kind'"):
        data.open_source(f"{spec}?image=photo&label=knid")
    with pytest.raises(UserError, match=r"lable=kind is not an option.*Did you mean 'label'"):
        data.open_source(f"{spec}?lable=kind")
    (images / "a b.csv").write_text("path,a&b\n0.png,x\n1.png,y\n")
    assert labels_of(f"{spec}?label=a%26b") == {"0.png": "x", "1.png": "y"}


# --- encodings, delimiters, quotes --------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be",
                                      "utf-32", "cp1252", "latin-1"])  # fmt: skip
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings(tmp_path, encoding, newline):
    """Recognised, or said where it is a guess."""
    for name in ("é 1.png", "2.png"):
        save(tmp_path / name)
    text = newline.join(["path,label", "é 1.png,café", "2.png,thé", ""])
    (tmp_path / "train.csv").write_bytes(text.encode(encoding))
    assert labels_of(f"folder:{tmp_path}") == {"é 1.png": "café", "2.png": "thé"}
    notes = data.open_source(f"folder:{tmp_path}").notes
    guessed = encoding in ("cp1252", "latin-1")
    assert any("read as Windows-1252 ('é 1.png')" in note for note in notes) == guessed


@pytest.mark.parametrize("encoding, names", [
    ("shift_jis", ("猫 1.png", "犬")), ("gb18030", ("猫 1.png", "狗")),
    ("cp1251", ("Я 1.png", "кот")),
    ("euc_kr", ("고 1.png", "고양이")),
])  # fmt: skip
@pytest.mark.parametrize("as_bytes", [False, True])
def test_an_encoding_that_is_named(tmp_path, encoding, names, as_bytes):
    """Files may be named in it as well, as an archive from such a system unpacks."""
    image, label = names
    stored = os.fsdecode(image.encode(encoding)) if as_bytes else image
    save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / stored)
    save(tmp_path / "2.png")
    text = f"path,label\n{image},{label}\n2.png,b\n"
    (tmp_path / "train.csv").write_bytes(text.encode(encoding))
    source = data.open_source(f"folder:{tmp_path}?encoding={encoding}")
    assert set(source.class_names) == {"b", label}
    assert len(source) == 2 and not any("Windows" in note for note in source.notes)


def test_an_encoding_that_is_not_that(images):
    table(images, ["é", "b"])
    spec = f"folder:{images}?encoding="
    with pytest.raises(UserError, match="encoding=klingon is unknown"):
        data.open_source(f"{spec}klingon")
    with pytest.raises(UserError, match=r"train\.csv is not encoded as ascii"):
        data.open_source(f"{spec}ascii")
    (images / "train.csv").write_bytes("path,label\n0.png,é\n1.png,b\n".encode("cp1252"))
    notes = data.open_source(f"folder:{images}").notes
    assert any("set another by ?encoding=" in note for note in notes)


def test_characters_without_width_are_no_part_of_a_label(images):
    """As copied from a web page: the same class, seen or not."""
    spec = table(images, ["cat", "\u200bcat", "cat\u200b ", "dog\ufeff"])
    assert set(labels_of(spec).values()) == {"cat", "dog"}


def test_advice_names_the_whole_spec(images):
    """A column that is missing, in the only table of a folder."""
    spec = table(images, ["a", "b"], header="path,species")
    with pytest.raises(UserError) as error:
        data.open_source(spec)
    assert "it has path, species" in str(error.value)
    assert str(error.value).endswith(f"Name another with '{spec}?label=COLUMN'.")
    with pytest.raises(UserError) as error:  # the wrong name is replaced, not repeated
        data.open_source(f"{spec}?label=kind&image=path")
    assert str(error.value).endswith(f"Name another with '{spec}?label=COLUMN&image=path'.")


def test_a_column_that_says_it_is_of_one_split(images):
    spec = table(images, ["a,1", "b,0", "a,1"], header="path,label,is_train")
    with pytest.raises(UserError, match="the column is_train seems to name the split"):
        data.open_source(spec)


def test_one_image_spelled_twice_has_one_class(images):
    (images / "train.csv").write_text("path,label\n./0.png,a\n0.png,b\n1.png,b\n")
    with pytest.raises(UserError, match=r"0\.png is a 'b', but a 'a' in .*line 2"):
        data.open_source(f"folder:{images}")


@pytest.mark.parametrize("content", [b"\x81\x8d\x00", b"path,label\n\x81,a\n", b"\xff\xfe\x00",
                                     b"path,label\n0.png,x\0\n", bytes(range(256))])  # fmt: skip
def test_a_file_that_is_not_text_is_named(images, content):
    (images / "train.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.csv is not text in UTF-8"):
        data.open_source(f"folder:{images}")


@pytest.mark.parametrize(
    "start, advice",
    [
        (b"PK\3\4", "unpack it, or save it as CSV"),
        (b"PAR1", r"which is read as hf:/.*train\.csv"),
        (b"\x1f\x8b", "unpack it, and give the folder"),
        (b"a.png".ljust(257, b"\0") + b"ustar", "unpack it, and give the folder"),
    ],
)
def test_archives_and_other_tables_are_recognised(images, start, advice):
    (images / "train.csv").write_bytes(start + b"\0\0")
    with pytest.raises(UserError, match=rf"train\.csv is .*{advice}"):
        data.open_source(f"folder:{images}/train.csv")


@pytest.mark.parametrize(
    "text",
    [
        "path;label\n0.png;a,b\n1.png;c\n",
        "path\tlabel\n0.png\ta,b\n1.png\tc\n",
        "path|label\n0.png|a,b\n1.png|c\n",
        'path,label\n0.png,"a,b"\n"1.png","c"\n',
        'path, label\n0.png, "a,b"\n1.png, c\n',
        '"path","label"\r\n"0.png","a,b"\r\n\r\n"1.png","c"\r\n\r\n',
        "sep=;\npath;label\n0.png;a,b\n1.png;c\n",
        'path,label,,\n0.png,"a,b",,\n1.png,c,,\n,,,\n',
        '\n\npath,label\n0.png,"a,b"\n1.png,c',
        'FileName,CLASS\n./0.png,"a,b"\n.\\1.png,c\n',
    ],
)
def test_delimiters_and_quotes(images, text):
    (images / "train.csv").write_text(text, newline="")
    found = labels_of(f"folder:{images}")
    assert {os.path.normpath(name): label for name, label in found.items()} == {
        "0.png": "a,b",
        "1.png": "c",
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("path,label\n0.png,a\n1.png,b,c\n", "line 3: 3 cells, but the first line has 2 columns"),
        ('path,label\n"0.png,a\n1.png,b\n', "line 3: a quote is not closed"),
        ("path,label,split\n0.png,a,train\n1.png,b,\n", "line 3: the split is empty"),
        ("path,path,label\n0.png,1.png,a\n", "two columns called 'path'; rename one"),
        ("path,Path,label\n0.png,1.png,a\n", "could be the image: path, Path"),
        ("path,label\n,a\n1.png,b\n", "line 2: the path is empty"),
        ("path,label\n0.png,a\nhttps://host/b.png,b\n", "line 3: https://host/b.png is a URL"),
        ("path,label\n0.png,1\n1.png,1.0\n", r"'1' \(.*line 2\) and '1.0' \(.*line 3\) are the s"),
        ("0.png,a\n1.png,b\n", "it has 0.png, a. Its first line seems to be an image: put a "),
        ("", "train.csv is empty"),
        ("path,label\n" + "x" * 200_000 + ",a\n", "line 2: field larger than field limit"),
        ("path,label\n0.png,1\n1.png,-2\n", "line 3: the label -2 is negative"),
    ],
)
def test_rows_that_cannot_be_used_are_named(images, text, message):
    (images / "train.csv").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        data.open_source(f"folder:{images}")
    assert "train.csv" in str(error.value) and "\n" not in str(error.value)


def test_a_path_in_another_unicode_form_or_in_bytes(tmp_path):
    """The table was written elsewhere."""
    save(tmp_path / unicodedata.normalize("NFD", "é.png"))
    PIL.Image.new("RGB", (9, 9)).save(os.fsdecode(os.fsencode(tmp_path) + b"/\xe8.png"))
    (tmp_path / "train.csv").write_bytes("path,label\né.png,a\nè.png,b\n".encode("cp1252"))
    source = data.open_source(f"folder:{tmp_path}")
    assert sorted(source.names()) == ["\\xe8.png", "é.png"]
    assert [np.asarray(source[i]["image"] is not None) for i in range(2)]


# --- other files --------------------------------------------------------------------------------


def test_files_that_are_no_table_of_the_data_are_passed_over(images):
    spec = table(images, ("a", "b"))
    table(images, ("a", "b"), "test.csv")
    (images / "._train.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    (images / "sample_submission.csv").write_text("image,label\n0.png,zzz\n")
    (images / "results.csv").write_text("epoch,loss\n1,0.3\n")
    (images / "extra.CSV").write_text("path,label\n2.png,zzz\n")
    source = data.open_source(spec)
    assert source.class_names == ("a", "b") and len(source) == 2
    text = "\n".join(source.notes)
    for name in ("._train.csv", "sample_submission.csv", "results.csv", "extra.CSV"):
        assert name in text


def test_tables_beside_class_folders_are_passed_over(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.3\n")
    (tmp_path / "sample_submission.csv").write_text("path,label\nblue/0.png,zzz\n")
    (tmp_path / "bad.csv").write_bytes(b"\x81\0")
    source = data.open_source(f"folder:{tmp_path}")
    assert source.class_names == ("blue", "green", "red")
    assert all(any(n in note for note in source.notes)
               for n in ("history.csv", "sample_submission.csv", "bad.csv"))  # fmt: skip


def test_a_test_table_without_labels_is_passed_over(images):
    spec = table(images, ("a", "b"))
    (images / "test.csv").write_text("path\n2.png\n")
    source = data.open_source(spec)
    assert len(source) == 2 and "test.csv needs a column label" in source.notes[0]


def test_the_only_table_is_the_data(images):
    spec = table(images, ("a", "b"), "labels.csv")
    assert len(data.open_source(spec)) == 2
    table(images, ("a", "b"), "fold2.csv")
    assert len(data.open_source(f"{spec}[fold2]")) == 2
    with pytest.raises(UserError, match="has no split train; it has fold2, labels: choose"):
        data.default_splits(spec)


def test_two_tables_of_one_split_are_refused(images):
    for name in ("train.csv", "val.csv", "valid.csv"):
        spec = table(images, ("a", "b"), name)
    with pytest.raises(UserError, match="has val and valid, which both mean the split validation"):
        data.open_source(spec)
