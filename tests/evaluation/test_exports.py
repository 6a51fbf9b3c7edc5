"""Exported models are evaluated like the checkpoints that they were made from."""

import importlib.util
import json

import jax
import numpy as np
import pytest
from often import often
from tiny_runs import three_classes

from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation.forward import of_function
from vit_jax.interop import export
from vit_jax.models import saved
from vit_jax.runtime import sharding


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A model whose random head says something of digits; its images are cropped."""
    directory = tmp_path_factory.mktemp("m")
    preprocessing = (("name", "resize_center_crop"), ("resize", 18))
    config = models.get_config(
        "debug", num_classes=10, image_size=16, patch_size=4, preprocessing=preprocessing,
        labels=tuple(map(str, range(10))),
    )  # fmt: skip
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    params["head/kernel"] = np.random.default_rng(0).normal(size=(64, 10)).astype(np.float32)
    saved.save(directory, config, params)
    return directory


def evaluated(model, out, *more):
    given = ["evaluate", f"--checkpoint={model}", "--data=digits[test[:50]]", f"--out={out}", *more]
    assert main(given) == 0
    return json.loads((out / "evaluation.json").read_text())["classification"]


@pytest.mark.filterwarnings("ignore")  # the ONNX writer's own
@pytest.mark.parametrize("batch", often(7, weekly=[0]))
@pytest.mark.parametrize("form, name", [("stablehlo", "served"), ("onnx", "served.onnx")])
def test_an_exported_model_is_evaluated_like_its_checkpoint(
    checkpoint, tmp_path, capsys, form, name, batch
):
    """With an open batch, and with one that divides neither the images nor the devices."""
    if form == "onnx":
        pytest.importorskip("onnxruntime")
    model = tmp_path / name
    export.export(str(checkpoint), model, form, batch_size=batch)
    wanted = evaluated(checkpoint, tmp_path / "a", "--batch_size=16")
    found = evaluated(model, tmp_path / "b", "--batch_size=16")
    assert found.pop("checkpoint") == str(model) and wanted.pop("checkpoint") == str(checkpoint)
    assert found["variant"] == wanted["variant"] == "debug"
    assert found.pop("loss") == pytest.approx(wanted.pop("loss"), rel=1e-4)
    assert found.pop("calibration_error") == pytest.approx(
        wanted.pop("calibration_error"), abs=1e-4
    )
    assert found == wanted and found["num_examples"] == 50
    tables = ("a", "b")
    one, two = (
        (tmp_path / t / "evaluation_classification_per_class.csv").read_text() for t in tables
    )
    assert one == two
    if form == "onnx" and importlib.util.find_spec("openvino"):
        again = evaluated(model, tmp_path / "c", "--batch_size=16", "--runtime=openvino")
        assert again["accuracy"] == found["accuracy"] and again["num_examples"] == 50
    capsys.readouterr()
    for suite in ("fewshot", "knn", "probe"):
        given = [f"--checkpoint={model}", "--data=digits", f"--out={tmp_path}", f"--suite={suite}"]
        assert main(["evaluate", *given]) == 1
        assert f"{model} returns logits only" in capsys.readouterr().err


def test_a_runtime_is_for_exported_files(checkpoint, tmp_path, capsys):
    for command in ("evaluate", "features"):
        out = tmp_path / "f.npy"
        given = [f"--checkpoint={checkpoint}", "--data=digits", f"--out={out}"]
        assert main([command, *given, "--runtime=openvino"]) == 2
        assert "--runtime=openvino is for exported files, not" in capsys.readouterr().err
    assert not out.exists()


def test_invalid_and_untrained_exports_are_refused(checkpoint, tmp_path, capsys):
    def error(model):
        given = ["evaluate", f"--checkpoint={model}", "--data=digits", f"--out={tmp_path}"]
        assert main(given) == 1
        return capsys.readouterr().err

    served = tmp_path / "served"
    export.export(str(checkpoint), served, "stablehlo")
    facts = json.loads((served / "facts.json").read_text())
    changed = {**facts, "preprocessing": None}
    (served / "facts.json").write_text(json.dumps(changed))
    assert "facts.json is damaged" in error(served)
    del changed["checksum"]
    (served / "facts.json").write_text(json.dumps(changed))
    assert "has no preprocessing" in error(served)
    assert "There is no exported model" in error(tmp_path / "none.onnx")

    config, params = saved.load(checkpoint)
    params["head/kernel"] = np.zeros_like(params["head/kernel"])
    saved.save(tmp_path / "zero", config, params)
    export.export(str(tmp_path / "zero"), tmp_path / "untrained", "stablehlo")
    assert "the same for every image" in error(tmp_path / "untrained")


def test_export_says_the_accuracy_of_both(checkpoint, tmp_path, capsys):
    given = ["--format=stablehlo", f"--out={tmp_path / 's'}", "--data=digits[test[:50]]"]
    assert main(["export", f"--checkpoint={checkpoint}", "--batch_size=3", *given]) == 0
    accuracy = evaluated(checkpoint, tmp_path)["accuracy"]
    said = f"accuracy on digits[test[:50]]: {accuracy:.2%} before, {accuracy:.2%} after"
    assert said in capsys.readouterr().out


# --- images that cannot be read -----------------------------------------------------------------


@pytest.fixture
def spoilt(checkpoint, tmp_path):
    """A folder of which two of 24 test images cannot be read, and a model of its classes."""
    folder = three_classes(tmp_path / "images")
    for name in ("c0/test1.png", "c2/test5.png"):
        (folder / "test" / name).write_bytes(b"no image")
    config, params = saved.load(checkpoint)
    config = models.replace(config, num_classes=3, labels=("c0", "c1", "c2"))
    params |= {key: params[key][..., :3] for key in ("head/kernel", "head/bias")}
    saved.save(tmp_path / "three", config, params)
    return tmp_path / "three", folder


def test_bad_images_up_to_the_limit_are_skipped_and_counted(spoilt, tmp_path, capsys):
    model, folder = spoilt
    out = tmp_path / "out"
    given = [f"--checkpoint={model}", f"--data=folder:{folder}[test]", f"--out={out}"]
    assert main(["evaluate", *given]) == 1
    assert "test1.png" in (error := capsys.readouterr().err) or "test5.png" in error
    assert "--max_bad_images=1 to continue without it (it is 0)" in error
    assert main(["evaluate", *given, "--max_bad_images=1"]) == 1
    capsys.readouterr()
    assert main(["evaluate", *given, "--max_bad_images=2"]) == 0
    found = json.loads((out / "evaluation.json").read_text())["classification"]
    assert (found["num_examples"], found["num_bad_images"]) == (22, 2)
    assert "2 images cannot be read and were skipped" in capsys.readouterr().out

    whole = data.open_source(f"folder:{folder}[test]").names()
    for name in ("test/c0/test1.png", "test/c2/test5.png"):
        (folder / name).unlink()
    assert len(whole) == 24  # the numbers are those of the data without the two
    assert main(["evaluate", *given]) == 0
    again = json.loads((out / "evaluation.json").read_text())["classification"]
    assert "num_bad_images" not in again
    assert {**found, "num_bad_images": 0} == {**again, "num_bad_images": 0}


def test_labels_of_real_stay_with_their_images(spoilt, tmp_path, capsys):
    model, folder = spoilt
    files = sorted((folder / "test").rglob("*.png"))
    order = sorted(file.name for file in files)
    for number, file in enumerate(files):  # one order of names over all classes
        file.rename(file.with_name(f"val_{number:02d}.png"))
    files = sorted((folder / "test").rglob("*.png"), key=lambda file: file.name)
    assert len(order) == len(files) == 24
    capsys.readouterr()
    main(["predict", f"--checkpoint={model}", "--json", *map(str, files)])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line[:1] == "{"]
    labels = [[row["predictions"][0]["label"]] if "predictions" in row else [9] for row in lines]
    assert labels.count([9]) == 2
    (tmp_path / "real.json").write_text(json.dumps(labels))
    given = [
        "evaluate", f"--checkpoint={model}", f"--data=folder:{folder}[test]", "--suite=real",
        f"--out={tmp_path}", f"--real_labels={tmp_path / 'real.json'}",
    ]  # fmt: skip
    assert main(given) == 1
    assert main([*given, "--max_bad_images=2"]) == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())["real"]
    assert (found["accuracy"], found["num_scored"], found["num_bad_images"]) == (1.0, 22, 2)
    assert main([*given[:4], f"--out={tmp_path}", "--suite=knn", "--max_bad_images=2"]) == 2
    assert "--max_bad_images is not an option of --suite=knn" in capsys.readouterr().err


def test_names_of_another_models_classes_are_refused():
    def answer(images):
        return np.zeros((len(images), 3), np.float32), None

    facts = dict(name="m", image_size=(4, 4), channels=3, preprocessing=())
    with pytest.raises(UserError, match=r"m has 3 classes, but 1 class name\."):
        of_function(answer, sharding.make_mesh(), labels=("a",), **facts)
