"""`vit-jax evaluate` with its other suites, on digits and on files."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

from vit_jax import models
from vit_jax.cli import main
from vit_jax.interop import native


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An untrained model with a random head of 4 classes: its features still tell digits apart."""
    directory = tmp_path_factory.mktemp("m")
    config = models.get_config("debug", num_classes=4, image_size=16, patch_size=4)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    params["head/kernel"] = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    native.save(directory, config, params)
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


def test_wrong_requests(checkpoint, capsys):
    base = ["evaluate", f"--checkpoint={checkpoint}", "--data=digits"]
    assert main([*base, "--suite=fewshots"]) == 1
    assert "Did you mean 'fewshot'" in capsys.readouterr().err
    assert main([*base, "--suite=fewshot", "--shots=1000"]) == 1
    assert "needs 1000 training examples of every class" in capsys.readouterr().err
    assert main([*base, "--suite=fewshot", "--shots=x"]) == 2
    assert main([*base, "--suite=fewshot", "--l2=x"]) == 1
