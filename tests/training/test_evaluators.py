"""Protocols that run while training, each at its own interval."""

import json
import re

import numpy as np
import pytest
import tfds_directory

from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation.protocols import EVALUATORS
from vit_jax.training import evaluators
from vit_jax.training.evaluators import periods

SETTINGS = [
    "--config=configs/quickstart.py",
    "--config.model.variant=debug",
    "--config.model.image_size=16",
    "--config.model.patch_size=4",
    "--config.model.num_layers=1",
    "--config.eval_batch_size=360",
    "--config.pretrain=None",
    "--config.total_epochs=None",
    "--config.total_steps=6",
    "--config.schedule.warmup_steps=2",
    "--config.eval_every_epochs=None",
    "--config.eval_every_steps=4",
]


def test_each_evaluator_has_its_own_interval(tmp_path):
    arguments = [
        "train", f"--workdir={tmp_path}", *SETTINGS,
        "--config.evaluators.knn.data=digits", "--config.evaluators.knn.every_steps=2",
        "--config.evaluators.knn.k=(1,5)",
        "--config.evaluators.fewshot.data=digits", "--config.evaluators.fewshot.shots=(5,)",
    ]  # fmt: skip
    assert main(arguments) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = {
        key: sorted({r["step"] for r in records if key in r})
        for key in ("eval/accuracy", "knn/digits/k_5", "fewshot/digits/5_shots")
    }
    assert steps == {
        "eval/accuracy": [4, 6],
        "knn/digits/k_5": [2, 4, 6],
        "fewshot/digits/5_shots": [6],  # no interval: at the end
    }
    assert (
        main(["evaluate", f"--checkpoint={tmp_path}", "--suite=knn", "--data=digits", "--k=1,5"])
        == 0
    )
    after = json.loads((tmp_path / "evaluation.json").read_text())["knn"]["results"]
    for row in after:  # the same number as from the exported model
        assert records[-1][f"knn/digits/k_{row['k']}"] == pytest.approx(row["accuracy"])


def test_data_of_an_evaluator_is_looked_for_before_training(tmp_path, capsys):
    arguments = ["train", f"--workdir={tmp_path / 'w'}", *SETTINGS]
    assert main([*arguments, "--config.evaluators.fewshot.data=folder:/no/such/folder"]) == 1
    assert "There is no folder /no/such/folder" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert main([*arguments, "--config.evaluators.fewshot.shot=(1,)"]) == 1
    assert "evaluators.fewshot.shots" in capsys.readouterr().err


def test_periods_and_names_of_evaluators():
    assert set(configuration.default().evaluators) == set(EVALUATORS)
    config = configuration.default()
    config.eval_every_epochs = 2.0
    config.evaluators.knn.data = "digits"
    config.evaluators.knn.every_epochs = 0.5
    assert periods(config, 10.0) == {"eval": 20, "knn": 5}
    config.evaluators.knn.dat = "digits"
    with pytest.raises(UserError, match=r"evaluators\.knn\.dat .*evaluators\.knn\.data'"):
        periods(config, 10.0)


@pytest.mark.parametrize(
    "setting, sentence",
    [
        ("knm.data=digits", "config.evaluators.knm.name='knm' does not exist.*Did you mean 'knn'"),
        ("knn.name=knm", "config.evaluators.knn.name='knm' does not exist.*Did you mean 'knn'"),
        ("knn.k=five", "config.evaluators.knn.k='five' must be whole numbers, separated by commas"),
        ("knn.every_steps=2.5", "config.evaluators.knn.every_steps=2.5 must be a whole number"),
        ("fewshot.l2=sweeep", "config.evaluators.fewshot.l2='sweeep' must be a number or sweep"),
        ("fewshot.preprocessing=x", "='x' must be protocol or model"),
        ("knn.max_bad_images=1", "config.evaluators.knn.max_bad_images is not a setting"),
        ("real.data=digits", "evaluators.real: .* needs config.evaluators.real.real_labels=real"),
        ("eval.data=digits", "config.evaluators.eval: other metrics of a run begin with eval/"),
    ],
)
def test_unread_settings_are_refused_before_the_first_step(tmp_path, capsys, setting, sentence):
    given = ["train", f"--workdir={tmp_path / 'w'}", *SETTINGS, f"--config.evaluators.{setting}"]
    assert main(given) == 1
    assert re.search(sentence, capsys.readouterr().err) and not (tmp_path / "w").exists()


def test_an_evaluator_runs_twice_under_two_keys():
    config = configuration.default()
    for key, text in {"mine.name": "knn", "mine.data": "digits", "mine.k": "(1,)",
                      "mine.every_steps": "3", "knn.data": "digits"}.items():  # fmt: skip
        configuration.override(config, f"evaluators.{key}", text)
    assert periods(config, 10.0) == {"eval": None, "knn": None, "mine": 3}
    found = evaluators.chosen(config)
    assert found["mine"].evaluator is found["knn"].evaluator is EVALUATORS["knn"]
    assert found["mine"].options == {"k": (1,)} and found["knn"].options == {"k": (1, 5, 10, 20)}


def test_sections_of_earlier_versions_are_read():
    """Of config.json of format 2, with every default in it, and l2 as text."""
    config = configuration.default()
    config.evaluators.fewshot = {
        "data": "digits", "every_epochs": None, "every_steps": None, "l2": "1024",
        "preprocessing": "protocol", "seeds": 3, "shots": [5, 10],
    }  # fmt: skip
    config.evaluators.real = {"data": "", "real_labels": "", "every_steps": None}
    (found,) = evaluators.chosen(config).values()
    assert found.options == {
        "shots": (5, 10), "seeds": 3, "l2": 1024.0, "preprocessing": "protocol",
    }  # fmt: skip


def test_data_sets_of_evaluators_are_looked_for_where_those_of_the_run_are(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        (tfds_directory.png(rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)), i % 2)
        for i in range(6)
    ]
    tfds_directory.write(tmp_path, "toy", {"train": records, "test": records[:4]}, ["a", "b"])
    config = configuration.default()
    config.data.data_dir = str(tmp_path)
    config.evaluators.knn.data = "tfds:toy"
    assert [len(source) for source in evaluators.sources(config)] == [6, 4]
