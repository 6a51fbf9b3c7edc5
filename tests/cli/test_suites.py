"""`vit-jax evaluate` with its other suites, on digits and on files."""

import json

import jax
import numpy as np
import PIL.Image
import pytest
import tfds_directory
import tiny_runs

from vit_jax import models
from vit_jax.cli import main
from vit_jax.errors import Diverged
from vit_jax.interop import load
from vit_jax.models import saved
from vit_jax.studies import study


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model with a random head of 4 classes: its features still tell digits apart."""
    directory = tmp_path_factory.mktemp("m")
    config = models.get_config("debug", num_classes=4, image_size=16, patch_size=4)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    params["head/kernel"] = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    saved.save(directory, config, params)
    return directory


def evaluation(out):
    return json.loads((out / "evaluation.json").read_text())


def test_fewshot_and_knn(checkpoint, tmp_path, capsys):
    arguments = [f"--checkpoint={checkpoint}", "--data=digits", f"--out={tmp_path}"]
    assert main(["evaluate", *arguments, "--suite=fewshot,knn", "--shots=5,25", "--k=1,5"]) == 0
    found = evaluation(tmp_path)
    rows = {row["shots"]: row for row in found["fewshot"]["results"]}
    assert set(rows) == {5, 25} and rows[5]["l2"] == 1024 and rows[5]["seeds"] == 3
    assert rows[25]["accuracy"] > rows[5]["accuracy"] > 0.2
    assert {row["k"]: row["accuracy"] > 0.4 for row in found["knn"]["results"]} == {
        1: True,
        5: True,
    }
    assert (tmp_path / "evaluation_fewshot.csv").exists()
    assert "25 shots" in capsys.readouterr().out


def test_fewshot_sweep_over_two_data_sets(checkpoint, tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 200))):
        for i in range(6):
            path = tmp_path / "data" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (16, 16), tuple(c + 5 * i for c in colour)).save(path)
    data = f"--data=digits,folder:{tmp_path / 'data'}"
    out = f"--out={tmp_path / 'out'}"
    arguments = [f"--checkpoint={checkpoint}", data, out, "--suite=fewshot", "--shots=1,5"]
    assert main(["evaluate", *arguments, "--l2=sweep", "--seeds=2"]) == 0
    rows = evaluation(tmp_path / "out")["fewshot"]["results"]
    assert len(rows) == 4
    for shots in (1, 5):  # one l2 for all data sets
        assert len({row["l2"] for row in rows if row["shots"] == shots}) == 1


def test_real(checkpoint, tmp_path, capsys):
    """Labels are by file name; the folder has its images in another order and in classes."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "val"
    names = [f"ILSVRC2012_val_{i:08d}.png" for i in range(1, 9)]
    for i, name in enumerate(names):
        path = folder / f"n{i % 4}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)).save(path)
    predictions = []
    for i, name in enumerate(names):
        main(["predict", f"--checkpoint={checkpoint}", "--json", str(folder / f"n{i % 4}" / name)])
        predictions.append(json.loads(capsys.readouterr().out)["predictions"][0]["label"])
    labels = [[p] for p in predictions]
    labels[2], labels[5] = [], [(predictions[5] + 1) % 4]
    (tmp_path / "real.json").write_text(json.dumps(labels))
    arguments = [
        "evaluate", f"--checkpoint={checkpoint}", "--suite=real", f"--out={tmp_path}",
        f"--real_labels={tmp_path / 'real.json'}",
    ]  # fmt: skip
    assert main([*arguments, f"--data=folder:{folder}[train]"]) == 0
    record = evaluation(tmp_path)["real"]
    assert record["num_scored"] == 7 and record["accuracy"] == pytest.approx(6 / 7)
    assert main([*arguments, "--data=digits[test]"]) == 1
    assert main([*arguments[:-1], f"--data=folder:{folder}[train]"]) == 1
    assert "needs --real_labels" in capsys.readouterr().err


def test_real_from_its_own_data_set(checkpoint, imagenet_model, tmp_path, capsys):
    """`imagenet2012_real` carries the labels; here in another order than its file names."""
    import tensorflow_datasets as tfds
    from array_record.python import array_record_module
    from tensorflow_datasets.proto import tf_example_pb2

    names = [f"n{i}" for i in range(4)]
    directory = tmp_path / "imagenet2012_real" / "1.0.0"
    directory.mkdir(parents=True)
    label = tfds.features.ClassLabel(names=names)
    tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(),
            "original_label": label,
            "real_label": tfds.features.Sequence(label),
            "file_name": tfds.features.Text(),
        }
    ).save_config(str(directory))
    file = directory / "imagenet2012_real-validation.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    rng = np.random.default_rng(0)
    every = list(range(1000))
    answers = [every, [], every, every, []]  # any answer is right, or none
    for i, labels in enumerate(answers):
        record = tf_example_pb2.Example()
        feature = record.features.feature
        image = rng.integers(0, 256, (16, 16, 3)).astype(np.uint8)
        feature["image"].bytes_list.value.append(tfds_directory.png(image))
        feature["original_label"].int64_list.value.append(i % 4)
        feature["real_label"].int64_list.value.extend(labels)
        feature["file_name"].bytes_list.value.append(b"x")
        writer.write(record.SerializeToString())
    writer.close()
    info = {
        "name": "imagenet2012_real",
        "version": "1.0.0",
        "fileFormat": "array_record",
        "supervisedKeys": {
            "tuple": {"items": [{"featureKey": "image"}, {"featureKey": "real_label"}]}
        },
        "splits": [
            {
                "name": "validation",
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "shardLengths": ["5"],
                "numBytes": "1",
            }
        ],
    }
    (directory / "dataset_info.json").write_text(json.dumps(info))
    arguments = [
        "evaluate", "--data=tfds:imagenet2012_real", f"--data_dir={tmp_path}", f"--out={tmp_path}",
        "--suite=real",
    ]  # fmt: skip
    assert main([*arguments, f"--checkpoint={checkpoint}"]) == 1
    assert "has 1000 and the model 4" in capsys.readouterr().err
    assert main([*arguments, f"--checkpoint={imagenet_model}"]) == 0
    record = evaluation(tmp_path)["real"]
    assert record["num_scored"] == 3 and record["accuracy"] == 1.0


# --- ObjectNet ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imagenet_model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("imagenet")
    config = models.get_config("debug", num_classes=1000, image_size=16, patch_size=4)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    rng = np.random.default_rng(1)
    params["head/kernel"] = rng.normal(size=(64, 1000)).astype(np.float32)
    saved.save(directory, config, params)
    return directory


@pytest.fixture
def objectnet_root(tmp_path):
    """The layout of objectnet-1.0: three objects, one of which ImageNet does not have."""
    root = tmp_path / "objectnet-1.0"
    (root / "mappings").mkdir(parents=True)
    lines = [f"class {i}, also {i}" for i in range(1000)]
    line_of = {str(i): 999 - i for i in range(1000)}  # the two orders differ

    def names(*numbers):
        return "; ".join(lines[999 - number] for number in numbers)

    contents = {
        "folder_to_objectnet_label.json": {"chair": "Chair", "mug": "Mug", "x_ray": "X-ray"},
        "objectnet_to_imagenet_1k.json": {"Chair": names(10, 20, 30), "Mug": names(40)},
        "pytorch_to_imagenet_2012_id.json": line_of,
    }
    for name, content in contents.items():
        (root / "mappings" / name).write_text(json.dumps(content))
    (root / "mappings" / "imagenet_to_label_2012_v2").write_text("\n".join(lines))
    rng = np.random.default_rng(0)
    for folder in ("chair", "mug", "x_ray"):
        for i in range(4):
            path = root / "images" / folder / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image = rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)
            PIL.Image.fromarray(image).save(path)
    return root


def test_objectnet(imagenet_model, objectnet_root, tmp_path, capsys):
    arguments = [
        "evaluate", f"--checkpoint={imagenet_model}", "--suite=objectnet", f"--out={tmp_path}",
    ]  # fmt: skip
    assert main([*arguments, f"--data={objectnet_root}"]) == 0
    record = evaluation(tmp_path)["objectnet"]
    assert (record["num_examples"], record["num_objects"], record["num_classes"]) == (8, 2, 4)
    assert record["top5_accuracy_known"] == 1.0  # four classes are known, so all are in five
    assert record["accuracy_all"] <= record["accuracy_known"]
    assert "8 images of 2 objects" in capsys.readouterr().out

    mapping = objectnet_root / "mappings" / "objectnet_to_imagenet_1k.json"
    mapping.write_text(json.dumps({"Chair": "no such class"}))
    assert main([*arguments, f"--data={objectnet_root}"]) == 1
    assert "has the class 'no such class', which the others lack" in capsys.readouterr().err
    mapping.write_text("[]")
    assert main([*arguments, f"--data={objectnet_root}"]) == 1
    assert "is damaged (not a JSON object)" in capsys.readouterr().err
    mapping.unlink()
    assert main([*arguments, f"--data={objectnet_root}"]) == 1
    assert "objectnet_to_imagenet_1k.json is missing" in capsys.readouterr().err


def test_objectnet_needs_imagenets_classes(checkpoint, objectnet_root, tmp_path, capsys):
    arguments = [f"--checkpoint={checkpoint}", f"--data={objectnet_root}", f"--out={tmp_path}"]
    assert main(["evaluate", *arguments, "--suite=objectnet"]) == 1
    assert "1,000 classes; this one has 4" in capsys.readouterr().err


# --- pictures, probe ----------------------------------------------------------------------------


def test_pictures_of_a_classifier(imagenet_model, tmp_path):
    config, params = load.read(str(imagenet_model))
    ten = models.replace(config, num_classes=10)
    params = dict(params) | {
        "head/kernel": params["head/kernel"][:, :10], "head/bias": params["head/bias"][:10],
    }  # fmt: skip
    saved.save(tmp_path / "ten", ten, params)
    arguments = [f"--checkpoint={tmp_path / 'ten'}", "--data=digits", f"--out={tmp_path}"]
    assert main(["evaluate", *arguments]) == 0
    for name in ("confusion", "reliability", "mistakes"):
        with PIL.Image.open(tmp_path / f"evaluation_{name}.png") as picture:
            assert min(picture.size) > 300 and len(picture.getcolors(1 << 20)) > 10


def test_probe(checkpoint, tmp_path, capsys):
    data, out = tiny_runs.three_classes(tmp_path / "data"), tmp_path / "out"
    arguments = [f"--checkpoint={checkpoint}", f"--data=folder:{data}", f"--out={out}"]
    assert main(["evaluate", *arguments, "--suite=probe"]) == 0
    assert evaluation(out)["probe"]["results"][0]["accuracy"] > 0.6
    assert "linear probe" in capsys.readouterr().out


# --- VTAB ---------------------------------------------------------------------------------------


@pytest.fixture
def two_tasks(tmp_path):
    """DTD and Flowers as TFDS prepares them, with few and small images."""
    import tensorflow_datasets as tfds

    rng = np.random.default_rng(0)
    for name, version, classes in (("dtd", "3.0.1", 47), ("oxford_flowers102", "2.1.1", 102)):
        feature = tfds.builder(name, data_dir="/nowhere").info.features["label"]
        rows = [
            (tfds_directory.png(rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)), i % classes)
            for i in range(24)
        ]
        splits = {"train": rows[:12], "validation": rows[12:16], "test": rows[16:]}
        tfds_directory.write(tmp_path / "tfds", name, splits, feature.names, version=version)
    return tmp_path / "tfds"


def test_vtab_runs_what_is_prepared_and_resumes(
    checkpoint, two_tasks, tmp_path, capsys, monkeypatch
):
    arguments = [
        "evaluate", f"--checkpoint={checkpoint}", "--suite=vtab", f"--out={tmp_path / 'out'}",
        f"--data_dir={two_tasks}", "--size=16", "--learning_rates=0.01,0.02",
        "--config.batch_size=8", "--config.total_steps=2", "--config.schedule.warmup_steps=1",
    ]  # fmt: skip
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "missing" in said and "vit-jax prepare vtab:caltech101" in said
    assert "partial: 2 of 19 tasks" in said and "benchmark's has 1,880" in said
    record = evaluation(tmp_path / "out")["vtab"]
    assert set(record["tasks"]) == {"dtd", "flowers102"} and record["num_tasks"] == 2
    assert not record["complete"] and "mean" not in record
    assert record["partial_mean"] == pytest.approx(np.mean(list(record["tasks"].values())))
    assert set(record["mean_on_val200"]) == {"0.01", "0.02"}
    run = json.loads((tmp_path / "out/vtab/dtd/final/config.json").read_text())
    assert run["data"]["train_split"] == "train800val200" and run["data"]["eval_split"] == "test"
    choose = json.loads((tmp_path / "out/vtab/dtd/choose_0.02/config.json").read_text())
    assert choose["data"]["eval_split"] == "val200"
    assert choose["schedule"]["learning_rate"] == 0.02
    assert (tmp_path / "out" / "evaluation_vtab.csv").read_text().count("natural") == 2

    assert main(arguments) == 0  # finished runs are not run again
    assert capsys.readouterr().out.count("nothing to do") == 6
    assert evaluation(tmp_path / "out")["vtab"] == record

    real, best = study.train, record["learning_rate"]

    def diverges(config, workdir):
        if config.schedule.learning_rate == 1.0:
            raise Diverged("not finite")
        return real(config, workdir)

    monkeypatch.setattr(study, "train", diverges)
    assert main([*arguments, f"--learning_rates={best},1", "--tasks=dtd"]) == 0
    assert "DTD, choose_1: diverged, counted as 0%" in capsys.readouterr().out
    assert evaluation(tmp_path / "out")["vtab"]["learning_rate"] == best


def test_vtab_without_data_or_with_an_unknown_task(checkpoint, tmp_path, capsys):
    arguments = [f"--checkpoint={checkpoint}", f"--out={tmp_path}", f"--data_dir={tmp_path}"]
    assert main(["evaluate", *arguments, "--suite=vtab"]) == 1
    assert "None of the 19 tasks is prepared" in capsys.readouterr().err
    assert main(["evaluate", *arguments, "--suite=vtab", "--tasks=dtdd"]) == 1
    assert "no VTAB task 'dtdd'" in capsys.readouterr().err


def test_invalid_options_are_refused(checkpoint, capsys):
    base = ["evaluate", f"--checkpoint={checkpoint}", "--data=digits"]
    assert main([*base, "--suite=fewshots"]) == 1
    assert "Did you mean 'fewshot'" in capsys.readouterr().err
    assert main([*base, "--suite=fewshot", "--shots=1000"]) == 1
    assert "needs 1000 training examples of every class" in capsys.readouterr().err
    assert main([*base, "--suite=fewshot", "--shots=x"]) == 2
    assert main([*base, "--suite=fewshot", "--l2=x"]) == 1
