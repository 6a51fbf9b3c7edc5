"""The commands as a user runs them: train, evaluate, predict, on real image files."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from vit_jax.cli import COMMANDS, main

COLOURS = {"blue": (30, 40, 200), "green": (20, 180, 60), "red": (210, 40, 30)}


def write_images(root, count):
    rng = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            noise = rng.integers(-20, 20, (20, 24, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            PIL.Image.fromarray(pixels).save(root / name / f"{i}.png")


TRAIN = [
    "--config.model.variant=debug",
    "--config.batch_size=8",
    "--config.total_steps=30",
    "--config.schedule.warmup_steps=2",
    "--config.schedule.learning_rate=0.1",
    "--config.augment.resize=36",
]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    write_images(root / "train", 12)
    write_images(root / "test", 5)
    return root


@pytest.fixture(scope="module")
def run(images, tmp_path_factory):
    """A finished fine-tuning run that tells three colours apart."""
    workdir = tmp_path_factory.mktemp("run")
    config = f"--config=configs/finetune.py:debug,folder:{images},32"
    assert main(["train", config, f"--workdir={workdir}", *TRAIN]) == 0
    return workdir


def test_train_learns_and_says_what_it_did(run):
    evaluation = json.loads((run / "evaluation.json").read_text())["classification"]
    assert evaluation["num_examples"] == 15 and evaluation["accuracy"] > 0.9
    assert (run / "report.html").stat().st_size > 5_000


def test_evaluate(run, images, tmp_path, capsys):
    code = main(["evaluate", f"--checkpoint={run}", f"--data=folder:{images}", f"--out={tmp_path}"])
    assert code == 0
    assert "15" in capsys.readouterr().out
    record = json.loads((tmp_path / "evaluation.json").read_text())["classification"]
    trained = json.loads((run / "evaluation.json").read_text())["classification"]
    assert record["accuracy"] == trained["accuracy"] and record["num_examples"] == 15
    with open(tmp_path / "evaluation_classification_per_class.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == ["blue", "green", "red"]
    assert [int(row["examples"]) for row in rows] == [5, 5, 5]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_evaluate_counts_the_same_in_any_batch(run, images, tmp_path, batch):
    arguments = [f"--checkpoint={run}", f"--data=folder:{images}[train]", f"--out={tmp_path}"]
    assert main(["evaluate", *arguments, f"--batch_size={batch}"]) == 0
    record = json.loads((tmp_path / "evaluation.json").read_text())["classification"]
    assert record["num_examples"] == 36


def test_predict(run, images, capsys):
    image = images / "test" / "red" / "0.png"
    assert main(["predict", f"--checkpoint={run}", str(image), "--top_k=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(image) and len(lines) == 3 and lines[1].endswith("red")
    assert main(["predict", f"--checkpoint={run}", "--json", str(images / "test")]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(results) == 15 and all(len(r["predictions"]) == 3 for r in results)
    assert sum(r["predictions"][0]["class"] == r["image"].split("/")[-2] for r in results) >= 13
    assert sum(p["probability"] for p in results[0]["predictions"]) == pytest.approx(1)


def test_predict_reads_a_list(run, images, capsys, monkeypatch, tmp_path):
    names = [images / "test" / name / "1.png" for name in COLOURS]
    names[0] = shutil.copy(names[0], tmp_path / "\udcff\x0c.png")  # not UTF-8, and a form feed
    lines = io.BytesIO(b"\n".join(map(os.fsencode, names)) + b"\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(lines, encoding="utf-8"))
    assert main(["predict", f"--checkpoint={run}", "--json", "-"]) == 0
    out = [json.loads(line)["image"] for line in capsys.readouterr().out.splitlines()]
    assert out == [f"{tmp_path}/\\xff\\x0c.png", *map(str, names[1:])]


def fails(capsys, arguments, code, *parts):
    """Runs a command that must fail in one line that contains all of `parts`."""
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments, code, part",
    [
        ([], 2, None),
        (["tran"], 2, "Did you mean 'train'"),
        (["train"], 2, "--config=FILE is required, or data, e.g. folder:/data/pets"),
        (["train", "--config=configs/quickstart.py"], 2, "--workdir=DIR is required"),
        (["sweep", "digits", "--workdir=gs://b/1"], 2, "a path such as /shared/b/1 on NFS, or on"),
        (["train", "--workdir=/tmp/x"], 2, "--config=FILE is required"),
        (["train", "--workdri=/tmp/x"], 2, "workdri"),
        (["train", "--config=configs/quickstart.py", "--workdir=/tmp/x", "more"], 2, "'more'"),
        (["evaluate", "runs/a"], 2, "'runs/a'. A checkpoint is given as --checkpoint=PATH."),
        (["evaluate", "--data=digits"], 2, "--checkpoint=PATH is required"),
        (["evaluate", "--data=digits", "--checkpoint=x", "--suite="], 2, "--suite= is empty"),
        (["evaluate", "--data=digits", "--checkpoint=x", "--out=README.md"], 1, "is a file; give"),
        (["evaluate", "--checkpoint=x", "--out=README.md/x"], 1, "README.md is not a directory"),
        (["dedup", "--merge", "--out=README.md/x"], 1, "README.md is not a directory"),
        (["doctor", "--config.seed=1"], 2, "--config=FILE; give both"),
        (["doctor", "--data_dir=/tfds"], 2, "--data_dir is for --data=SPEC"),
        (["prepare", "vtab", "--shards=4"], 2, "--shards has no meaning for vtab"),
        (["dedup", "--out=x", "--batch_size=8"], 2, "--batch_size is for --checkpoint"),
        (["dedup", "--merge", "--out=x", "--threshold=nan"], 2, "--threshold=nan is not a number"),
        (["predict", "--checkpoint=/nowhere"], 2, "give images"),
        (["train", "--config=configs/quikstart.py", "--workdir=x"], 1, "quickstart.py"),
        (
            ["train", "--config=quickstart", "--config.pretrain=none", "--print_config"],
            1,
            "config.pretrain='none' must be a configuration",
        ),
        (["train", "--config=configs/finetune.py:B/16,cifar11", "--workdir=x"], 1, "'cifar10'"),
    ],
)
def test_wrong_usage_and_names(capsys, arguments, code, part):
    if part is None:
        assert main(arguments) == code
        assert "usage: vit-jax COMMAND" in capsys.readouterr().out
    else:
        fails(capsys, arguments, code, part)


@pytest.mark.parametrize(
    "words, part",
    [
        (["evaluate", "--data=folder:/no/where"], "There is no folder /no/where"),
        (["evaluate", "--data=digits[validation]"], "digits has no split 'validation'"),
        (["evaluate", "--data=digits[test]", "--calibrate"], "no validation split to choose a"),
        (["evaluate", "--suite=fewshot,knn", "--data=digits[test]"], "without a split"),
        (["evaluate", "--suite=probe,vtab", "--data=folder:/no/where"], "There is no folder"),
        (["evaluate", "--suite=real", "--data=digits", "--real_labels=/no/file"], "ReaL labels"),
        (["evaluate", "--suite=objectnet", "--data=/no/where"], "mappings/objectnet_to_"),
        (["predict", "/no/where.png"], "/no/where.png"),
        (["features", "--data=folder:/no/where", "--out={}/f.npy"], "There is no folder /no/where"),
        (["export", "--data=folder:/no/where", "--format=onnx", "--out={}/m.onnx"], "no folder"),
    ],
)
def test_the_data_are_looked_at_before_the_model_is_read(
    tmp_path, monkeypatch, capsys, words, part
):
    def read(*checkpoint):
        raise AssertionError("the model is read")

    monkeypatch.setattr("vit_jax.interop.load.read", read)
    arguments = [word.format(tmp_path) for word in words]
    fails(capsys, [*arguments, f"--checkpoint={tmp_path}"], 1, part)
    assert not any(tmp_path.iterdir())


def test_a_flag_may_begin_with_the_home_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "page.html").touch()
    fails(capsys, ["report", "x", "--out=~/page.html"], 1, f"{tmp_path}/page.html exists")


def test_a_pipe_to_another_process_that_breaks_is_an_error(monkeypatch, capsys):
    def broken(flags, arguments):
        raise BrokenPipeError("Broken pipe")

    monkeypatch.setattr("vit_jax.cli.report.main", broken)
    fails(capsys, ["report", "x"], 1, "BrokenPipeError")


@pytest.mark.parametrize(
    "override, part",
    [
        ("--config.data.dataset=folder:/no/where", "There is no folder /no/where"),
        ("--config.data.dataset=tfds:nothing", "no prepared TFDS data set 'nothing'"),
        ("--config.model.image_size=20", "image height 20 is not divisible by the patch size 8"),
        ("--config.model.variant=debgu", "Did you mean 'debug'"),
        ("--config.modle.variant=debug", "Did you mean 'model.variant'"),
        ("--config.optimizer.momentun=0.5", "Did you mean 'momentum'"),
        ("--config.total_steps=many", "--config.total_steps='many' is not of type int"),
        ("--config.init_from=/no/weights", "There is no checkpoint at '/no/weights'"),
        ("--config.mesh.fsdp=3", "does not cover"),
        ("--config.batch_size=7", "does not divide"),
        ("--config.model.num_classes=2", "less than the 3 classes"),
    ],
)
def test_bad_settings_leave_nothing_behind(images, tmp_path, capsys, override, part):
    config = f"--config=configs/finetune.py:debug,folder:{images},32"
    arguments = ["train", config, f"--workdir={tmp_path / 'run'}", *TRAIN, override]
    fails(capsys, arguments, 1, part)
    left = [path.name for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert left == []


def test_the_corrected_command_works_on_the_same_workdir(images, tmp_path, capsys):
    config = f"--config=configs/finetune.py:debug,folder:{images},32"
    arguments = ["train", config, f"--workdir={tmp_path / 'run'}", *TRAIN]
    fails(capsys, [*arguments, "--config.mesh.fsdp=3"], 1, "does not cover")
    assert main([*arguments, "--config.total_steps=3", "--debug"]) == 0


def test_a_damaged_image_is_named(run, tmp_path, capsys):
    write_images(tmp_path, 2)
    (tmp_path / "red" / "1.png").write_bytes(b"no image")
    fails(
        capsys,
        ["evaluate", f"--checkpoint={run}", f"--data=folder:{tmp_path}[train]"],
        1,
        "red/1.png cannot be decoded",
    )
    assert main(["predict", f"--checkpoint={run}", str(tmp_path / "red")]) == 1
    named, counted = capsys.readouterr().err.strip().splitlines()
    assert "red/1.png cannot be decoded" in named and "1 of 2 images" in counted


def test_an_empty_class_folder_is_named(tmp_path, capsys):
    write_images(tmp_path, 1)
    (tmp_path / "yellow").mkdir()
    config = f"--config=configs/finetune.py:debug,folder:{tmp_path},32"
    fails(
        capsys,
        ["train", config, f"--workdir={tmp_path / 'w'}", *TRAIN],
        1,
        "yellow has no images",
    )


def test_classes_that_the_model_does_not_have(run, tmp_path, capsys):
    write_images(tmp_path, 1)
    (tmp_path / "red").rename(tmp_path / "rad")
    (tmp_path / "blue").rename(tmp_path / "yellow")
    write_images(tmp_path / "blue", 1)
    fails(
        capsys,
        ["evaluate", f"--checkpoint={run}", f"--data=folder:{tmp_path}[train]"],
        1,
        "which the model does not know",
    )


def test_a_zero_head_is_refused(tmp_path, capsys, images):
    import vit_jax

    vit_jax.save_model(vit_jax.create_model("debug", num_classes=3), tmp_path)
    fails(
        capsys,
        ["predict", f"--checkpoint={tmp_path}", str(images / "test")],
        1,
        "all zeros",
        "fine-tune it first",
    )
    fails(
        capsys,
        ["evaluate", f"--checkpoint={tmp_path}", f"--data=folder:{images}"],
        1,
        "all zeros",
    )


def test_a_checkpoint_of_another_shape(run, images, tmp_path, capsys):
    config = f"--config=configs/finetune.py:debug,folder:{images},32"
    fails(
        capsys,
        [
            "train", config, f"--workdir={tmp_path}", *TRAIN, f"--config.init_from={run}",
            "--config.model.mlp_dim=32",
        ],
        1,
        "does not fit the model",
    )  # fmt: skip


def test_the_architecture_can_come_from_the_checkpoint(run, images, tmp_path, capsys):
    config = f"--config=configs/finetune.py:checkpoint,folder:{images},48"
    settings = ["--config.total_steps=2", "--config.schedule.warmup_steps=1"]
    settings += ["--config.batch_size=8", f"--workdir={tmp_path}"]
    assert main(["train", config, *settings, f"--config.init_from={run}"]) == 0
    assert "grid (4, 4) -> (6, 6)" in capsys.readouterr().out
    fails(capsys, ["train", config, *settings[:-1], f"--workdir={tmp_path}/b"], 1, "init_from")


def test_a_resumed_run_does_not_need_its_first_weights(run, images, tmp_path, capsys):
    shutil.copytree(run / "model", tmp_path / "weights")
    config = f"--config=configs/finetune.py:debug,folder:{images},32"
    arguments = ["train", config, *TRAIN, f"--workdir={tmp_path / 'run'}"]
    arguments += [f"--config.init_from={tmp_path / 'weights'}", "--config.total_steps=3"]
    assert main(arguments) == 0
    before = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "weights")
    shutil.rmtree(tmp_path / "run" / "model")  # as if it had stopped before the export
    capsys.readouterr()
    assert main(arguments) == 0
    assert "resumed from step 3" in capsys.readouterr().out
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    assert main([command, "--help"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"vit-jax {command}") and "example:" in out and "--debug" in out


def test_overview_and_version(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in COMMANDS)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("vit_jax ")


def test_the_module_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "vit_jax", "nothing"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no command 'nothing'" in done.stderr


def test_debug_shows_the_traceback(capsys):
    assert main(["predict", "--checkpoint=/nowhere", "/also/nowhere", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err
