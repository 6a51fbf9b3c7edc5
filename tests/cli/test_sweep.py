"""`vit-jax sweep`: the rate is chosen on held-out training images, and tested on the test split."""

import json
import shutil

import pytest
import tiny_runs

from vit_jax.cli import main
from vit_jax.data import specs
from vit_jax.errors import UserError
from vit_jax.studies import sweep
from vit_jax.training import own_data

SETTINGS = [
    "--config.model.variant=debug",
    "--config.model.image_size=16",
    "--config.model.patch_size=4",
    "--config.pretrain=None",
    "--config.total_epochs=None",
    "--config.total_steps=30",
    "--config.model.num_layers=1",
    "--config.eval_batch_size=360",
    "--config.schedule.warmup_steps=2",
    "--config.eval_every_epochs=None",
]


def test_the_protocol(tmp_path, capsys):
    arguments = [
        "sweep", "--config=configs/quickstart.py", f"--workdir={tmp_path}", *SETTINGS,
        "--learning_rates=0.000001,0.03", "--seeds=2",
    ]  # fmt: skip
    assert main(arguments) == 0
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert [row["learning_rate"] for row in result["held_out"]] == [1e-6, 0.03]
    assert result["learning_rate"] == 0.03
    assert len(result["accuracies"]) == 2 and result["mean"] > 0.15
    dev = json.loads((tmp_path / "dev_0.03" / "config.json").read_text())
    final = json.loads((tmp_path / "final_1" / "config.json").read_text())
    assert (dev["data"]["train_split"], dev["data"]["eval_split"]) == ("train[:90%]", "train[90%:]")
    assert (final["data"]["train_split"], final["data"]["eval_split"]) == ("train", "test")
    assert (final["seed"], final["schedule"]["learning_rate"]) == (1, 0.03)
    capsys.readouterr()
    assert main(arguments) == 0  # everything is there: nothing is trained again
    assert capsys.readouterr().out.count("nothing to do") == 4
    assert json.loads((tmp_path / "sweep.json").read_text()) == result


@pytest.mark.parametrize(
    "rates, part", [("0.1,0.1000001", "0.1 is given twice"), ("0.1,-1", "learning_rate=-1")]
)
def test_rates_are_looked_at_before_the_first_run(tmp_path, capsys, rates, part):
    arguments = ["--config=configs/quickstart.py", *SETTINGS, f"--learning_rates={rates}"]
    assert main(["sweep", f"--workdir={tmp_path / 'sweep'}", *arguments]) == 1
    assert part in capsys.readouterr().err and not (tmp_path / "sweep").exists()


def test_a_rate_that_diverges_counts_as_nothing(tmp_path, capsys):
    arguments = [
        "sweep", "--config=configs/quickstart.py", f"--workdir={tmp_path}", *SETTINGS,
        "--config.total_steps=8", "--config.max_skipped_steps=3",
        "--config.gradient_clip_norm=None",
    ]  # fmt: skip
    assert main([*arguments, "--learning_rates=1e37,0.003", "--seeds=1"]) == 0
    result = json.loads((tmp_path / "sweep.json").read_text())
    assert result["held_out"][0] == {"learning_rate": 1e37, "accuracy": 0.0, "diverged": True}
    assert "diverged" not in result["held_out"][1] and result["learning_rate"] == 0.003
    assert "learning rate 1e+37: diverged, counted as 0%" in capsys.readouterr().out
    assert main([*arguments[:2], f"--workdir={tmp_path / 'all'}", *arguments[3:],
                 "--learning_rates=1e37", "--seeds=1"]) == 1  # fmt: skip
    assert "All learning rates diverged" in capsys.readouterr().err


def test_splits_that_can_and_cannot_be_held_out_from():
    assert sweep.carve("train", 2) == ("train[:98%]", "train[98%:]")
    assert sweep.carve("train[:90%]", 10) == ("train[:81%]", "train[81%:90%]")
    assert sweep.carve("train-kept", 10) == ("train-kept[:90%]", "train-kept[90%:]")
    for other in ("train[10%:]", "train[:100]", "train+test"):
        with pytest.raises(UserError, match="is not; set config"):
            sweep.carve(other, 2)
    assert sweep.carve("train", 2.5) == ("train[:97.5%]", "train[97.5%:]")
    for percent in (0, 100):
        with pytest.raises(UserError, match="between 0 and 100"):
            sweep.carve("train", percent)


TINY = [
    "--config.model.hidden_size=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
    "--config.model.num_layers=1", "--config.total_steps=6", "--config.eval_every_steps=3",
    "--config.batch_size=8", "--config.model.image_size=8", "--config.init_from=",
]  # fmt: skip


def test_sweep_of_data_uses_the_recipe_of_train(tmp_path, capsys):
    """The best evaluation chooses a rate, and nothing is chosen on the test images."""
    folder = tiny_runs.three_classes(tmp_path / "data")
    words = ["sweep", f"folder:{folder}", f"--workdir={tmp_path / 'runs'}", *TINY,
             "--recipe=strong", "--seeds=1", "--learning_rates=0.01"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    dev, final = (
        json.loads((tmp_path / "runs" / name / "config.json").read_text())
        for name in ("dev_0.01", "final_0")
    )
    assert dev["keep_best"] == "eval/accuracy" and final["keep_best"] == ""
    assert dev["data"]["eval_split"] == "train[90%:]" and final["data"]["eval_split"] == "test"
    for config in (dev, final):
        assert config["augment"]["policy"] == "trivial" and config["cutmix_alpha"] == 1.0
    assert len(json.loads((tmp_path / "runs" / "sweep.json").read_text())["accuracies"]) == 1
    # a final run that was begun with keep_best goes on without it
    place = tmp_path / "runs" / "final_0"
    shutil.rmtree(place / "model")
    text = (place / "config.json").read_text()
    (place / "config.json").write_text(text.replace('"keep_best": ""', '"keep_best": "eval/loss"'))
    assert main(words) == 0, capsys.readouterr().err
    assert (place / "config.json").read_text() == text
    assert main([*words, "--config=configs/own.py"]) == 2
    assert "beside --config" in capsys.readouterr().err
    assert main(["sweep", "--config=configs/own.py", "--workdir=x", "--recipe=strong"]) == 2
    assert "--recipe is for data instead of --config" in capsys.readouterr().err


def test_data_without_test_images_and_rates_around_the_recipes_own(tmp_path):
    folder = tiny_runs.three_classes(tmp_path / "data", count=12) / "train"
    config = own_data.whole(f"folder:{folder}", {})
    rate = config.schedule.learning_rate
    assert config.sweep.learning_rates == pytest.approx((rate / 3, rate, rate * 3), rel=0.01)
    train_split, test_split = sweep.splits(config)
    for split in sweep.carve(train_split, 10):
        assert len(specs.open_source(f"folder:{folder}[{split}]"))
    assert len(specs.open_source(f"folder:{folder}[{test_split}]"))


def test_an_objective_without_accuracy():
    with pytest.raises(UserError, match="compares accuracies"):
        sweep.score({"eval/loss": 1.0})
