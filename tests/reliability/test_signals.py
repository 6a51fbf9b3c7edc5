"""Scenarios 39 and 52: SIGTERM while a run evaluates is noticed at the next batch."""

import os
import signal
import time

import pytest
from often import often
from tiny_runs import SETTINGS, finish, start, train

from vit_jax.runtime.logbook import read_metrics
from vit_jax.runtime.watchdog import Watchdog


@pytest.mark.parametrize("step", often(3, weekly=[6]))
def test_39_term_in_an_evaluation(tmp_path, monkeypatch, capsys, step):
    """It ends after a batch of 8 of 360 images; what was not evaluated is, when it goes on."""
    run, counts = tmp_path / "run", []
    on_batch = Watchdog.on_batch
    other = 6 if step == 3 else 3

    def signalled(self, count):
        counts.append(count)
        if len(counts) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        on_batch(self, count)

    settings = ["--config.eval_every_steps=3"] if step == 3 else []
    monkeypatch.setattr(Watchdog, "on_batch", signalled)
    assert train(run, *settings) == 42
    assert counts == [8, 16] and f"saved step {step} of 6" in capsys.readouterr().out
    assert not [r for r in read_metrics(run / "metrics.jsonl") if "eval/loss" in r]
    assert train(run, *settings) == 0
    evaluated = [r["step"] for r in read_metrics(run / "metrics.jsonl") if "eval/loss" in r]
    assert set(evaluated) == ({step, other} if settings else {6})


@pytest.mark.slow
def test_52_term_in_an_evaluation_of_two_processes(tmp_path):
    """To one of them; both stop at the same batch of 899, and are the run that was left alone."""
    command = [
        "train", *SETTINGS, "--config.eval_every_steps=3", "--config.eval_batch_size=2",
        "--config.evaluators.classification.data=digits[train]",
        "--config.evaluators.classification.every_steps=3",
    ]  # fmt: skip
    run = tmp_path / "run"
    job = start([*command, f"--workdir={run}"], 2, 1)
    log, deadline = run / "metrics.jsonl", time.monotonic() + 200
    while not (log.exists() and read_metrics(log) and read_metrics(log)[-1]["step"] >= 3):
        assert time.monotonic() < deadline and job[0].poll() is None, finish(job)
        time.sleep(0.02)
    job[1].terminate()
    begin = time.monotonic()
    found = finish(job)
    assert [code for code, _, _ in found] == [42, 42], found
    assert all("saved step 3 of 6" in out for _, out, _ in found)
    assert time.monotonic() - begin < 30
    assert "classification/accuracy" not in read_metrics(log)[-1]
    assert train(run, *command[len(SETTINGS) + 1 :], "--config.eval_batch_size=64") == 0
    evaluated = [r["step"] for r in read_metrics(log) if "classification/accuracy" in r]
    assert evaluated == [3, 6]
