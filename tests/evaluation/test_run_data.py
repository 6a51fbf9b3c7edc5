"""What a run remembers of its data, for who evaluates it and names none."""

import json
import shutil

import pytest
from tiny_runs import contents, three_classes, train

from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.data.specs import KINDS
from vit_jax.errors import UsageError, UserError
from vit_jax.evaluation.run_data import data_of


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    assert train(workdir) == 0  # on digits, which have a test split
    return workdir


def of_config(place, **of_data):
    place.mkdir()
    config = configuration.default()
    config.data.update(of_data)
    (place / "config.json").write_text(configuration.to_json(config))
    return str(place)


def test_the_test_split_of_the_run_is_taken_and_nothing_is_overwritten(
    finished, tmp_path, capsys, monkeypatch
):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = contents(run)
    listed, open_digits = [], KINDS["digits"]
    monkeypatch.setitem(KINDS, "digits", lambda *a: (listed.append(a), open_digits(*a))[1])
    assert main(["evaluate", f"--checkpoint={run}"]) == 0
    assert len(listed) == 1  # although it is looked at before the model is read, and then used
    out = capsys.readouterr().out
    assert "data: digits[test], the test split of the data of this run" in out
    assert main(["evaluate", f"--checkpoint={run}"]) == 0
    for place in ("test", "test-2"):
        record = json.loads((run / place / "evaluation.json").read_text())["classification"]
        assert (record["data"], record["num_examples"]) == ("digits[test]", 360)
    there = contents(run)
    assert {name: there[name] for name in before} == before
    assert main(["evaluate", f"--checkpoint={run}", f"--out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "evaluation.json").exists()
    assert data_of(str(run / "model")).workdir == run
    assert data_of(str(run / "checkpoints" / "000000006")).workdir == run


@pytest.mark.parametrize(
    "of_data, spec, why",
    [
        (dict(dataset="digits"), "digits[test]", "the test split"),
        (
            dict(dataset="digits", train_split="train[:90%]", eval_split="train[90%:]"),
            "digits[test]",
            "the test split",
        ),
        (
            dict(dataset="digits", train_split="train+test[:50%]", eval_split="test[50%:]"),
            "digits[test[50%:]]",
            "evaluation data",
        ),
        (
            dict(dataset="digits", train_split="all", eval_split="test"),
            "digits[test]",
            "evaluation data",
        ),
    ],
)
def test_a_test_split_that_was_trained_on_is_none(of_data, spec, why, tmp_path):
    found = data_of(of_config(tmp_path / "run", **of_data))
    assert found.spec == spec and why in found.why


def test_without_a_test_split_it_is_what_was_watched(tmp_path):
    root = three_classes(tmp_path / "pets", count=10)
    (root / "test").rename(root / "val")
    found = data_of(of_config(tmp_path / "a", dataset=f"folder:{root}"))
    assert found.spec == f"folder:{root}[validation]" and "evaluation data of this run" in found.why
    shutil.rmtree(root / "val")
    found = data_of(of_config(tmp_path / "b", dataset=f"folder:{root}"))
    assert found.spec in (f"folder:{root}[train[90%:]]", f"folder:{root}[train-held-out]")
    shutil.rmtree(root)
    with pytest.raises(UserError, match=r"was trained on folder:.* cannot be opened here"):
        data_of(str(tmp_path / "b"))


def test_a_program_that_a_downloaded_run_names_is_not_run(tmp_path):
    program = tmp_path / "data.py"
    program.write_text("raise SystemExit('it runs')")
    with pytest.raises(UserError, match=r"data\.py:x, which is a program.*give --data=SPEC"):
        data_of(of_config(tmp_path / "run", dataset=f"{program}:x"))


def test_data_is_required_for_a_model_that_is_not_a_run(finished, tmp_path, capsys):
    shutil.copytree(finished / "model", tmp_path / "model")
    with pytest.raises(UsageError, match="--data=SPEC is required"):
        data_of(str(tmp_path / "model"))
    with pytest.raises(UserError, match=r"is not a run\. It contains runs: name one, such as"):
        data_of(str(finished.parent))
    before = contents(tmp_path)
    assert main(["evaluate", f"--checkpoint={tmp_path / 'model'}"]) == 2
    assert main(["evaluate", f"--checkpoint={finished}", "--suite=knn"]) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 2 and "is required for --suite=knn" in err[1]
    assert contents(tmp_path) == before


def test_a_misspelled_argument_is_reported_first(finished, tmp_path, capsys):
    """Not what is missing besides."""
    assert main(["evaluate", f"--checkpoint={tmp_path / 'pest'}", "--data=digits"]) == 1
    assert "There is no checkpoint at" in capsys.readouterr().err
    assert main(["evaluate", f"--checkpoint={finished}", "--suite=fewshots"]) in (1, 2)
    assert "Did you mean 'fewshot'?" in capsys.readouterr().err
