"""Scenarios 17 and 37: processes that differ say so before the first step, on every one."""

import json
import os

import jax
import pytest
from tiny_runs import SETTINGS, finish, start

from vit_jax import config as configuration
from vit_jax.errors import UserError
from vit_jax.runtime import sharding
from vit_jax.training import process_checks


@pytest.fixture
def others(monkeypatch):
    """This is process 0 of a job; the facts of the others are what a test says."""
    said = {"facts": [], "numbers": []}
    monkeypatch.setattr(jax, "process_count", lambda: 1 + len(said["facts"]))
    monkeypatch.setattr(
        process_checks,
        "gathered",
        lambda mine: [json.loads(json.dumps(facts)) for facts in (mine, *said["facts"])],
    )
    monkeypatch.setattr(sharding, "gathered", lambda number: [number, *said["numbers"]])
    return said


def facts(**changes):
    config = configuration.default()
    for key, value in changes.items():
        configuration.override(config, key.replace("__", "."), value)
    versions = {f"the version of {name}": of for name, of in process_checks.versions().items()}
    return {**versions, **process_checks.of_config(config)}


def test_37_the_key_and_the_processes_are_named(others, tmp_path):
    others["facts"] = [facts(seed="1"), facts()]
    with pytest.raises(UserError, match=r"config\.seed is 0 on process 0, 2; 1 on process 1\. "):
        process_checks.agree(tmp_path, configuration.default())
    others["facts"] = [facts() | {"the version of jax": "0.9"}]
    with pytest.raises(UserError, match=r"the version of jax is '0\.1.*'0\.9' on process 1"):
        process_checks.agree(tmp_path, configuration.default())
    others["facts"] = [facts()]
    with pytest.raises(UserError, match="allow is True on process 0; 'absent' on process 1"):
        process_checks.agree(tmp_path, configuration.default(), allow=True)
    assert os.listdir(tmp_path) == []


def test_37_settings_that_may_differ_between_hosts(others, tmp_path):
    others["facts"] = [facts(data__num_threads="9", data__data_dir="/mnt/here")]
    assert process_checks.difference([facts(), *others["facts"]]) is None
    other = facts(data__train_split="train[:9]")
    assert "config.data.train_split" in process_checks.difference([facts(), other])


def test_17_the_probe_file_is_removed(tmp_path):
    new = tmp_path / "a" / "b"
    with process_checks.sign(new) as (name, problem):
        assert problem == "" and (new / name).exists() and process_checks.appears(new / name)
    assert os.listdir(tmp_path) == []
    (tmp_path / "file").touch()
    with process_checks.sign(tmp_path / "file" / "run") as (name, problem):
        assert name == "" and "Not a directory" in problem
    with process_checks.sign(tmp_path):
        pass
    assert os.listdir(tmp_path) == ["file"]


def test_17_a_process_that_does_not_see_the_file_is_named(others, tmp_path, monkeypatch):
    others["facts"], others["numbers"] = [{}, {}], [1, 0]
    with pytest.raises(UserError, match="The --workdir of process 2 is not that of process 0"):
        process_checks.check_shared(tmp_path / "run")
    others["numbers"] = [1, 1]
    process_checks.check_shared(tmp_path / "run")
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(process_checks, "PATIENCE", 0.2)
    assert not process_checks.appears(tmp_path / "nowhere")


def test_17_37_two_processes(tmp_path):
    """Both end with the sentence, and nothing is left behind."""
    for own, message in (
        (
            [[], [f"--workdir={tmp_path / 'other'}"]],
            "--workdir of process 1 is not that of process 0",
        ),
        ([[], ["--config.seed=1"]], "config.seed is 0 on process 0; 1 on process 1"),
    ):
        job = start(["train", *SETTINGS, f"--workdir={tmp_path / 'run'}"], 2, 1, own)
        for code, out, err in finish(job):
            assert code == 1 and message in err, (code, out, err)
    assert os.listdir(tmp_path) == []
