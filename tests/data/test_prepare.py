"""vit-jax prepare: what it writes is what `tfds:NAME` reads. Nothing here needs TensorFlow."""

import io
import json
import tarfile

import numpy as np
import pytest
import tfds_directory

from vit_jax import cli, data
from vit_jax.data import prepare
from vit_jax.errors import UserError


def flat(value: int) -> bytes:
    return tfds_directory.png(np.full((8, 8, 3), value, np.uint8))


def records(spec: str, data_dir) -> list[tuple[int, int]]:
    """(label, grey value) of every record."""
    source = data.open_source(spec, data_dir=str(data_dir))
    found = [source[i] for i in range(len(source))]
    return [(r["label"], int(data.decode(r["image"], r["name"])[0, 0, 0])) for r in found]


@pytest.fixture
def tfrecord_directory(tmp_path):
    rows = [(flat(10 * i), i % 2) for i in range(7)]
    return tfds_directory.write(
        tmp_path, "squares", {"train": rows, "test": rows[:2]}, ["even", "odd"], "tfrecord"
    )


def test_tfrecord_becomes_array_record_and_stays(tfrecord_directory, tmp_path, capsys):
    with pytest.raises(UserError, match="vit-jax prepare tfds:squares"):
        data.open_source("tfds:squares[train]", data_dir=str(tmp_path))
    before = {p.name: p.read_bytes() for p in tfrecord_directory.glob("*tfrecord*")}
    assert cli.main(["prepare", "tfds:squares", f"--data_dir={tmp_path}"]) == 0
    assert {p.name: p.read_bytes() for p in tfrecord_directory.glob("*tfrecord*")} == before
    assert sorted(records("tfds:squares[train]", tmp_path)) == sorted(
        (i % 2, 10 * i) for i in range(7)
    )
    assert records("tfds:squares[test]", tmp_path) == [(0, 0), (1, 10)]
    capsys.readouterr()
    assert cli.main(["prepare", "tfds:squares", f"--data_dir={tmp_path}"]) == 0
    assert "is prepared in" in capsys.readouterr().out


def test_an_interrupted_conversion_goes_on(tfrecord_directory, tmp_path):
    done = tfrecord_directory / "squares-train.array_record-00000-of-00002"
    prepare.convert_tfrecords(tfrecord_directory, say=lambda text: None)
    kept = done.read_bytes()
    info = tfrecord_directory / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"alternativeFileFormats": []}))
    (tfrecord_directory / "squares-test.array_record-00001-of-00002").unlink()
    prepare.prepare_tfds("squares", str(tmp_path), say=lambda text: None)
    assert done.read_bytes() == kept
    assert records("tfds:squares[test]", tmp_path) == [(0, 0), (1, 10)]


def test_a_cut_tfrecord_is_named(tfrecord_directory, tmp_path):
    file = tfrecord_directory / "squares-train.tfrecord-00001-of-00002"
    whole = file.read_bytes()
    for damaged in (whole[:-9], whole[:9], b"\xff" + whole[1:], b"\xff" * 8 + whole[8:]):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match="00001-of-00002 is truncated or damaged"):
            prepare.prepare_tfds("squares", str(tmp_path))
    assert "alternativeFileFormats" not in (tfrecord_directory / "dataset_info.json").read_text()


def test_a_half_prepared_data_set_is_named(tmp_path):
    rows = [(flat(i), 0) for i in range(4)]
    directory = tfds_directory.write(tmp_path, "squares", {"train": rows}, ["a"])
    (directory / "squares-train.array_record-00001-of-00002").unlink()
    assert cli.main(["prepare", "tfds:squares", f"--data_dir={tmp_path}"]) == 1


@pytest.mark.parametrize("text", ["{}", '{"name": ', "", '{"downloadSize": "9' + 40 * "9" + '"}'])
def test_metadata_that_tfds_cannot_read_is_not_called_missing_only(text, tmp_path):
    directory = tfds_directory.write(tmp_path, "squares", {"train": [(flat(1), 0)]}, ["a"])
    (directory / "dataset_info.json").write_text(text)
    with pytest.raises(UserError, match=r"squares.* TFDS says: \S"):
        data.open_source("tfds:squares[train]", data_dir=str(tmp_path))


def test_unknown_names(tmp_path, capsys):
    assert cli.main(["prepare", "tfds:no_such_thing", f"--data_dir={tmp_path}"]) == 1
    assert "TFDS has no data set 'no_such_thing'" in capsys.readouterr().err
    assert cli.main(["prepare", "cifar10"]) == 2
    assert cli.main(["prepare"]) == 2
    assert cli.main(["prepare", "vtab:dt"]) == 1
    assert "Did you mean dtd" in capsys.readouterr().err.replace("'", "")


def test_without_tensorflow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'vit_jax\[prepare\]'"):
        prepare.prepare_tfds("cifar10", str(tmp_path))


# --- ImageNet-21k -------------------------------------------------------------------------------


def write_class(folder, wnid: str, values) -> None:
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"{wnid}.tar", "w") as archive:
        for i, value in enumerate(values):
            content = flat(value)
            member = tarfile.TarInfo(f"{wnid}_{i}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path):
    for label, wnid in enumerate(("n00000001", "n00000002", "n00000003")):
        write_class(tmp_path / "tars", wnid, [60 * label + i for i in range(20)])
    return tmp_path / "tars"


def test_imagenet21k_from_class_archives(tars, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(prepare, "OPEN_SHARDS", 3)  # several passes
    arguments = ["prepare", "imagenet21k", str(tars), f"--data_dir={tmp_path}", "--shards=8"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "3 classes; a full release has 21,841 (fall 2011)" in said and "21,843 outputs" in said
    found = records("tfds:imagenet21k[train]", tmp_path)
    assert sorted(found) == [(k, 60 * k + i) for k in range(3) for i in range(20)]
    # Shards are random, so that the first records are no single class.
    assert len({label for label, _ in records("tfds:imagenet21k[train[:20]]", tmp_path)}) == 3
    source = data.open_source("tfds:imagenet21k", data_dir=str(tmp_path))
    assert source.class_names == ("n00000001", "n00000002", "n00000003")
    assert cli.main(arguments) == 1  # nothing is written twice


def test_imagenet21k_goes_on_after_an_interruption(tars, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "OPEN_SHARDS", 2)
    written = []

    def stop(text):
        written.append(text)
        if "shards 2 to 3" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_imagenet21k(tars, str(tmp_path), shards=6, say=stop)
    directory = tmp_path / "imagenet21k" / "1.0.0"
    first = directory / "imagenet21k-train.array_record-00000-of-00006"
    kept = first.stat().st_mtime_ns
    prepare.prepare_imagenet21k(tars, str(tmp_path), shards=6, say=written.append)
    assert first.stat().st_mtime_ns == kept
    assert len(records("tfds:imagenet21k[train]", tmp_path)) == 60


@pytest.fixture
def kinds(tars):
    """An archive with everything beside images that a tar can hold."""
    plain, file = flat(7), tars / "n00000001.tar"
    with tarfile.open(file, "w") as archive:
        for name, kind, link in (
            ("link.png", tarfile.SYMTYPE, "/etc/passwd"),
            ("../gone.png", tarfile.SYMTYPE, "nowhere"),
            ("hard.png", tarfile.LNKTYPE, "nowhere.png"),
            ("zero.png", tarfile.CHRTYPE, ""),
            ("fifo.png", tarfile.FIFOTYPE, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            archive.addfile(member)
        member = tarfile.TarInfo("sparse.png")
        member.pax_headers = {
            "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0",
            "GNU.sparse.realsize": str(2**42), "GNU.sparse.size": str(2**42),
        }  # fmt: skip
        archive.addfile(member)
        member = tarfile.TarInfo("good.png")
        member.size = len(plain)
        archive.addfile(member, io.BytesIO(plain))
    return file


def test_only_plain_members_are_read(tars, kinds, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "OPEN_SHARDS", 2)  # said once, not in every pass
    said = []
    prepare.prepare_imagenet21k(tars, str(tmp_path), shards=4, say=said.append)
    skipped = [text.split()[1] for text in said if text.startswith("skipped: ")]
    assert sorted(skipped) == sorted(
        ["link.png", "../gone.png", "hard.png", "zero.png", "fifo.png", "sparse.png"]
    )
    assert len(records("tfds:imagenet21k[train]", tmp_path)) == 41


@pytest.mark.parametrize("size", [-511, 513, 5000, 2**33])
def test_a_member_with_a_false_size_is_one_line(tars, tmp_path, size):
    file = tars / "n00000002.tar"
    with tarfile.open(file) as archive:
        member = archive.getmembers()[3]
    content = bytearray(file.read_bytes())
    member.size += size
    content[member.offset : member.offset + 512] = member.tobuf(tarfile.GNU_FORMAT)[:512]
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"n00000002\.tar is damaged") as error:
        prepare.prepare_imagenet21k(tars, str(tmp_path), shards=2, say=str)
    assert "\n" not in str(error.value)


def test_class_archives_that_are_not_usable(tars, tmp_path):
    with pytest.raises(UserError, match="has no class archives"):
        prepare.prepare_imagenet21k(tmp_path / "nowhere", str(tmp_path))
    write_class(tars, "n00000004", [])
    with pytest.raises(UserError, match=r"n00000004.tar has no images"):
        prepare.prepare_imagenet21k(tars, str(tmp_path), shards=2)
    content = (tars / "n00000003.tar").read_bytes()
    (tars / "n00000004.tar").write_bytes(content[: len(content) // 2 + 100])
    with pytest.raises(UserError, match=r"n00000004.tar is damaged"):
        prepare.prepare_imagenet21k(tars, str(tmp_path), shards=2)
