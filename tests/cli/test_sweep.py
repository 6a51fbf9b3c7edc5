"""`vit-jax sweep`: the rate is chosen on held-out training images, and tested on the test split."""

import json

import pytest

from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.studies import sweep

SETTINGS = [
    "--config.model.variant=debug",
    "--config.model.image_size=16",
    "--config.model.patch_size=4",
    "--config.pretrain=None",
    "--config.total_epochs=None",
    "--config.total_steps=120",
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
    assert "learning rate 1e+37: diverged, which counts as 0%" in capsys.readouterr().out
    assert main([*arguments[:2], f"--workdir={tmp_path / 'all'}", *arguments[3:],
                 "--learning_rates=1e37", "--seeds=1"]) == 1  # fmt: skip
    assert "All learning rates diverged" in capsys.readouterr().err


def test_what_cannot_be_carved():
    assert sweep.carve("train", 2) == ("train[:98%]", "train[98%:]")
    with pytest.raises(UserError, match="is not one"):
        sweep.carve("train[:90%]", 2)
    with pytest.raises(UserError, match="between 1 and 99"):
        sweep.carve("train", 100)
