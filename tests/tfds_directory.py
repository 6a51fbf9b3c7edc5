"""A prepared TFDS data set on disk (ArrayRecord), written without TensorFlow."""

import io
import json
from pathlib import Path

import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

SIGNATURE = {
    "supervisedKeys": {
        "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]},
    }
}


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def example(image: bytes, label: int) -> bytes:
    """One record as TFDS stores it: a serialised tf.train.Example."""
    record = tf_example_pb2.Example()
    record.features.feature["image"].bytes_list.value.append(image)
    record.features.feature["label"].int64_list.value.append(label)
    return record.SerializeToString()


def write(data_dir, name, splits, class_names, file_format="array_record") -> Path:
    """`splits`: {split: [(encoded image, label), ...]}, two shards each."""
    directory = Path(data_dir) / name / "1.0.0"
    directory.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=class_names),
        }
    )
    features.save_config(str(directory))
    infos = []
    for split, records in splits.items():
        shards = [records[::2], records[1::2]]
        for i, shard in enumerate(shards):
            file = directory / f"{name}-{split}.{file_format}-{i:05d}-of-00002"
            if file_format != "array_record":
                file.write_bytes(b"")
                continue
            writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
            for image, label in shard:
                writer.write(example(image, label))
            writer.close()
        infos.append(
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": [str(len(shard)) for shard in shards],
                "numBytes": "1",
            }
        )
    info = {"name": name, "version": "1.0.0", "fileFormat": file_format, "splits": infos}
    (directory / "dataset_info.json").write_text(json.dumps(info | SIGNATURE))
    return directory
