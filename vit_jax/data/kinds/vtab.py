"""VTAB-1k: nineteen tasks with 1,000 training images each (section 4.1; Zhai et al., 2019).

`vtab:TASK` has the splits train800, val200, train800val200 and test. A subset is the first records
of a TFDS split; a label is a class of the data set or a rule below. This module defines only the
examples; training is in configs/vtab.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from vit_jax.data.decode import decode
from vit_jax.data.kinds.tfds import TfdsSplits
from vit_jax.data.source import Source, Stored, Subset, TableSource, Union
from vit_jax.data.splits import Splits
from vit_jax.errors import UserError, nearest

TRAIN, VALIDATION = 800, 200  # examples of a task
CLEVR_DISTANCES = (8.0, 8.5, 9.0, 9.5, 10.0)
KITTI_DISTANCES = (8.0, 20.0, 999.0)
KITTI_VEHICLES = 3  # Car, Van and Truck come first among the types
KITTI_NONE = 1000.0


def thresholds_below(value: float, thresholds: tuple[float, ...]) -> int:
    """The class of a distance: the number of thresholds below `value`."""
    return sum(threshold < value for threshold in thresholds)


def clevr_count(row: dict) -> int:
    """Three to ten objects are classes 0 to 7."""
    return len(row["objects"]["pixel_coords"]) - 3


def clevr_distance(row: dict) -> int:
    """The closest object's distance to the camera, in six bins."""
    nearest_object = np.asarray(row["objects"]["pixel_coords"])[:, 2].min()
    return thresholds_below(float(nearest_object), CLEVR_DISTANCES)


def kitti_distance(row: dict) -> int:
    """The closest vehicle's distance in metres, in three bins; the last class is "no vehicle"."""
    objects = row["objects"]
    vehicle = np.asarray(objects["type"]) < KITTI_VEHICLES
    depth = np.asarray(objects["location"]).reshape(-1, 3)[vehicle, 2]
    return thresholds_below(float(depth.min(initial=KITTI_NONE)), KITTI_DISTANCES)


def dsprites_location(row: dict) -> int:
    """32 horizontal positions in 16 bins."""
    return int(row["label_x_position"]) * 16 // 32


def dsprites_orientation(row: dict) -> int:
    """40 orientations in 16 bins."""
    return int(row["label_orientation"]) * 16 // 40


class Task(NamedTuple):
    """One row of the benchmark.

    dataset: its TFDS name. validation: (split, fraction to skip) whose next 200 records are val200.
    test: (split, fraction to skip). label: a key of the record, or a rule. manual: what the user
    must download, "" if TFDS does it. scale: of pixel values (dSprites are 0 and 1).
    """

    title: str
    group: str
    dataset: str
    num_classes: int
    validation: tuple[str, float]
    test: tuple[str, float]
    test_size: int
    label: str | Callable[[dict], int] = "label"
    manual: str = ""
    scale: int = 1


_small_norb = functools.partial(
    Task,
    dataset="smallnorb",
    validation=("test", 0.0),
    test=("test", 0.5),
    test_size=12_150,
)
_dsprites = functools.partial(
    Task,
    dataset="dsprites",
    num_classes=16,
    validation=("train", 0.8),
    test=("train", 0.9),
    test_size=73_728,
    scale=255,
)
_clevr = functools.partial(
    Task, dataset="clevr", validation=("train", 0.9), test=("validation", 0.0), test_size=15_000
)
_OWN, _TEST = ("validation", 0.0), ("test", 0.0)

TASKS: dict[str, Task] = {
    "caltech101": Task(
        "Caltech101", "natural", "caltech101", 102, ("train", 0.9), _TEST, 6_084
    ),
    "cifar100": Task("CIFAR-100", "natural", "cifar100", 100, ("train", 0.9), _TEST, 10_000),
    "dtd": Task("DTD", "natural", "dtd", 47, _OWN, _TEST, 1_880),
    "flowers102": Task("Flowers102", "natural", "oxford_flowers102", 102, _OWN, _TEST, 6_149),
    "pets": Task("Pets", "natural", "oxford_iiit_pet", 37, ("train", 0.8), _TEST, 3_669),
    "sun397": Task("Sun397", "natural", "sun397/tfds", 397, _OWN, _TEST, 21_750),
    "svhn": Task("SVHN", "natural", "svhn_cropped", 10, ("train", 0.9), _TEST, 26_032),
    "camelyon": Task("Camelyon", "specialized", "patch_camelyon", 2, _OWN, _TEST, 32_768),
    "eurosat": Task(
        "EuroSAT", "specialized", "eurosat/rgb", 10, ("train", 0.6), ("train", 0.8), 5_400
    ),
    "resisc45": Task(
        "Resisc45", "specialized", "resisc45", 45, ("train", 0.6), ("train", 0.8), 6_300,
        manual="NWPU-RESISC45, unpacked as MANUAL/NWPU-RESISC45",
    ),
    "retinopathy": Task(
        "Retinopathy", "specialized", "diabetic_retinopathy_detection/btgraham-300", 5, _OWN,
        _TEST, 42_670,
        manual="Kaggle's diabetic-retinopathy-detection: MANUAL/train, test, sample and "
        "trainLabels.csv",
    ),
    "clevr_count": _clevr("Clevr-Count", "structured", num_classes=8, label=clevr_count),
    "clevr_distance": _clevr("Clevr-Dist", "structured", num_classes=6, label=clevr_distance),
    "dmlab": Task("DMLab", "structured", "dmlab", 6, _OWN, _TEST, 22_735),
    "dsprites_location": _dsprites("dSpr-Loc", "structured", label=dsprites_location),
    "dsprites_orientation": _dsprites("dSpr-Ori", "structured", label=dsprites_orientation),
    "kitti_distance": Task(  # the benchmark used 3.1.0, which TFDS cannot prepare any more
        "KITTI-Dist", "structured", "kitti", 4, _OWN, _TEST, 711, label=kitti_distance
    ),
    "smallnorb_azimuth": _small_norb(
        "sNORB-Azim", "structured", num_classes=18, label="label_azimuth"
    ),
    "smallnorb_elevation": _small_norb(
        "sNORB-Elev", "structured", num_classes=9, label="label_elevation"
    ),
}  # fmt: skip
GROUPS = ("natural", "specialized", "structured")


def find_task(name: str) -> Task:
    """The task of a name.

    Raises:
      UserError: there is none; names the nearest.
    """
    if name not in TASKS:
        raise UserError(
            f"There is no VTAB task {name!r}; there are {', '.join(TASKS)}.{nearest(name, TASKS)}"
        )
    return TASKS[name]


class ReadExample:
    """Image and label of a row of a task; picklable."""

    def __init__(self, task: str):
        self.task = task

    def __call__(self, row: dict) -> tuple[Stored, int]:
        task = TASKS[self.task]
        label = row[task.label] if isinstance(task.label, str) else task.label(row)
        image = row["image"]
        if task.scale != 1:
            image = decode(image, self.task) * np.uint8(task.scale)
        return image, int(label)


def ranges(task: Task, sizes: dict[str, int]) -> dict[str, list[tuple[str, range]]]:
    """{split of the task: [(TFDS split, its records), ...]}, given the sizes of splits.

    Fractions are rounded down, as in the benchmark's own code.
    """

    def part(split: str, share: float, count: int | None) -> tuple[str, range]:
        size = sizes[split]
        start = int(size * share)
        return split, range(start, size if count is None else min(start + count, size))

    train = part("train", 0.0, TRAIN)
    validation = part(*task.validation, VALIDATION)
    return {
        "train800val200": [train, validation],
        "train800": [train],
        "val200": [validation],
        "test": [part(*task.test, None)],
    }


def size_remarks(task: Task, sizes: dict[str, int]) -> list[str]:
    """How a task's splits differ from the benchmark's, as notes; [] if they do not."""
    found = {
        name: sum(len(rows) for _, rows in parts) for name, parts in ranges(task, sizes).items()
    }
    expected = {"train800val200": TRAIN + VALIDATION, "test": task.test_size}
    return [
        f"{name} has {found[name]:,} examples, the benchmark's has {wanted:,}"
        for name, wanted in expected.items()
        if found[name] != wanted
    ]


def open_vtab(name: str, data_dir: str | None, options: Mapping[str, str]) -> Splits:
    """A task of VTAB-1k by its name, from its TFDS data set."""
    task = find_task(name)
    stored = TfdsSplits(task.dataset, data_dir)
    missing = {"train", task.validation[0], task.test[0]} - set(stored.names())
    if missing:
        raise UserError(
            f"vtab:{name}: tfds:{task.dataset} has no split {', '.join(sorted(missing))}; "
            "prepare it again."
        )
    version, names = str(stored.builder.info.version), None
    if isinstance(task.label, str):
        names = getattr(stored.builder.info.features[task.label], "names", None)
    names = names or list(map(str, range(task.num_classes)))
    if len(names) != task.num_classes:
        raise UserError(
            f"vtab:{name}: tfds:{task.dataset} {version} has {len(names)} classes and the "
            f"benchmark {task.num_classes}; prepare the version of the benchmark."
        )
    sizes = {split: info.num_examples for split, info in stored.builder.info.splits.items()}
    read, opened = ReadExample(name), {}

    def table(split: str) -> TableSource:
        if split not in opened:
            opened[split] = TableSource(
                stored.rows(split),
                read,
                names,
                spec=f"tfds:{task.dataset}[{split}]",
                version=version,
                stored=[(f"tfds:{task.dataset}/{version}/{split}", range(sizes[split]))],
            )
        return opened[split]

    splits: dict[str, Source] = {}
    for split, parts in ranges(task, sizes).items():
        spec = f"vtab:{name}[{split}]"
        pieces = [
            Subset(table(part), np.arange(rows.start, rows.stop), spec) for part, rows in parts
        ]
        splits[split] = pieces[0] if len(pieces) == 1 else Union(pieces, spec)
    return Splits(f"vtab:{name}", splits)
