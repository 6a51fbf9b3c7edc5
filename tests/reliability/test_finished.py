"""Scenarios 40, 58 and 59: what a finished run has, whatever happens to files and clocks."""

import errno
import itertools
import os
import shutil
import time
from pathlib import Path

import pytest
from tiny_runs import contents, train

from vit_jax import files
from vit_jax.runtime.logbook import read_metrics


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


def test_58_the_clock_jumps(finished, tmp_path, monkeypatch):
    """By five minutes, back or ahead, each time that it is read: only dates depend on it."""
    now, back, run = time.time(), itertools.cycle([0, 290]), tmp_path / "run"
    monkeypatch.setattr(time, "time", lambda: now - next(back))
    monkeypatch.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
    assert train(run) == 0
    assert contents(run / "model") == contents(finished / "model")
    seconds = [record["seconds"] for record in read_metrics(run / "metrics.jsonl")]
    assert seconds == sorted(seconds) and seconds[-1] < 200


WRITTEN = {
    "config.json": errno.EROFS, "saved.json": errno.ESTALE, "metrics.jsonl": errno.EIO,
    "model.safetensors": errno.ESTALE, "evaluation.json": errno.EDQUOT,
}  # fmt: skip
#: A run continues without these, and says so.
SHOWN = ("fed.png", "report.html")


def test_59_storage_fails_under_each_file_in_turn(finished, tmp_path, monkeypatch, capsys):
    """A stale handle, a quota, an error of the device: a sentence; then the undisturbed bytes."""
    run, failed = tmp_path / "run", []
    replace = os.replace

    def failing(source, target):
        written = Path(target).name
        if written in failing.names and written not in failed:
            failed.append(written)
            raise OSError(code, os.strerror(code), str(source))
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", failing)
    for name, code in WRITTEN.items():
        failing.names = (name,)
        assert train(run) == 1, name
        said = capsys.readouterr().err.strip().split("\n")[-1]
        assert failed[-1] == name and name in said and os.strerror(code) in said
        assert not list(run.rglob("*.partial"))
    failing.names = ()
    assert train(run) == 0
    assert contents(run / "model") == contents(finished / "model")
    failing.names = SHOWN
    assert train(tmp_path / "other") == 0
    said = capsys.readouterr().out
    assert all(f"{name} is not written" in said for name in SHOWN)
    assert contents(tmp_path / "other" / "model") == contents(finished / "model")
