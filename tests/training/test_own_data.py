"""One line: from a data set alone to a run, and the long command that does the same."""

import datetime
import json
import re
import shlex

import jax
import numpy as np
import PIL.Image
import pytest
from tiny_runs import contents, three_classes

from vit_jax import config as configuration, files, models
from vit_jax.cli import main
from vit_jax.data import specs
from vit_jax.errors import UserError
from vit_jax.interop import fetch, npz, published
from vit_jax.models import saved
from vit_jax.training import own_data
from vit_jax.training.setup import set_up

TODAY = f"{datetime.date.today():%Y-%m-%d}"
TINY = [
    "--config.total_steps=4", "--config.batch_size=8", "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=2", "--config.model.hidden_size=16",
    "--config.model.num_heads=2", "--config.model.mlp_dim=32", "--config.model.num_layers=1",
    "--config.model.image_size=16", "--config.memory=as_configured",
]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty directory, and a machine without published weights."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("VIT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


@pytest.fixture
def at_hand(tmp_path, monkeypatch):
    """A published name whose weights, small ones, are in the cache of downloads."""
    config = models.get_config("debug", num_classes=7, image_size=32)
    params = {
        path: np.full(leaf.shape, 0.01, np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    entry = published.Published("debug", 32, 7, ("gs://bucket/debug.npz",), "", 1)
    monkeypatch.setitem(published.PUBLISHED, "debug-imagenet21k", entry)
    monkeypatch.setattr(own_data, "ON_CPU", ("B/32", "debug"))
    place = fetch.place("gs://bucket/debug.npz")[1]
    place.parent.mkdir(parents=True)
    npz.save(place, config, params)
    monkeypatch.setattr(fetch, "download", None)  # nothing is asked of the network
    return "debug-imagenet21k"


def long_command(out):
    """The words after vit-jax of the command that was printed."""
    return shlex.split(re.search(r"equivalent to: vit-jax (.*)", out)[1])


def test_one_line_and_the_long_command_give_the_same_bytes(tmp_path, capsys):
    three_classes(tmp_path / "pets")
    assert main(["train", "folder:pets", *TINY]) == 0
    out = capsys.readouterr().out
    run = tmp_path / "runs" / f"pets-{TODAY}"
    words = long_command(out)
    assert f"--workdir=runs/pets-{TODAY}" in words
    assert out.splitlines()[-2:] == [
        f"evaluate: vit-jax evaluate --checkpoint={run}",
        f"classify images: vit-jax predict --checkpoint={run} IMAGE",
    ]
    again = [word.replace("--workdir=runs", "--workdir=again") for word in words]
    assert main(again) == 0
    first, second = (
        (place / "model" / "model.safetensors").read_bytes()
        for place in (run, tmp_path / "again" / f"pets-{TODAY}")
    )
    assert first == second
    config = json.loads((run / "config.json").read_text())
    # The test images choose nothing: what training is watched on is held out of the others.
    splits = config["data"]["train_split"], config["data"]["eval_split"]
    assert splits == specs.own_validation(f"folder:{tmp_path / 'pets'}") != ("train", "test")
    evaluated = json.loads((run / "evaluation.json").read_text())["classification"]
    assert "[test]" not in evaluated["data"] and evaluated["num_examples"] in (2, 3)


def test_the_next_commands_are_those_of_a_classifier(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("vit_jax.training.run.train", lambda *_, **__: {})
    assert main(["train", "digits", "--workdir=a run"]) == 0
    assert f"vit-jax predict '--checkpoint={tmp_path}/a run' IMAGE" in capsys.readouterr().out
    assert main(["train", "digits", "--config.objective.name=masked_patches"]) == 0
    assert "vit-jax predict" not in capsys.readouterr().out


def test_the_same_command_resumes_the_unfinished_run(tmp_path):
    three_classes(tmp_path / "pets")
    line = ["train", "folder:pets", *TINY]
    chosen = own_data.recipe("folder:pets", dict(word[9:].split("=") for word in TINY))
    config, notes = chosen.config(), []

    def found(settings=config, new=False):
        place, note = own_data.find_workdir(settings, "folder:pets", new=new)
        notes.append(note)
        return place

    first = found()
    assert str(first) == f"runs/pets-{TODAY}"
    # As a run is that was killed after its first steps.
    first.mkdir(parents=True)
    (first / "config.json").write_text(configuration.to_json(config))
    assert found() == first
    assert str(found(new=True)) == f"{first}-2"
    other = config.copy_and_resolve_references()
    other.seed = 1
    assert str(found(other)) == f"{first}-2"
    (first / "config.json").write_text("{")  # damaged: left alone
    assert str(found()) == f"{first}-2"
    (first / "config.json").write_text(configuration.to_json(config))
    assert main(line) == 0
    assert [path.name for path in (tmp_path / "runs").iterdir()] == [first.name]
    before = contents(first)
    assert str(found()) == f"{first}-2"
    assert contents(first) == before
    assert notes[:2] == ["run in", "resumes in"]
    assert notes[-1] == f"{first} has finished with these settings; a new run in"


def test_published_weights_at_hand_are_taken(tmp_path, at_hand, capsys):
    three_classes(tmp_path / "pets")
    assert main(["train", "folder:pets", "--print_config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["init_from"], config["model"]["variant"]) == (at_hand, "debug")
    # 24 images without a tenth: batches of 16 at the least rate, 500 steps on a CPU.
    assert (config["batch_size"], config["total_steps"]) == (16, 500)
    assert config["optimizer"]["name"] == "sgd" and config["schedule"]["learning_rate"] == 0.003
    assert config["model"]["image_size"] == 32 and not (tmp_path / "runs").exists()
    chosen = own_data.recipe("folder:pets", {})
    assert "weights: debug-imagenet21k, found on this machine" in chosen.notes
    assert "weights from debug-imagenet21k (debug)" in set_up(chosen.config()).notes


def test_weights_that_are_not_at_hand_are_not_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "download", None)
    chosen = own_data.recipe("digits", {})
    assert "init_from" not in chosen.overrides
    notes = " ".join(chosen.notes)
    assert "vit-jax weights get B/32-imagenet21k" in notes and "from scratch" in notes
    assert "none, as requested" in " ".join(own_data.recipe("digits", {"init_from": ""}).notes)


def test_a_given_checkpoint_is_fine_tuned_at_its_size(tmp_path):
    config = models.get_config("debug", num_classes=3, image_size=24)
    params = {
        path: np.zeros(leaf.shape, np.float32)
        for path, leaf in models.abstract_params(config).items()
    }
    saved.save(tmp_path / "mine", config, params)
    chosen = own_data.recipe("digits", {"init_from": str(tmp_path / "mine")})
    config = chosen.config()
    assert (config.model.variant, config.model.image_size) == ("checkpoint", 24)
    assert config.augment.resize == 28 and config.optimizer.name == "sgd"
    assert chosen.notes[-1].endswith("debug at 24 pixels; it sets the variant and the image size")
    sized = {"init_from": str(tmp_path / "mine"), "model.image_size": "32"}
    chosen = own_data.recipe("digits", sized)
    assert chosen.config().model.image_size == 32
    assert chosen.notes[-1].endswith("debug at 24 pixels; it sets the variant")


def test_settings_of_the_command_line_take_precedence():
    given = {
        "total_epochs": "2", "model.variant": "S/32", "model.image_size": "64",
        "accumulation_steps": "2", "schedule.learning_rate": "0.5",
    }  # fmt: skip
    config = own_data.recipe("digits", given).config()
    configuration.check(config)
    assert (config.total_steps, config.total_epochs) == (None, 2)
    assert (config.model.variant, config.model.image_size) == ("S/32", 64)
    assert config.model.hidden_size is None  # S/32 as it is
    assert (config.memory, config.schedule.learning_rate) == ("as_configured", 0.5)
    assert config.keep_best == "eval/accuracy"
    masked = {"objective.name": "masked_patches"}
    assert own_data.recipe("digits", masked).config().keep_best == ""


def test_several_labels_get_the_sigmoid_loss(tmp_path):
    rows = ["path,label"]
    for i in range(24):
        PIL.Image.fromarray(np.full((70, 90, 3), 10 * i, np.uint8)).save(tmp_path / f"{i}.png")
        rows.append(f"{i}.png,{'cat;dog' if i % 3 else 'cat'}")
    (tmp_path / "tags.csv").write_text("\n".join(rows))
    spec = "folder:tags.csv?separator=;"
    chosen = own_data.recipe(spec, {})
    config = chosen.config()
    assert config.loss.name == "sigmoid_cross_entropy" and config.loss.label_smoothing == 0
    assert set_up(config).plan.keep.metric == "eval/mAP"  # which is known before it is measured
    assert "pixels=70," in chosen.argument
    assert own_data.name_of(spec) == "tags"


@pytest.mark.parametrize(
    "spec, name",
    [
        ("digits", "digits"),
        ("folder:/data/my pets/", "my-pets"),
        ("tfds:cifar10:3.0.2", "cifar10"),
        ("hf:org/birds?image=img", "birds"),
        ("folder:/data/v1.5", "v1.5"),
    ],
)
def test_runs_are_named_after_their_data(spec, name):
    assert own_data.name_of(spec) == name


@pytest.mark.parametrize(
    "facts, expected",
    [
        # Table 4: Pets and Flowers, CIFAR, ImageNet
        ("images=3680,pixels=300,accelerator=true", (500, 512, 0.03, 384)),
        ("images=50000,pixels=32,accelerator=true", (10_000, 512, 0.01, 224)),
        ("images=1281167,pixels=375,accelerator=true", (20_000, 512, 0.03, 384)),
        ("images=3680,pixels=300,accelerator=true,variant=H/14", (500, 512, 0.03, 518)),
        ("images=3680,pixels=300,accelerator=true,resolution=224", (500, 512, 0.03, 224)),
        ("images=3680,pixels=300", (500, 32, 0.003, 224)),
        ("images=100,pixels=300,accelerator=true", (500, 64, 0.00375, 384)),
        ("images=3,pixels=300", (500, 8, 0.003, 224)),
    ],
)
def test_the_recipe_of_fine_tuning(facts, expected):
    c = configuration.load(f"configs/own.py:pretrained=true,{facts}")
    configuration.check(c)
    found = (c.total_steps, c.batch_size, c.schedule.learning_rate, c.model.image_size)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "facts, expected",
    [
        ("images=1293,pixels=8", (16, 4, 128, 1010)),
        ("images=45000,pixels=32", (32, 4, 128, 4688)),  # as configs/from_scratch_small.py
        ("images=3000,pixels=300", (64, 8, 128, 2344)),
        ("images=20,pixels=300", (64, 8, 8, 250)),
    ],
)
def test_the_recipe_from_scratch(facts, expected):
    c = configuration.load(f"configs/own.py:{facts}")
    configuration.check(c)
    found = (c.model.image_size, c.model.patch_size, c.batch_size, c.total_steps)
    assert found == expected


def test_strong_from_scratch_is_the_same_in_both_configs():
    own, small = (
        files.values_in(configuration.find_file(f"configs/{name}.py"))["STRONG"]
        for name in ("own", "from_scratch_small")
    )
    assert own[False] == small


@pytest.mark.parametrize(
    "words, code, part",
    [
        (["folder:nowhere"], 1, "nowhere"),
        (["pets"], 1, "Did you mean 'folder:pets'"),
        (["digits", "more"], 2, "unexpected argument 'more'"),
        (["digits", "--config=configs/quickstart.py"], 2, "'digits' beside --config"),
        (["digits", "--config.data.dataset=folder:/x"], 1, "given twice"),
        (["--config=folder:pets", "--workdir=x"], 2, "folder:pets is data, not a config"),
        (["--data=folder:pets"], 2, "It is an argument: vit-jax train folder:/data/pets."),
        (["digits", "--new", "--workdir=x"], 2, "--new and --workdir"),
        (["--config=configs/quickstart.py", "--new", "--workdir=x"], 2, "--new is for"),
        (["digits", "--config.batch_sise=3"], 1, "Did you mean 'batch_size'"),
        (["digits", "--config.init_from=/nowhere"], 1, "no checkpoint at '/nowhere'"),
        (["digits[train]"], 1, "without a split"),
        (["digits", "--config.batch_size=9"], 1, "8 would"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(words, code, part, tmp_path, capsys):
    three_classes(tmp_path / "pets", count=1)
    before = contents(tmp_path)
    assert main(["train", *words]) == code
    out = capsys.readouterr()
    err = out.err.strip().splitlines()
    assert len(err) == 1 and part in err[0], err
    assert contents(tmp_path) == before and not (tmp_path / "runs").exists()


def test_print_config_of_a_config_file(capsys):
    assert main(["train", "--config=configs/quickstart.py", "--print_config"]) == 0
    assert json.loads(capsys.readouterr().out)["total_epochs"] == 15.0
    assert main(["train", "digits", "--print_config"]) == 0
    text = capsys.readouterr().out
    assert text == configuration.to_json(own_data.recipe("digits", {}).config())
    assert jax.default_backend() == "cpu" and "own" not in json.loads(text)["init_from"]


@pytest.mark.parametrize("table", [True, False])
def test_a_split_that_is_not_used_is_named(tmp_path, table, capsys):
    """A misspelt "test" would otherwise be left out without a word."""
    root = three_classes(tmp_path / "pets", count=4)
    (root / "test").rename(root / "tset")
    data = f"folder:{root}"
    if table:
        files = sorted(root.glob("*/*/*.png"))
        rows = [f"{file},{file.parts[-2]},{file.parts[-3]}" for file in files]
        (root / "all.csv").write_text("\n".join(["path,label,split", *rows]))
        data += "/all.csv"
    assert main(["train", data, f"--workdir={tmp_path / 'run'}", *TINY]) == 0
    assert ("unused splits: tset" if table else "skipped beside train: tset") in (
        capsys.readouterr().out
    )


def test_own_validation_is_for_data_that_have_only_a_test_split(tmp_path):
    assert specs.own_validation("digits") == ("train[:90%]", "train[90%:]")
    root = three_classes(tmp_path / "pets", count=2)
    assert specs.own_validation(f"folder:{root}") is not None
    (root / "test").rename(root / "val")
    assert specs.own_validation(f"folder:{root}") is None
    with pytest.raises(UserError):
        specs.own_validation("folder:/nowhere")
