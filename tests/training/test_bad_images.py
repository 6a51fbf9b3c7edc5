"""Images that cannot be read: said before step 1, left out and counted where that is allowed."""

import io
import json

import numpy as np
import pytest
from tiny_runs import three_classes, train

from vit_jax import data
from vit_jax.cli import main
from vit_jax.data import image_check
from vit_jax.errors import UserError
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import run


@pytest.fixture
def folder(tmp_path):
    return three_classes(tmp_path / "data")


def spoil(file):
    file.write_bytes(file.read_bytes()[:40])
    return file


def test_a_bad_image_is_named_before_the_first_step(tmp_path, folder, capsys):
    bad = [spoil(folder / "train/c1/train3.png"), spoil(folder / "test/c2/test5.png")]
    workdir = tmp_path / "run"
    assert train(workdir, f"--config.data.dataset=folder:{folder}") == 1
    error = capsys.readouterr().err
    assert len(error.strip().splitlines()) == 1
    assert "c1/train3.png" in error and "48 images" in error and "2 cannot be read" in error
    assert "config.data.max_bad_images=2" in error
    assert not workdir.exists()
    advice = "--config.data.max_bad_images=2"
    assert train(workdir, f"--config.data.dataset=folder:{folder}", advice) == 0
    out = capsys.readouterr().out
    assert all(out.count(f"{file.name} cannot be decoded") == 1 for file in bad)
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    assert last["final"] and last["eval/num_examples"] == 23


def test_the_advice_of_the_message_works_in_mid_run(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.0)  # as in a data set that is too large for it
    given = [f"--config.data.dataset=folder:{folder}"]
    spoil(folder / "train/c1/train3.png")
    workdir = tmp_path / "run"
    long = ["--config.total_steps=12", "--config.checkpoint_every_steps=1"]
    assert train(workdir, *given, *long) == 1
    error = capsys.readouterr().err
    assert "c1/train3.png" in error and "config.data.max_bad_images" in error
    assert train(workdir, *given, *long, "--config.data.max_bad_images=1") == 0
    undisturbed = tmp_path / "undisturbed"
    assert train(undisturbed, *given, *long, "--config.data.max_bad_images=1") == 0
    model = "model/model.safetensors"
    assert (workdir / model).read_bytes() == (undisturbed / model).read_bytes()


def test_more_than_are_allowed_end_the_run(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.0)
    for label in range(3):
        spoil(folder / f"train/c{label}/train1.png")
    given = [f"--config.data.dataset=folder:{folder}", "--config.data.max_bad_images=2"]
    assert train(tmp_path / "run", *given) == 1
    assert "max_bad_images=3 to continue" in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
def test_the_next_record_takes_the_place_of_a_bad_one(folder, workers):
    source = data.open_source(f"folder:{folder}[train]")
    plain = data.make_transform(name="resize_flip", size=(8, 8), train=True)

    def epoch(on_bad=None):
        batches = data.train_batches(
            source, plain, batch_size=24, seed=0, num_workers=workers, on_bad=on_bad
        )
        try:
            return next(batches)
        finally:
            batches.close()

    whole = epoch()
    files = source.names()
    spoil(folder / "train" / "c1" / "train7.png")
    number = next(i for i, name in enumerate(files) if name.endswith("c1/train7.png"))
    said = []
    found = epoch(said.append)
    assert set(found) == {"image", "label"}
    assert len(said) == 1 and "c1/train7.png" in said[0]
    differs = np.flatnonzero((found["image"] != whole["image"]).any(axis=(1, 2, 3)))
    assert len(differs) == 1
    following = source[number + 1]
    want = plain.read(following["image"], following["name"], np.random.default_rng(0))
    np.testing.assert_array_equal(found["image"][differs[0]], want)
    assert found["label"][differs[0]] == following["label"]


def test_a_run_ends_if_all_images_are_bad(folder):
    for file in folder.glob("train/*/*.png"):
        spoil(file)
    source = data.open_source(f"folder:{folder}[train]")
    plain = data.make_transform(name="resize_flip", size=(8, 8), train=True)
    batches = data.train_batches(source, plain, batch_size=4, seed=0, on_bad=lambda text: None)
    with pytest.raises(UserError, match="consecutive records cannot be read"):
        next(batches)
    batches.close()


def test_the_check_of_images_is_bounded_in_time(folder):
    source = data.open_source(f"folder:{folder}[train]")
    plain = data.make_transform(name="resize", size=(8, 8), train=False)
    spoil(folder / "train/c0/train0.png")
    problems, looked = image_check.unreadable(source, plain, seconds=60)
    assert looked == 24 and len(problems) == 1 and "c0/train0.png" in problems[0]
    assert image_check.unreadable(source, plain, seconds=0) == ([], 0)
    assert image_check.unreadable(data.open_source("digits"), plain, seconds=60) == ([], 0)


def test_the_last_step_is_saved_before_it_is_evaluated(tmp_path, folder, capsys, monkeypatch):
    monkeypatch.setattr(run, "LOOK_SECONDS", 0.0)
    given = [f"--config.data.dataset=folder:{folder}"]
    file = folder / "test/c1/test3.png"
    good = file.read_bytes()
    spoil(file)
    workdir = tmp_path / "run"
    assert train(workdir, *given) == 1
    assert "c1/test3.png" in capsys.readouterr().err
    assert (workdir / "checkpoints" / "000000006").is_dir()
    file.write_bytes(good)
    assert train(workdir, *given) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    assert read_metrics(workdir / "metrics.jsonl")[-1]["eval/num_examples"] == 24


def test_a_record_without_a_label_is_named():
    class Withheld:
        spec, num_classes, class_names, fingerprint = "withheld", 2, ("a", "b"), "0"

        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {"image": np.zeros((8, 8, 3), np.uint8), "label": None, "name": f"w/{index}"}

    plain = data.make_transform(name="resize", size=(8, 8), train=False)
    with pytest.raises(UserError, match=r"w/\d has the label None"):
        next(data.eval_batches(Withheld(), plain, batch_size=4))


@pytest.fixture
def model(tmp_path):
    assert train(tmp_path / "model_run") == 0
    return tmp_path / "model_run"


def test_predict_and_features_skip_bad_images(tmp_path, folder, model, capsys):
    bad = spoil(folder / "train/c1/train3.png")
    files = sorted(folder.glob("train/c1/*.png"))
    gone = folder / "train/c1/train4.png"
    gone.chmod(0)
    capsys.readouterr()
    given = f"--checkpoint={model}"
    assert main(["predict", given, "--json", *map(str, files)]) == 1
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines() if line.startswith("{")]
    assert [row["image"] for row in rows] == list(map(str, files))
    failed = [row["image"] for row in rows if "error" in row]
    assert str(bad) in failed and len(failed) <= 2  # root reads what nobody may
    assert all(len(row["predictions"]) == 5 for row in rows if "error" not in row)
    assert str(bad) in captured.err and f"{len(failed)} of 8 images" in captured.err
    gone.chmod(0o644)
    out = tmp_path / "f.npy"
    assert main(["features", given, f"--data=folder:{folder}[train]", f"--out={out}"]) == 1
    assert "1 of 24 images could not be read" in capsys.readouterr().err
    features, labels = np.load(out), np.load(tmp_path / "f.labels.npy")
    names = data.open_source(f"folder:{folder}[train]").names()
    row = names.index("train/c1/train3.png")
    assert np.flatnonzero(labels < 0).tolist() == [row]
    assert np.isnan(features[row]).all() and np.isfinite(np.delete(features, row, 0)).all()


def test_blank_lines_are_skipped_and_an_empty_list_is_refused(model, folder, capsys, monkeypatch):
    image = folder / "train/c1/train3.png"
    capsys.readouterr()
    monkeypatch.setattr("sys.stdin", io.StringIO(f"\n{image}\n  \n\n"))
    assert main(["predict", f"--checkpoint={model}", "--json", "-"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert len(rows) == 1
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert main(["predict", f"--checkpoint={model}", "-"]) == 2
    assert "empty" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(["features", f"--checkpoint={model}"]) == 2


def test_the_loss_of_the_log_is_that_of_evaluate(tmp_path, capsys):
    workdir = tmp_path / "smoothed"
    assert train(workdir, "--config.loss.label_smoothing=0.1") == 0
    last = read_metrics(workdir / "metrics.jsonl")[-1]
    out = tmp_path / "e"
    given = [f"--checkpoint={workdir}", "--data=digits", "--suite=classification", f"--out={out}"]
    assert main(["evaluate", *given]) == 0
    found = json.loads((out / "evaluation.json").read_text())["classification"]
    assert last["eval/loss"] == pytest.approx(found["loss"], rel=1e-5)
    assert abs(last["eval/training_loss"] - last["eval/loss"]) > 1e-4


def test_an_image_of_an_evaluator_is_named_before_the_first_step(tmp_path, folder, capsys):
    other = three_classes(tmp_path / "other")
    spoil(other / "test/c0/test2.png")
    given = [
        f"--config.data.dataset=folder:{folder}",
        f"--config.evaluators.knn.data=folder:{other}",
        "--config.data.max_bad_images=9",
    ]
    assert train(tmp_path / "run", *given) == 1
    error = capsys.readouterr().err
    assert "c0/test2.png" in error and "config.evaluators" in error
    assert not (tmp_path / "run").exists()
