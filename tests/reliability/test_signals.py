"""Scenario 39: SIGTERM while a run evaluates is noticed at the next batch (T16)."""

import os
import signal

import pytest
from tiny_runs import train

from vit_jax.runtime.logbook import read_metrics
from vit_jax.runtime.watchdog import Watchdog


@pytest.mark.parametrize("step", [3, 6])
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
