"""Working directories of the first version: what resumes, what is refused by name, what loads.

`golden/format_1.tar.gz` was written by it: `whole` is a run of twelve steps with a Polyak average,
and `run` the same one, stopped after six.
"""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from vit_jax.cli import main
from vit_jax.models import saved

ARCHIVE = Path(__file__).parents[1] / "golden" / "format_1.tar.gz"
SETTINGS = [
    "--config=configs/quickstart.py", "--config.pretrain=None", "--config.total_epochs=None",
    "--config.total_steps=12", "--config.eval_every_epochs=None", "--config.eval_every_steps=6",
    "--config.schedule.warmup_steps=2", "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=3", "--config.batch_size=32", "--config.polyak_decay=0.99",
    "--config.model.hidden_size=16", "--config.model.num_heads=2", "--config.model.mlp_dim=32",
    "--config.model.num_layers=1", "--config.keep_checkpoints=1",
]  # fmt: skip


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def test_a_run_of_the_first_version_goes_on_with_its_own_average(old, capsys):
    assert main(["train", *SETTINGS, f"--workdir={old / 'run'}"]) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    config = json.loads((old / "run" / "config.json").read_text())
    assert "format" not in config and config["polyak_ramp"] is True
    assert config["data"]["orient"] is False  # photos stay as they were trained on
    _, wanted = saved.load(old / "whole" / "model")
    _, found = saved.load(old / "run" / "model")
    for path, value in wanted.items():  # bytes depend on the processor
        np.testing.assert_allclose(found[path], value, atol=2e-5)
    # And again: it is the same run.
    assert main(["train", *SETTINGS, f"--workdir={old / 'run'}"]) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_the_two_averages_give_different_models(old, tmp_path):
    """The comparison above sees which rule was used."""
    new = tmp_path / "new"
    assert main(["train", *SETTINGS, f"--workdir={new}"]) == 0
    config = json.loads((new / "config.json").read_text())
    assert config["format"] == 2 and config["polyak_ramp"] is False
    assert config["data"]["orient"] is True
    _, wanted = saved.load(old / "whole" / "model")
    _, found = saved.load(new / "model")
    assert max(np.abs(found[path] - wanted[path]).max() for path in wanted) > 1e-3


@pytest.mark.parametrize(
    "section, name, value",
    [("augment", "name", "inception_crop"), ("schedule", "decay", "staircase")],
)
def test_arithmetic_that_is_gone_is_refused_by_name(old, capsys, section, name, value):
    file = old / "run" / "config.json"
    config = json.loads(file.read_text())
    config[section][name] = value
    file.write_text(json.dumps(config))
    before = contents(old / "run")
    assert main(["train", *SETTINGS, f"--workdir={old / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert f"config.{section}.{name}={value!r}" in error and len(error.splitlines()) == 1
    assert contents(old / "run") == before


def test_a_finished_run_of_the_first_version_stays_finished(old, capsys):
    before = contents(old / "whole")
    assert main(["train", *SETTINGS, f"--workdir={old / 'whole'}"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert contents(old / "whole") == before
    config, params = saved.load(old / "whole" / "model")
    assert config.hidden_size == 16 and params["head/kernel"].any()


def test_a_later_format_is_refused(old, capsys):
    file = old / "run" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 3}))
    before = contents(old / "run")
    assert main(["train", *SETTINGS, f"--workdir={old / 'run'}"]) == 1
    assert "format 3" in capsys.readouterr().err
    assert contents(old / "run") == before


def test_settings_that_a_run_did_not_know_yet_are_as_by_default(tmp_path, capsys):
    """Format 2, written before there were objectives, and with the evaluators' options in full."""
    new = tmp_path / "new"
    less = [*SETTINGS, f"--workdir={new}"]
    assert main(["train", *less, "--config.total_steps=6"]) == 0
    file = new / "config.json"
    config = json.loads(file.read_text())
    del config["objective"], config["polyak_ramp"], config["data"]["max_bad_images"]
    off = {"data": "", "every_steps": None, "every_epochs": None}
    config["evaluators"] = {
        "fewshot": off | {"shots": [1, 5, 10, 25], "seeds": 3, "l2": 1024.0},
        "knn": off | {"k": [1, 5, 10, 20]},
    }
    file.write_text(json.dumps(config))
    capsys.readouterr()
    assert main(["train", *less, "--config.total_steps=6"]) == 0
    assert "nothing to do" in capsys.readouterr().out
    before = contents(new)
    assert main(["train", *less, "--config.polyak_ramp=True"]) == 1
    assert "polyak_ramp is False there and True here" in capsys.readouterr().err
    assert contents(new) == before
    assert main(["train", *less, "--allow_config_change"]) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    assert json.loads(file.read_text())["objective"]["name"] == "classification"


@pytest.mark.long
def test_a_run_that_began_with_other_bits_of_dropout_goes_on_with_them(tmp_path, capsys):
    """Format 2, before `dropout_bits`: the bits were Threefry's."""
    settings = [*SETTINGS, "--config.model.dropout_rate=0.3", "--config.optimizer.momentum=0.5"]
    whole, old, new = (tmp_path / name for name in ("whole", "old", "new"))
    threefry = "--config.dropout_bits=threefry"
    assert main(["train", *settings, threefry, f"--workdir={whole}"]) == 0
    assert main(["train", *settings, f"--workdir={new}"]) == 0
    half = [*settings, f"--workdir={old}", "--config.schedule.decay=constant"]
    whole_half = [*settings, f"--workdir={tmp_path / 'half'}", "--config.schedule.decay=constant"]
    assert main(["train", *whole_half, threefry]) == 0
    assert main(["train", *half, threefry, "--config.total_steps=6"]) == 0
    file = old / "config.json"
    config = json.loads(file.read_text())
    del config["dropout_bits"]
    file.write_text(json.dumps(config))
    assert main(["train", *half, "--allow_config_change"]) == 0
    assert "resumed from step 6" in capsys.readouterr().out
    assert json.loads(file.read_text())["dropout_bits"] == "threefry"
    weights = [(d / "model" / "model.safetensors").read_bytes()
               for d in (tmp_path / "half", old, whole, new)]  # fmt: skip
    assert weights[0] == weights[1] and weights[2] != weights[3]
