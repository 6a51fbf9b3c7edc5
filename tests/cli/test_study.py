"""`vit-jax study`, and the price of a study and of a kind of data: one file each."""

import csv
import json
import re
from pathlib import Path

import pytest
from tiny_runs import SETTINGS, contents, train

from vit_jax.cli import main
from vit_jax.data import specs

ROOT = Path(__file__).parent.parent.parent
STUDY = ROOT / "tests" / "plugins" / "toy_study.py"
DATA = ROOT / "tests" / "plugins" / "toy_data.py"
TINY = [word for word in SETTINGS if not word.startswith(("--config=", "--config.pretrain"))]


def study(workdir, *more, source=STUDY):
    return main(["study", f"--config={source}", f"--workdir={workdir}", *TINY, *more])


def test_trials_are_runs_and_the_same_command_goes_on(tmp_path, capsys):
    stripes = f"{STUDY}:{DATA}:8"  # a study and its data, both of files outside
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vit_jax.studies.study.train", lambda *_: 1 / 0)  # ends in the first trial
        assert study(tmp_path, source=stripes) == 1
    assert study(tmp_path, source=stripes) == 0
    rows = list(csv.DictReader((tmp_path / "study.csv").read_text().splitlines()))
    assert [(row["trial"], row["schedule.learning_rate"], row["diverged"]) for row in rows] == [
        ("rate_0.01", "0.01", "False"), ("rate_0.1", "0.1", "False"),
    ]  # fmt: skip
    assert set(rows[0]) > {"eval/accuracy", "train/loss", "seed", "config"}
    assert json.loads((tmp_path / "study.json").read_text())["trials"][1]["trial"] == "rate_0.1"
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "study.svg").read_text()
    before = contents(tmp_path / "rate_0.1")
    capsys.readouterr()
    assert study(tmp_path, source=stripes) == 0
    assert capsys.readouterr().out.count("has finished at step 6") == 2
    assert contents(tmp_path / "rate_0.1") == before
    # each is what `train` makes
    alone = f"--config.data.dataset={DATA}:8"
    assert train(tmp_path / "alone", alone, "--config.schedule.learning_rate=0.1") == 0
    of_study, of_train = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("rate_0.1", "alone")
    )
    assert of_study == of_train


def test_a_trial_that_diverges_is_a_row(tmp_path, capsys):
    more = ["--config.schedule.learning_rate=1e30", "--config.max_skipped_steps=2"]
    assert study(tmp_path, *more, "--config.gradient_clip_norm=None") == 0
    rows = list(csv.DictReader((tmp_path / "study.csv").read_text().splitlines()))
    assert [row["diverged"] for row in rows] == ["True", "True"]
    assert "diverged" in capsys.readouterr().out


def test_machines_share_a_study_and_a_failure_stops_no_other_trial(tmp_path, capsys):
    from vit_jax.studies import study as module

    def broken(config, workdir):
        if config.schedule.learning_rate == 0.01:
            raise OSError("the disk is gone")
        return train_run(config, workdir)

    train_run = module.train
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "train", broken)
        assert study(tmp_path) == 1
    said = capsys.readouterr()
    assert "1 of 2 trials failed: rate_0.01 (OSError: the disk is gone)" in said.err
    assert "1 of 2 trials in" in said.out and not (tmp_path / "study.png").exists()
    assert [
        r["trial"] for r in csv.DictReader((tmp_path / "study.csv").read_text().splitlines())
    ] == ["rate_0.1"]
    before = contents(tmp_path / "rate_0.1")
    assert study(tmp_path, "--trial=1/2") == 0  # the first of two machines: what is left
    said = capsys.readouterr().out
    assert "trial 1 of 1: rate_0.01" in said and "2 of 2 trials in" in said
    assert (tmp_path / "study.png").exists() and contents(tmp_path / "rate_0.1") == before
    assert study(tmp_path, "--only=rate_0.1") == 0
    assert "trial 1 of 1: rate_0.1" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "code", "message"), [
    (["--trial=3/2"], 2, "--trial=3/2 must be I/N"), (["--trial=0/0"], 2, "--trial=0/0 must"),
    (["--trial=x"], 2, "--trial=x must"),
    (["--only=depth-*"], 1, "--only=depth-. matches no trial; there are rate_0.01, rate_0.1."),
])  # fmt: skip
def test_invalid_parts_are_refused(tmp_path, capsys, words, code, message):
    assert study(tmp_path / "work", *words) == code
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("    return {'a': c, 'b': d}", r"trial b: config.batch_size=0 must be"),
        ("    return {'a': c, '../b': c}", r"trial '../b' has a name"),
        ("    return {}", "must return"),
        ("    return {'a': 3}", "trial a is a int instead"),
        ("    return {'a': c.nothing}", r"line \d+: AttributeError"),
    ],
)
def test_invalid_studies_are_refused_before_the_first_trial(tmp_path, capsys, text, message):
    file = tmp_path / "own.py"
    file.write_text(
        "from vit_jax import config\n\n\ndef trials():\n"
        "    c, d = (config.load('configs/quickstart.py') for _ in 'cd')\n"
        f"    d.batch_size = 0\n{text}\n"
    )
    arguments = ["study", f"--config={file}", f"--workdir={tmp_path / 'work'}"]
    assert main(arguments) == 1
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "work").exists()


def test_a_kind_of_data_in_one_file(tmp_path, capsys):
    data = f"{DATA}:8"
    assert train(tmp_path / "run", f"--config.data.dataset={data}") == 0
    assert train(tmp_path / "run", f"--config.data.dataset={data}") == 0
    workers = [f"--config.data.dataset={data}", "--config.data.num_workers=1"]
    assert train(tmp_path / "two", *workers) == 0
    one, two = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("run", "two")
    )
    assert one == two
    given = ["evaluate", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path}"]
    assert main([*given, "--suite=classification", f"--data={data}[train[:50%]]"]) == 0
    assert "24 examples" in capsys.readouterr().out
    assert specs.split_specs(f"{data}[test],digits,{data}") == (f"{data}[test]", "digits", data)
    assert main([*given, "--data=/no/where.py:8"]) == 1
    assert "There is no file /no/where.py" in capsys.readouterr().err
    (tmp_path / "empty_kind.py").write_text("x = 1\n")
    assert main([*given, f"--data={tmp_path}/empty_kind.py:8"]) == 1
    assert "empty_kind.py does not define open_splits" in capsys.readouterr().err


@pytest.mark.parametrize("file", [STUDY, DATA])
def test_the_guide_shows_the_file(file):
    assert file.read_text() in (ROOT / "CONTRIBUTING.md").read_text()
