"""`vit_jax.train` gives `run.train` what the command would."""

import pytest

import vit_jax
from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.training import run


@pytest.fixture
def begun(monkeypatch, tmp_path):
    """What `run.train` was called with."""
    calls = []
    monkeypatch.setattr(run, "train", lambda config, workdir: calls.append((config, workdir)))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    "what, settings",
    [
        ("digits", {"total_steps": 3, "schedule.decay": "cosine"}),
        ("quickstart.py", {"total_steps": 3, "pretrain": None, "schedule.warmup_steps": 0}),
    ],
)
def test_it_is_the_same_as_the_command(begun, capsys, what, settings):
    assert str(vit_jax.train(what, "here", **settings)) == "here"
    words = [what] if what == "digits" else [f"--config={what}"]
    words += [f"--config.{key}={value}" for key, value in settings.items()]
    capsys.readouterr()
    assert main(["train", *words, "--print_config"]) == 0
    (config, workdir), text = *begun, capsys.readouterr().out
    assert (configuration.to_json(config), workdir) == (text, "here")


def test_data_without_a_workdir_get_one_in_runs(begun):
    assert vit_jax.train("digits", total_steps=3).parts[0] == "runs"


def test_workdir_and_data_may_be_paths(begun, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert vit_jax.train("digits", "~/here", total_steps=3) == tmp_path / "here"
    with pytest.raises(UserError, match=f"Did you mean 'folder:{tmp_path}'"):
        vit_jax.train(tmp_path)


def test_a_config_needs_a_directory():
    with pytest.raises(UserError, match="needs a workdir"):
        vit_jax.train("quickstart.py")
