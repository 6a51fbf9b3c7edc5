"""The price of an evaluator: one file, outside of the package, that nothing else knows of."""

import json
import re
from pathlib import Path

import pytest
from tiny_runs import train

from vit_jax.cli import main
from vit_jax.runtime.logbook import read_metrics

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "tests" / "plugins" / "toy_evaluator.py"
TOY = f"{FILE}:worst_class"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of six steps that measures its worst class after each third."""
    directory = tmp_path_factory.mktemp("run")
    given = [
        f"--config.evaluators.worst.name={TOY}", "--config.evaluators.worst.data=digits",
        "--config.evaluators.worst.at_least=36", "--config.evaluators.worst.every_steps=3",
    ]  # fmt: skip
    assert train(directory, *given) == 0
    return directory


def rows(directory):
    """[(examples, accuracy)] of the classes, as `classification` counts them."""
    text = (directory / "evaluation_classification_per_class.csv").read_text()
    cells = [line.split(",") for line in text.splitlines()[1:]]
    return [(int(row[2]), float(row[4])) for row in cells]


def test_it_evaluates_and_has_options(run, tmp_path, capsys):
    given = ["evaluate", f"--checkpoint={run}", "--data=digits", f"--out={tmp_path}"]
    assert main([*given, f"--suite=classification,{TOY}"]) == 0
    classes = rows(tmp_path)
    found = json.loads((tmp_path / "evaluation.json").read_text())["worst_class"]
    assert found["accuracy"] == pytest.approx(min(accuracy for _, accuracy in classes))
    assert "worst class of digits[test]" in capsys.readouterr().out

    assert min(count for count, _ in classes) < 36 <= max(count for count, _ in classes)
    wanted = min(accuracy for count, accuracy in classes if count >= 36)
    for flag in ("--worst_class.at_least=36", "--at_least=36"):
        assert main([*given, f"--suite={TOY}", flag]) == 0
        found = json.loads((tmp_path / "evaluation.json").read_text())["worst_class"]
        assert found["accuracy"] == pytest.approx(wanted)
    last = read_metrics(run / "metrics.jsonl")[-1]
    assert last["worst/accuracy"] == pytest.approx(wanted)


def test_it_is_measured_while_training(run):
    steps = [r["step"] for r in read_metrics(run / "metrics.jsonl") if "worst/accuracy" in r]
    assert steps == [3, 6]


def test_help_shows_its_options(capsys):
    assert main(["evaluate", f"--suite={TOY}", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--worst_class.at_least\n      classes with fewer examples do not count. [1]" in shown


def test_invalid_plug_ins_are_refused(run, tmp_path, capsys):
    given = ["evaluate", f"--checkpoint={run}", "--data=digits", f"--out={tmp_path}"]
    assert main([*given, f"--suite={TOY}", "--at_least=many"]) == 2
    assert "--at_least='many' must be a whole number" in capsys.readouterr().err
    assert main([*given, "--suite=knn", "--worst_class.at_least=1"]) == 2
    assert "worst_class.at_least" in capsys.readouterr().err
    assert main([*given, f"--suite={FILE}:wurst_class"]) == 1
    assert "Did you mean 'worst_class'" in capsys.readouterr().err
    wrong = tmp_path / "wrong_evaluators.py"
    wrong.write_text(
        "def positional(forward, data, at_least=1): pass\n"
        "def listed(forward, data, *, names: list = ()): pass\n"
        "def nothing(forward, data): return {'accuracy': 1.0}\n"
    )
    for name, sentence in (
        ("positional", "define positional(forward, data, *, option=default)"),
        ("listed", "options cannot be <class 'list'>"),
        ("nothing", "returns dict instead of a vit_jax.evaluation.result.Result"),
    ):
        assert main([*given, f"--suite={wrong}:{name}"]) == 1
        assert sentence in capsys.readouterr().err
    given = [f"--config.evaluators.worst.{key}" for key in (f"name={TOY}", "at_most=1")]
    assert train(tmp_path / "w", *given) == 1
    assert "evaluators.worst.at_least" in capsys.readouterr().err


def test_the_guide_shows_this_file():
    guide = (ROOT / "CONTRIBUTING.md").read_text()
    shown = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    assert FILE.read_text() in shown
