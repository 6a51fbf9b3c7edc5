"""Protocols that run while training, each at its own interval."""

import json

import numpy as np
import pytest
import tfds_directory

from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation import suites
from vit_jax.training import evaluators
from vit_jax.training.evaluators import periods

SETTINGS = [
    "--config=configs/quickstart.py",
    "--config.model.variant=debug",
    "--config.model.image_size=16",
    "--config.model.patch_size=4",
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


def test_every_evaluator_is_a_suite_and_takes_its_options():
    fields = set(suites.Request._fields)
    for name, options in configuration.EVALUATORS.items():
        assert name in suites.SUITES and set(options) <= fields
    config = configuration.default()
    config.eval_every_epochs = 2.0
    config.evaluators.knn.data = "digits"
    config.evaluators.knn.every_epochs = 0.5
    assert periods(config, 10.0) == {"eval": 20, "knn": 5}
    config.evaluators.knn.dat = "digits"
    with pytest.raises(UserError, match=r"evaluators\.knn\.dat "):
        configuration.check(config)


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
