"""The price of an objective: one file, outside of the package, that nothing else knows of."""

import re
from pathlib import Path

import pytest
from safetensors.numpy import load_file
from tiny_runs import train

from vit_jax.runtime.logbook import read_metrics

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "tests" / "plugins" / "toy_objective.py"
TOY = f"--config.objective.name={FILE}:centre_colour"
PLAIN = "--config.loss.label_smoothing=0"


def test_it_trains_and_leaves_nothing_in_the_model(tmp_path):
    more = ["--config.total_steps=12", "--config.schedule.decay=constant"]
    assert train(tmp_path / "one", TOY, PLAIN, *more) == 0
    records = read_metrics(tmp_path / "one" / "metrics.jsonl")
    assert records[-1]["eval/error"] < 0.9 * records[0]["train/loss"]
    assert "eval/accuracy" not in records[-1] and records[-1]["eval/num_examples"] == 360
    weights = load_file(tmp_path / "one" / "model" / "model.safetensors")
    assert weights and not [path for path in weights if path.startswith("objective/")]
    assert train(tmp_path / "two", TOY, PLAIN, "--config.objective.scale=3.0", *more) == 0
    other = read_metrics(tmp_path / "two" / "metrics.jsonl")
    assert other[0]["train/loss"] == pytest.approx(3 * records[0]["train/loss"], rel=1e-5)


def test_a_run_that_never_took_a_step_leaves_no_model(tmp_path, capsys):
    """The norm of every gradient is infinite, and they are too few to give up before the end."""
    infinite = "--config.objective.scale=1e30"
    assert train(tmp_path / "run", TOY, PLAIN, infinite, "--config.total_steps=3") == 1
    assert "None of the 3 updates was finite: none was made" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    assert not any(r.get("final") for r in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "--config.mixup_alpha=0.1",
            "the objective .*centre_colour does not read config.mixup_alpha",
        ),
        (
            "--config.loss.label_smoothing=0.1",
            "the objective .*centre_colour does not read config.loss",
        ),
        ("--config.objective.scal=2", "config.objective.scal is a setting .* Did you mean 'scale'"),
        ("--config.objective.name=clasification", "Did you mean 'classification'"),
        (f"--config.objective.name={FILE}:centre", "does not define centre.* 'centre_colour'"),
        ("--config.objective.name=/no/where.py:toy", "There is no file /no/where.py"),
    ],
)
def test_settings_that_the_objective_does_not_read_are_refused(tmp_path, capsys, setting, message):
    assert train(tmp_path / "run", TOY, PLAIN, setting) == 1
    assert re.search(message, capsys.readouterr().err)


def test_the_guide_shows_this_file():
    assert FILE.read_text() in (ROOT / "CONTRIBUTING.md").read_text()
