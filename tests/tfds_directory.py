"""A prepared TFDS data set on disk (ArrayRecord), written without TensorFlow."""

import io
from pathlib import Path

import numpy as np
import PIL.Image
from array_record.python import array_record_module

from vit_jax.data import prepare


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def write(data_dir, name, splits, class_names, file_format="array_record", version="1.0.0") -> Path:
    """`splits`: {split: [(encoded image, label), ...]}, two shards each."""
    directory = Path(data_dir) / name / version
    directory.mkdir(parents=True)
    lengths = {}
    for split, records in splits.items():
        shards = [records[::2], records[1::2]]
        lengths[split] = [len(shard) for shard in shards]
        for i, shard in enumerate(shards):
            encoded = [
                prepare.example(image, label, f"{i}_{k}.png")
                for k, (image, label) in enumerate(shard)
            ]
            file = prepare.shard_file(directory, name, split, i, 2)
            if file_format == "array_record":
                writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
                for record in encoded:
                    writer.write(record)
                writer.close()
            else:
                tfrecord = file.with_name(file.name.replace("array_record", "tfrecord"))
                tfrecord.write_bytes(b"".join(map(framed, encoded)))
    prepare.write_metadata(directory, name, class_names, lengths)
    if file_format != "array_record":
        info = directory / "dataset_info.json"
        info.write_text(info.read_text().replace("array_record", file_format))
    return directory


def framed(record: bytes) -> bytes:
    """A record of a TFRecord file; its check sums, which are not read, are zeros."""
    return len(record).to_bytes(8, "little") + bytes(4) + record + bytes(4)
