"""Small archives in the formats of VTAB's sixteen data sets, placed where TFDS keeps downloads.

Image i of a data set is a flat grey of 20 + 5 i, so that a record tells which one it is.
"""

import csv
import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path

import h5py
import numpy as np
import PIL.Image
import scipy.io
import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import checksums, resource

from vit_jax.data.kinds import vtab

MAX = 45


def grey(i: int) -> int:
    assert 0 <= i < MAX
    return 20 + 5 * i


def pixels(i: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.full((height, width, 3), grey(i), np.uint8)


def picture(i: int, form: str = "JPEG", size: tuple[int, int] = (16, 16)) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels(i, *size)).save(file, form)
    return file.getvalue()


def packed(kind: str, files: dict[str, bytes]) -> bytes:
    """An archive: kind is "zip", "tar" or "gz" (a compressed tar)."""
    file = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return file.getvalue()
    with tarfile.open(fileobj=file, mode="w:gz" if kind == "gz" else "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


class Cache:
    """TFDS's download directory: `place` puts a file where the download of a URL would be."""

    def __init__(self, data_dir: Path, dataset: str):
        self.directory = data_dir / "downloads" / dataset
        self.known = tfds.builder_cls(dataset).url_infos or checksums.get_all_url_infos()

    def place(self, url: str, content: bytes) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        info = self.known.get(url)
        name = resource.get_dl_fname(url, info.checksum if info else None)
        (self.directory / name).write_bytes(content)
        (self.directory / f"{name}.INFO").write_text(
            json.dumps({"urls": [url], "original_fname": url.rpartition("/")[2].partition("?")[0]})
        )


def class_names(dataset: str) -> list[str]:
    return tfds.builder(dataset, data_dir="/nonexistent").info.features["label"].names


def caltech101(cache: Cache, manual: Path) -> dict[int, int]:
    names = class_names("caltech101")
    files = {
        f"101_ObjectCategories/{name}/image_{i:04d}.jpg": picture(i)
        for name in names[:2]
        for i in range(32)
    }
    inner = packed("gz", files)
    cache.place(
        "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip?download=1",
        packed("zip", {"caltech-101/101_ObjectCategories.tar.gz": inner}),
    )
    return {}  # both classes have the same pictures


def cifar100(cache: Cache, manual: Path) -> dict[int, int]:
    labels = {i: (7 * i) % 100 for i in range(30)}

    def binary(wanted) -> bytes:
        rows = []
        for i in wanted:
            image = pixels(i, 32, 32).transpose(2, 0, 1).tobytes()
            rows.append(bytes([labels[i] // 5, labels[i]]) + image)
        return b"".join(rows)

    cache.place(
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        packed(
            "gz",
            {
                "cifar-100-binary/train.bin": binary(range(20)),
                "cifar-100-binary/test.bin": binary(range(20, 30)),
                "cifar-100-binary/coarse_label_names.txt": "".join(
                    f"coarse{i}\n" for i in range(20)
                ).encode(),
                "cifar-100-binary/fine_label_names.txt": "".join(
                    f"fine{i}\n" for i in range(100)
                ).encode(),
            },
        ),
    )
    return labels


def dtd(cache: Cache, manual: Path) -> dict[int, int]:
    names, files, labels = class_names("dtd"), {}, {}
    for split, wanted in (("train1", range(8)), ("val1", range(8, 12)), ("test1", range(12, 18))):
        lines = []
        for i in wanted:
            labels[i] = (5 * i) % 47
            path = f"{names[labels[i]]}/{names[labels[i]]}_{i:04d}.jpg"
            files[f"dtd/images/{path}"] = picture(i)
            lines.append(path)
        files[f"dtd/labels/{split}.txt"] = "\n".join(lines).encode()
    cache.place(
        "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        packed("gz", files),
    )
    return labels


def matlab(content: dict) -> bytes:
    file = io.BytesIO()
    scipy.io.savemat(file, content)
    return file.getvalue()


def oxford_flowers102(cache: Cache, manual: Path) -> dict[int, int]:
    base = "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/"
    labels = {i: (3 * i) % 102 for i in range(20)}
    cache.place(
        f"{base}102flowers.tgz",
        packed("gz", {f"jpg/image_{i + 1:05d}.jpg": picture(i) for i in labels}),
    )
    numbers = np.arange(1, 21)
    cache.place(
        f"{base}imagelabels.mat", matlab({"labels": np.array([labels[i] + 1 for i in labels])})
    )
    cache.place(
        f"{base}setid.mat",
        matlab({"trnid": numbers[:8], "valid": numbers[8:12], "tstid": numbers[12:]}),
    )
    return labels


def oxford_iiit_pet(cache: Cache, manual: Path) -> dict[int, int]:
    base = "https://thor.robots.ox.ac.uk/~vgg/data/pets"
    labels = {i: (5 * i) % 37 for i in range(20)}
    mask = io.BytesIO()
    PIL.Image.fromarray(np.ones((16, 16), np.uint8)).save(mask, "PNG")
    lines = [f"Breed_{i} {labels[i] + 1} {1 + i % 2} 1\n" for i in labels]
    box = "<xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax>"
    xml = (
        "<annotation><size><width>16</width><height>16</height></size>"
        f"<object><bndbox>{box}</bndbox></object></annotation>"
    )
    cache.place(
        f"{base}/images.tar.gz", packed("gz", {f"images/Breed_{i}.jpg": picture(i) for i in labels})
    )
    annotations = {
        "annotations/trainval.txt": "".join(lines[:14]).encode(),
        "annotations/test.txt": "".join(lines[14:]).encode(),
    }
    for i in labels:
        annotations[f"annotations/trimaps/Breed_{i}.png"] = mask.getvalue()
        annotations[f"annotations/xmls/Breed_{i}.xml"] = xml.encode()
    cache.place(f"{base}/annotations.tar.gz", packed("gz", annotations))
    return labels


def sun397(cache: Cache, manual: Path) -> dict[int, int]:
    names, files, labels, i = class_names("sun397/tfds"), {}, {}, 0
    for split, count in (("tr", 10), ("va", 4), ("te", 6)):
        file = tfds.core.tfds_path(f"image_classification/sun397_tfds_{split}.txt")
        for name in file.read_text().split("\n")[: 997 * count : 997]:
            files[f"SUN397{name.strip()}"] = picture(i)
            labels[i] = names.index(name.rpartition("/")[0])
            i += 1
    base = "https://vision.princeton.edu/projects/2010/SUN/"
    cache.place(f"{base}SUN397.tar.gz", packed("gz", files))
    cache.place(f"{base}download/Partitions.zip", packed("zip", {"Training_01.txt": b""}))
    return labels


def svhn_cropped(cache: Cache, manual: Path) -> dict[int, int]:
    labels = {i: (3 * i) % 10 for i in range(30)}
    for name, wanted in (("train", range(20)), ("test", range(20, 28)), ("extra", range(28, 30))):
        x = np.stack([pixels(i, 32, 32) for i in wanted], axis=-1)
        y = np.array([[labels[i] or 10] for i in wanted])  # the digit 0 is stored as 10
        cache.place(
            f"http://ufldl.stanford.edu/housenumbers/{name}_32x32.mat", matlab({"X": x, "y": y})
        )
    return labels


def patch_camelyon(cache: Cache, manual: Path) -> dict[int, int]:
    labels = {i: (i // 2) % 2 for i in range(20)}
    base = "https://zenodo.org/record/2546921/files/camelyonpatch_level_2_split_"
    for split, wanted in (("train", range(10)), ("valid", range(10, 14)), ("test", range(14, 20))):
        arrays = {
            "x": np.stack([pixels(i, 96, 96) for i in wanted]),
            "y": np.array([labels[i] for i in wanted], np.uint8).reshape(-1, 1, 1, 1),
        }
        for key, array in arrays.items():
            file = io.BytesIO()
            with h5py.File(file, "w") as opened:
                opened[key] = array
            cache.place(f"{base}{split}_{key}.h5.gz", gzip.compress(file.getvalue()))
    return labels


def eurosat(cache: Cache, manual: Path) -> dict[int, int]:
    names = class_names("eurosat/rgb")
    labels = {i: i % 10 for i in range(20)}
    cache.place(
        "http://madm.dfki.de/files/sentinel/EuroSAT.zip",
        packed(
            "zip",
            {
                f"2750/{names[k]}/{names[k]}_{i}.jpg": picture(i, size=(64, 64))
                for i, k in labels.items()
            },
        ),
    )
    return labels


def resisc45(cache: Cache, manual: Path) -> dict[int, int]:
    names = class_names("resisc45")
    labels = {i: 2 * i for i in range(20)}
    for i, k in labels.items():
        folder = manual / "NWPU-RESISC45" / names[k]
        folder.mkdir(parents=True)
        (folder / f"{names[k]}_{i:03d}.jpg").write_bytes(picture(i, size=(256, 256)))
    return labels


def diabetic_retinopathy_detection(cache: Cache, manual: Path) -> dict[int, int]:
    labels = {i: i % 5 for i in range(16)}
    for folder, wanted in (("sample", range(2)), ("train", range(8)), ("test", range(8, 16))):
        (manual / folder).mkdir()
        for i in wanted:
            (manual / folder / f"{i}_left.jpeg").write_bytes(picture(i, size=(40, 40)))

    def table(columns: list[str], rows: list[list]) -> str:
        text = io.StringIO()
        csv.writer(text).writerows([columns, *rows])
        return text.getvalue()

    train = [[f"{i}_left", labels[i]] for i in range(8)]
    (manual / "trainLabels.csv").write_text(table(["image", "level"], train))
    test = [[f"{i}_left", labels[i], "Public" if i < 11 else "Private"] for i in range(8, 16)]
    cache.place(
        "https://storage.googleapis.com/kaggle-forum-message-attachments/90528/2877/"
        "retinopathy_solution.csv",
        table(["image", "level", "Usage"], test).encode(),
    )
    return {}  # the preparation changes the pictures


CLEVR_DISTANCES = (7.5, 8.2, 8.7, 9.2, 9.7, 10.5, 8.0, 10.0)


def clevr(cache: Cache, manual: Path) -> dict[int, int]:
    files: dict[str, bytes] = {}
    for split, wanted in (("train", range(16)), ("val", range(16, 24)), ("test", range(24, 26))):
        scenes, questions = [], []
        for i in wanted:
            name = f"CLEVR_{split}_{i:06d}.png"
            files[f"CLEVR_v1.0/images/{split}/{name}"] = picture(i, "PNG")
            near = CLEVR_DISTANCES[i % 8]
            objects = [
                {
                    "color": "gray",
                    "material": "rubber",
                    "shape": "cube",
                    "size": "small",
                    "rotation": 0.0,
                    "pixel_coords": [1, 2, near + (0 if k == 1 else 3 + k)],
                    "3d_coords": [0.0, 0.0, 0.0],
                }
                for k in range(3 + i % 8)
            ]
            scenes.append({"objects": objects})
            questions.append({"image_filename": name, "question": "how many?", "answer": "3"})
        base = "CLEVR_v1.0"
        files[f"{base}/questions/CLEVR_{split}_questions.json"] = json.dumps(
            {"questions": questions}
        ).encode()
        if split != "test":
            files[f"{base}/scenes/CLEVR_{split}_scenes.json"] = json.dumps(
                {"scenes": scenes}
            ).encode()
    cache.place("https://dl.fbaipublicfiles.com/clevr/CLEVR_v1.0.zip", packed("zip", files))
    return {}


def dmlab(cache: Cache, manual: Path) -> dict[int, int]:
    import tensorflow as tf

    labels, files = {i: i % 6 for i in range(18)}, {}
    for split, wanted in (
        ("train", range(8)),
        ("validation", range(8, 12)),
        ("test", range(12, 18)),
    ):
        file = manual / f"{split}.tfrecord"
        with tf.io.TFRecordWriter(str(file)) as writer:
            for i in wanted:
                features = {
                    "image": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[picture(i, size=(360, 480))])
                    ),
                    "filename": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[f"{i}.jpg".encode()])
                    ),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[labels[i]])),
                }
                record = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(record.SerializeToString())
        files[f"dmlab-{split}.tfrecord-00000-of-00001"] = file.read_bytes()
    cache.place("https://storage.googleapis.com/dmlab-vtab/dmlab.tar.gz", packed("gz", files))
    return labels


def dsprites(cache: Cache, manual: Path) -> dict[int, int]:
    count = 40
    images = np.zeros((count, 64, 64), np.uint8)
    for i in range(count):
        images[i, : i + 1] = 1  # as many white rows as its number and one more
    classes = np.zeros((count, 6), np.int64)
    classes[:, 3] = np.arange(count)  # every orientation
    classes[:, 4] = np.arange(count) % 32
    file = io.BytesIO()
    with h5py.File(file, "w") as opened:
        opened["imgs"] = images
        opened["latents/classes"] = classes
        opened["latents/values"] = classes.astype(np.float64)
    cache.place(
        "https://github.com/deepmind/dsprites-dataset/blob/master/"
        "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.hdf5?raw=true",
        file.getvalue(),
    )
    return {}


def kitti(cache: Cache, manual: Path) -> dict[int, int]:
    base = "https://s3.eu-central-1.amazonaws.com/avg-kitti"
    images, annotations = {}, {}
    for i in range(20):
        images[f"training/image_2/{i:06d}.png"] = picture(i, "PNG")
        rows = KITTI_OBJECTS[i % len(KITTI_OBJECTS)]
        text = "".join(
            f"{kind} 0.0 0 0.0 1.0 1.0 9.0 9.0 1.5 1.6 3.7 0.0 1.0 {depth} 0.0\n"
            for kind, depth in rows
        )
        annotations[f"training/label_2/{i:06d}.txt"] = text.encode()
    cache.place(f"{base}/data_object_image_2.zip", packed("zip", images))
    cache.place(f"{base}/data_object_label_2.zip", packed("zip", annotations))
    lines = "".join(f"2011_09_26 drive_{i // 2:04d} {i:010d}\n" for i in range(20))
    numbers = ",".join(str(i + 1) for i in range(20))
    cache.place(
        f"{base}/devkit_object.zip",
        packed(
            "zip",
            {
                "mapping/train_rand.txt": numbers.encode(),
                "mapping/train_mapping.txt": lines.encode(),
            },
        ),
    )
    return {}


#: (type, depth in metres) of the objects of image i; a pedestrian is no vehicle.
KITTI_OBJECTS = (
    (("Car", 5.0), ("Truck", 30.0)),
    (("Pedestrian", 2.0), ("Van", 8.5)),
    (("Truck", 25.0), ("Cyclist", 1.0)),
    (("Pedestrian", 3.0), ("DontCare", 1.0)),
    (("Car", 8.0), ("Car", 20.0)),
)


def smallnorb(cache: Cache, manual: Path) -> dict[int, int]:
    base = "https://cs.nyu.edu/~ylclab/data/norb-v1.0-small/smallnorb-5x"

    def binary(array: np.ndarray) -> bytes:
        magic = 507333717 if array.dtype == np.uint8 else 507333716
        dims = [*array.shape, *([1] * (3 - array.ndim))]
        head = np.array([magic, array.ndim, *dims], "<i4").tobytes()
        return head + array.tobytes()

    for kind, wanted in (
        ("46789x9x18x6x2x96x96-training", range(18)),
        ("01235x9x18x6x2x96x96-testing", range(18, 38)),
    ):
        images = np.stack([np.full((2, 96, 96), grey(i), np.uint8) for i in wanted])
        info = np.array([[0, i % 9, 2 * (i % 18), 0] for i in wanted], "<i4")
        parts = {"dat": images, "cat": np.zeros(len(images), "<i4"), "info": info}
        for part, array in parts.items():
            cache.place(f"{base}{kind}-{part}.mat.gz", gzip.compress(binary(array)))
    return {}


BUILDERS = {
    task.dataset: globals()[task.dataset.partition("/")[0].partition(":")[0]]
    for task in vtab.TASKS.values()
}


def main(data_dir: str, manual_dir: str) -> None:
    """Places all archives, prepares all data sets, and writes labels.json:
    {data set: {image: label}}. DTD is also prepared as TFRecord, in DATA_DIR_tfrecord."""
    from vit_jax.data import prepare

    labels = {}
    for dataset, build in BUILDERS.items():
        manual = Path(manual_dir) / build.__name__
        manual.mkdir(parents=True)
        labels[dataset] = build(Cache(Path(data_dir), build.__name__), manual)
        prepare.prepare_tfds(dataset, data_dir, manual_dir=str(manual), say=lambda text: None)
    tfds.builder("dtd", data_dir=f"{data_dir}_tfrecord").download_and_prepare(
        file_format="tfrecord", download_dir=f"{data_dir}/downloads"
    )
    (Path(manual_dir) / "labels.json").write_text(json.dumps(labels))


if __name__ == "__main__":
    import sys

    main(sys.argv[1], sys.argv[2])
