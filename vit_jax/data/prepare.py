"""Preparing data sets: TFDS preparation, TFRecord to ArrayRecord, ImageNet-21k from its archives.

Only `prepare_tfds` for a data set that is not on disk needs TensorFlow. The output is a directory
that `tfds:NAME` reads: ArrayRecord shards, features.json and dataset_info.json.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from vit_jax.data.image_files import MAX_BYTES, image_suffixes, shown
from vit_jax.data.kinds import vtab
from vit_jax.data.kinds.tfds import TfdsSplits, check_shards, use_array_record
from vit_jax.errors import UserError
from vit_jax.files import replacing, write_json

Say = Callable[[str], None]
#: The released class counts; other numbers mean an incomplete download.
IMAGENET21K = {21_841: "fall 2011", 19_167: "winter 2021"}
PUBLISHED_CLASSES = 21_843
OPEN_SHARDS = 64  # shards written at a time


def data_directory(data_dir: str | None) -> Path:
    """The directory of TFDS data sets."""
    import tensorflow_datasets as tfds

    where = data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
    return Path(where).expanduser()


# --- TFDS ---------------------------------------------------------------------------------------


def prepare_tfds(
    name: str, data_dir: str | None = None, *, manual_dir: str | None = None, say: Say = print
) -> Path:
    """Makes `tfds:NAME` readable and returns its directory; a no-op if it is.

    TFRecord files are converted, without TensorFlow; a missing data set is downloaded and prepared
    by TFDS, with TensorFlow.

    Raises:
      UserError: no such data set, a manual download is needed, or TensorFlow is not installed.
    """
    import tensorflow_datasets as tfds

    where = data_directory(data_dir)
    builder = _builder(name, where)
    directory = Path(builder.data_dir)
    if builder.info.splits:
        if use_array_record(builder.info):
            for split in builder.info.splits:
                check_shards(TfdsSplits(name, str(where)).instructions(split), f"tfds:{name}")
            say(f"tfds:{name} is prepared in {directory}")
        else:
            convert_tfrecords(directory, say)
        return directory
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"tfds:{name} is not in {where}, and preparing it needs TensorFlow: "
            "pip install 'vit_jax[prepare]' (training never needs it)."
        )
    config = tfds.download.DownloadConfig(
        manual_dir=Path(manual_dir).expanduser() if manual_dir else None
    )
    say(f"tfds:{name}: downloading and preparing in {directory}")
    try:
        builder.download_and_prepare(file_format="array_record", download_config=config)
    except Exception as error:
        manual = " ".join((builder.MANUAL_DOWNLOAD_INSTRUCTIONS or "").split())
        hint = f" {manual} Give its place by --manual_dir." if manual else ""
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise UserError(f"tfds:{name} could not be prepared ({reason.strip()}).{hint}") from error
    say(f"tfds:{name} is prepared in {directory}")
    return directory


def _builder(name: str, data_dir: Path):
    """TFDS's builder of a data set that it knows, or that is in `data_dir`."""
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=str(data_dir))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"TFDS has no data set {name!r} ({reason}).") from error


def convert_tfrecords(directory: str | Path, say: Say = print) -> Path:
    """Adds ArrayRecord files to a TFDS directory of TFRecord files, record by record.

    The TFRecord files stay, and TFDS still reads them; at the end dataset_info.json gains an
    alternative format. After an interruption it continues with the next file.

    Raises:
      UserError: no TFRecord files, or a truncated one.
    """
    from array_record.python import array_record_module

    directory = Path(directory)
    files = sorted(path for path in directory.iterdir() if ".tfrecord-" in path.name)
    if not files:
        raise UserError(f"{directory} has no TFRecord files; is the preparation complete?")
    for file in files:
        target = file.with_name(file.name.replace(".tfrecord-", ".array_record-"))
        if target.exists():
            continue
        with replacing(target) as partial:
            writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
            for record in tfrecords(file):
                writer.write(record)
            writer.close()
        say(f"{target.name} written")
    info_file = directory / "dataset_info.json"
    info = json.loads(info_file.read_text())
    info["alternativeFileFormats"] = sorted(
        {*info.get("alternativeFileFormats", ()), "array_record"}
    )
    write_json(info_file, info)
    say(f"{directory} is readable without TensorFlow; its TFRecord files may be deleted")
    return directory


def tfrecords(file: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: length (8 bytes), checksum (4), record, checksum (4)."""
    left = file.stat().st_size
    with open(file, "rb") as opened:
        while left:
            head = opened.read(12)
            size = struct.unpack("<Q", head[:8])[0] if len(head) == 12 else left
            left -= 12 + size + 4
            if left < 0:
                raise UserError(f"{file} is truncated or damaged; prepare the data set again.")
            yield opened.read(size)
            opened.seek(4, os.SEEK_CUR)


# --- writing a TFDS directory -------------------------------------------------------------------


def example(image: bytes, label: int, file_name: str) -> bytes:
    """One record as TFDS stores it: a serialised tf.train.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(image)
    record.features.feature["label"].int64_list.value.append(label)
    record.features.feature["file_name"].bytes_list.value.append(file_name.encode())
    return record.SerializeToString()


def write_metadata(
    directory: Path, name: str, class_names: Sequence[str], splits: Mapping[str, Sequence[int]]
) -> None:
    """Writes features.json and dataset_info.json of a directory with finished shards.

    Args:
      splits: {split: records in each of its shards}.
    """
    import tensorflow_datasets as tfds

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=list(class_names)),
            "file_name": tfds.features.Text(),
        }
    )
    features.save_config(str(directory))
    keys = {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}}
    info = {
        "name": name,
        "version": directory.name,
        "fileFormat": "array_record",
        "supervisedKeys": keys,
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(length) for length in lengths],
                "numBytes": "1",
            }
            for split, lengths in splits.items()
        ],
    }
    write_json(directory / "dataset_info.json", info)


def shard_file(directory: Path, name: str, split: str, shard: int, shards: int) -> Path:
    return directory / f"{name}-{split}.array_record-{shard:05d}-of-{shards:05d}"


# --- ImageNet-21k -------------------------------------------------------------------------------


def prepare_imagenet21k(
    tars: str | Path, data_dir: str | None = None, *, shards: int = 512, say: Say = print
) -> Path:
    """`tfds:imagenet21k` from a directory with one tar per class (n01440764.tar, ...).

    Images are assigned to shards by a hash of their name, so the first records are a random sample
    of all classes. Classes are sorted by WordNet id. Images are copied unchanged. After an
    interruption it continues with the next 64 shards.

    Raises:
      UserError: no tars, one is damaged or has no images, or the output exists.
    """
    tars = Path(tars).expanduser()
    files = sorted(tars.glob("n*.tar")) if tars.is_dir() else []
    if not files:
        raise UserError(f"{tars} has no class archives (n01440764.tar, ...).")
    directory = data_directory(data_dir) / "imagenet21k" / "1.0.0"
    if (directory / "dataset_info.json").exists():
        raise UserError(f"{directory} exists; move it away to prepare it again.")
    release = IMAGENET21K.get(len(files))
    known = " or ".join(f"{n:,} ({when})" for n, when in IMAGENET21K.items())
    say(
        f"{len(files):,} classes"
        + (f", the {release} release" if release else f"; a full release has {known}")
        + f". Published ImageNet-21k weights have {PUBLISHED_CLASSES:,} outputs, two of them for "
        "classes without images; match classes by name."
    )
    directory.mkdir(parents=True, exist_ok=True)
    for first in range(0, shards, OPEN_SHARDS):
        wanted = range(first, min(first + OPEN_SHARDS, shards))
        _write_shards(directory, files, wanted, shards, say if first == 0 else _silent)
        say(f"shards {wanted.start} to {wanted.stop - 1} of {shards} are written")
    lengths = [
        _count(shard_file(directory, "imagenet21k", "train", i, shards)) for i in range(shards)
    ]
    write_metadata(directory, "imagenet21k", [file.stem for file in files], {"train": lengths})
    say(f"tfds:imagenet21k: {sum(lengths):,} images in {directory}")
    return directory


def _silent(text: str) -> None:
    """Ignores notes that the first pass has printed."""


def _write_shards(directory: Path, files: list[Path], wanted: range, shards: int, say: Say) -> None:
    """Writes a range of shards in one pass over all archives; a no-op if they exist."""
    from array_record.python import array_record_module

    targets = {i: shard_file(directory, "imagenet21k", "train", i, shards) for i in wanted}
    if all(target.exists() for target in targets.values()):
        return
    writers = {
        i: array_record_module.ArrayRecordWriter(f"{target}.partial", "group_size:1")
        for i, target in targets.items()
    }
    for label, file in enumerate(files):
        images = 0
        for member, read in _members(file, say):
            images += 1
            digest = hashlib.md5(f"{file.stem}/{member}".encode()).digest()
            shard = int.from_bytes(digest[:8], "big") % shards
            if shard in writers:
                writers[shard].write(example(read(), label, member))
        if not images:
            raise UserError(f"{file} has no images; download it again, or remove it.")
    for i, writer in writers.items():
        writer.close()
        os.replace(f"{targets[i]}.partial", targets[i])


def _members(file: Path, say: Say) -> Iterable[tuple[str, Callable[[], bytes]]]:
    """(name, function that reads it) for every image in an archive.

    Links, devices and sparse members are skipped with a note.
    """
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                if Path(member.name).suffix.lower() not in image_suffixes() or member.isdir():
                    continue
                plain = member.isreg() and not member.issparse() and member.size <= MAX_BYTES
                content = archive.extractfile(member) if plain else None
                if content is None:
                    say(f"skipped: {shown(member.name)} in {file} is not a plain image file")
                    continue
                yield member.name, functools.partial(_read, content, file)
            with open(file, "rb") as opened:  # tarfile takes an invalid header for the end
                opened.seek(archive.offset)
                end = opened.read(tarfile.BLOCKSIZE)
            if end.strip(b"\0"):
                raise tarfile.TarError("a member has a wrong size")
            if len(end) < tarfile.BLOCKSIZE:
                raise tarfile.TarError("it is truncated")
    except (tarfile.TarError, OSError, KeyError, ValueError) as error:
        raise damaged(file, error) from error


def _read(content: IO[bytes], file: Path) -> bytes:
    """Reads a member of an archive; errors name the archive."""
    try:
        return content.read()
    except (tarfile.TarError, OSError) as error:
        raise damaged(file, error) from error


def damaged(file: Path, error: Exception) -> UserError:
    if isinstance(error, UserError):
        return error
    return UserError(f"{file} is damaged ({error}); download it again.")


def _count(file: Path) -> int:
    from array_record.python import array_record_module

    reader = array_record_module.ArrayRecordReader(str(file))
    try:
        return reader.num_records()
    finally:
        reader.close()


# --- VTAB-1k ------------------------------------------------------------------------------------


def readiness(data_dir: str | None = None) -> dict[str, tuple[bool, str]]:
    """{task of VTAB-1k: (whether it can be run, what to do)}."""
    report = {}
    for name, task in vtab.TASKS.items():
        try:
            stored = TfdsSplits(task.dataset, data_dir)
            sizes = {split: info.num_examples for split, info in stored.builder.info.splits.items()}
            for split in sizes:
                check_shards(stored.instructions(split), f"tfds:{task.dataset}")
            remarks = vtab.size_remarks(task, sizes)
        except (UserError, KeyError) as error:
            how = f"vit-jax prepare vtab:{name}"
            if task.manual:
                how = f"needs {task.manual}; then {how} --manual_dir=MANUAL"
            damaged = "" if "not prepared" in str(error) or "no prepared" in str(error) else error
            report[name] = (False, f"{damaged} {how}".strip())
        else:
            report[name] = (True, "; ".join(remarks) or "prepared")
    return report
