"""Scenario 40: the model of a finished run that is cut, flipped or gone is made again."""

import shutil

import pytest
from tiny_runs import contents, train


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished") / "run"
    assert train(workdir) == 0
    return workdir


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip(file):
    content = bytearray(file.read_bytes())
    content[-50] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [cut, flip, lambda file: file.unlink()])
def test_40_a_damaged_model_is_made_again(finished, tmp_path, capsys, damage):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    wanted = contents(run / "model")
    damage(run / "model" / "model.safetensors")
    assert train(run) == 0
    assert "It is made again from the last checkpoint." in capsys.readouterr().out
    assert contents(run / "model") == wanted
    assert train(run) == 0
    assert "nothing to do" in capsys.readouterr().out


def test_40_without_a_checkpoint_nothing_is_overwritten(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    shutil.rmtree(run / "checkpoints")
    cut(run / "model" / "model.safetensors")
    before = contents(run)
    assert train(run) == 1
    assert "has lost its checkpoints" in capsys.readouterr().err
    assert contents(run) == before
