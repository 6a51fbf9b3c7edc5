"""VTAB-1k: what is an example of which task. The real builders need TensorFlow, once."""

import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data import prepare
from vit_jax.data.kinds import vtab
from vit_jax.errors import UserError

#: Sizes of the public data sets, as TFDS prepares them.
SIZES = {
    "caltech101": {"train": 3059, "test": 6084},
    "cifar100": {"train": 50_000, "test": 10_000},
    "pets": {"train": 3680, "test": 3669},
    "svhn": {"train": 73_257, "test": 26_032, "extra": 531_131},
    "eurosat": {"train": 27_000},
    "resisc45": {"train": 31_500},
    "clevr_count": {"train": 70_000, "validation": 15_000, "test": 15_000},
    "dsprites_location": {"train": 737_280},
    "smallnorb_azimuth": {"train": 24_300, "test": 24_300},
    "dtd": {"train": 1880, "validation": 1880, "test": 1880},
}


@pytest.mark.parametrize(
    "task, first",
    [
        ("caltech101", 2753),
        ("cifar100", 45_000),
        ("pets", 2944),
        ("svhn", 65_931),
        ("eurosat", 16_200),
        ("resisc45", 18_900),
        ("clevr_count", 63_000),
        ("dsprites_location", 589_824),
    ],
)
def test_the_validation_part_follows_the_training_share(task, first):
    found = vtab.ranges(vtab.TASKS[task], SIZES[task])
    assert found["train800val200"] == [("train", range(800)), ("train", range(first, first + 200))]
    assert vtab.size_remarks(vtab.TASKS[task], SIZES[task]) == []


def test_own_validation_splits_and_halves_of_test():
    found = vtab.ranges(vtab.TASKS["dtd"], SIZES["dtd"])
    assert found["val200"] == [("validation", range(200))]
    assert found["test"] == [("test", range(1880))]
    found = vtab.ranges(vtab.TASKS["smallnorb_azimuth"], SIZES["smallnorb_azimuth"])
    assert found["val200"] == [("test", range(200))]
    assert found["test"] == [("test", range(12_150, 24_300))]


def test_nineteen_tasks_in_three_groups():
    groups = [task.group for task in vtab.TASKS.values()]
    assert [groups.count(name) for name in vtab.GROUPS] == [7, 4, 8]
    with pytest.raises(UserError, match="clevr_count"):
        vtab.find_task("clevr_counts")


def test_label_rules():
    def clevr(*distances):
        return {"objects": {"pixel_coords": [np.array([0, 0, d]) for d in distances]}}

    assert vtab.clevr_count(clevr(9, 9, 9)) == 0 and vtab.clevr_count(clevr(*range(10))) == 7
    cases = {7.0: 0, 8.0: 0, 8.01: 1, 8.6: 2, 9.1: 3, 9.6: 4, 10.0: 4, 10.1: 5}
    for distance, wanted in cases.items():
        assert vtab.clevr_distance(clevr(99, distance, 50)) == wanted, distance

    def kitti(*objects):
        return {
            "objects": {
                "type": [kind for kind, _ in objects],
                "location": [np.array([0, 0, depth]) for _, depth in objects],
            }
        }

    assert vtab.kitti_distance(kitti((0, 5.0), (1, 50.0))) == 0
    assert vtab.kitti_distance(kitti((3, 5.0), (2, 20.0))) == 1  # a pedestrian is no vehicle
    assert vtab.kitti_distance(kitti((0, 20.5))) == 2
    assert vtab.kitti_distance(kitti((3, 5.0))) == 3 and vtab.kitti_distance(kitti()) == 3
    for i in range(32):
        assert vtab.dsprites_location({"label_x_position": i}) == i // 2
    bins = [vtab.dsprites_orientation({"label_orientation": i}) for i in range(40)]
    assert bins == [int(i / 2.5) for i in range(40)] and bins[-1] == 15


def test_a_task_that_is_not_prepared_says_how(tmp_path):
    with pytest.raises(UserError, match="vit-jax prepare tfds:dtd"):
        data.open_source("vtab:dtd", data_dir=str(tmp_path))
    report = prepare.readiness(str(tmp_path))
    assert len(report) == 19 and not any(ready for ready, _ in report.values())
    assert report["dtd"][1] == "vit-jax prepare vtab:dtd"
    assert "NWPU-RESISC45" in report["resisc45"][1] and "--manual_dir" in report["resisc45"][1]


# --- through the real builders ------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(data_dir, {data set: {image: label}}) of small archives that TFDS itself prepared."""
    if not importlib.util.find_spec("tensorflow"):
        pytest.skip("preparing needs TensorFlow: pip install 'vit_jax[prepare]'")
    root = tmp_path_factory.mktemp("vtab")
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("vtab_archives.py"), root / "tfds", root / "m"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return str(root / "tfds"), json.loads((root / "m" / "labels.json").read_text())


def which(record) -> int:
    """The number of a grey picture."""
    return round((data.decode(record["image"], record["name"]).mean() - 20) / 5)


def expected_label(task: str, record, labels: dict[str, int]) -> int:
    i = which(record)
    if task == "clevr_count":
        return i % 8
    if task == "clevr_distance":
        return [0, 1, 2, 3, 4, 5, 0, 4][i % 8]
    if task == "kitti_distance":
        return [0, 1, 2, 3, 0][i % 5]  # of KITTI_OBJECTS in vtab_archives.py
    if task == "smallnorb_azimuth":
        return i % 18
    if task == "smallnorb_elevation":
        return i % 9
    return labels[str(i)]


@pytest.mark.parametrize("task", vtab.TASKS)
def test_every_task_is_read_as_its_builder_wrote_it(prepared, task):
    data_dir, labels = prepared
    splits = {
        name: data.open_source(f"vtab:{task}[{name}]", data_dir=data_dir)
        for name in ("train800", "val200", "train800val200", "test")
    }
    both = len(splits["train800"]) + len(splits["val200"])
    assert len(splits["train800val200"]) == both and len(splits["test"]) > 0
    assert splits["test"].num_classes == vtab.TASKS[task].num_classes
    for source in splits.values():
        assert source.names() == [source[i]["name"] for i in range(len(source))]
        pickle.loads(pickle.dumps(source.class_names))
        for i in range(len(source)):
            record = source[i]
            assert 0 <= record["label"] < source.num_classes
            image = data.decode(record["image"], record["name"])
            if task.startswith("dsprites"):
                assert set(np.unique(image)) == {0, 255}
                number = int((image[:, 0, 0] == 255).sum()) - 1
                wanted = number % 32 // 2 if task.endswith("location") else int(number / 2.5)
                assert record["label"] == wanted
            elif task not in ("caltech101", "retinopathy"):  # equal or changed pictures
                stored = labels[vtab.TASKS[task].dataset]
                assert record["label"] == expected_label(task, record, stored)
    assert "tensorflow" not in sys.modules


def test_the_readiness_report_says_how_these_differ(prepared):
    report = prepare.readiness(prepared[0])
    assert all(ready for ready, _ in report.values())
    assert "the benchmark's has 1,880" in report["dtd"][1]


def test_tfrecord_is_converted_without_tensorflow(prepared):
    converted = f"{prepared[0]}_tfrecord"
    with pytest.raises(UserError, match="stored as TFRecord"):
        data.open_source("vtab:dtd", data_dir=converted)
    prepare.prepare_tfds("dtd", converted)
    for split in ("train800", "val200", "test"):
        mine, theirs = (
            data.open_source(f"vtab:dtd[{split}]", data_dir=where)
            for where in (converted, prepared[0])
        )
        assert [mine[i] for i in range(len(mine))] == [theirs[i] for i in range(len(theirs))]
    assert "tensorflow" not in sys.modules
