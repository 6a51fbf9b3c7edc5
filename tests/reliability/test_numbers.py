"""Scenarios 27 to 29: what is not finite is counted, stops a run, and is never saved."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import train

from vit_jax.errors import Diverged
from vit_jax.runtime.logbook import read_metrics
from vit_jax.training import events
from vit_jax.training.checkpoint import Checkpoints
from vit_jax.training.spikes import Spikes


def steps_until_stopped(counts, limit, log_every=100):
    """The step at which a run ends whose count of bad gradients in a row is `counts`."""
    nothing = types.SimpleNamespace(
        log=types.SimpleNamespace(advance=lambda step: None, write=lambda *a: None),
        clock=types.SimpleNamespace(read=lambda step: {}),
        results={},
        spikes=Spikes(None),
    )
    event = events.logged(
        nothing, dict, due=events.every(log_every, last=len(counts)), max_skipped_steps=limit
    )
    for step, count in enumerate(counts, start=1):
        try:
            event.act(step, None, {"train/skipped_in_a_row": jnp.int32(count)})
        except Diverged:
            return step
    return None


def test_28_k_in_a_row_stop_a_run_whatever_the_log_and_the_steps_after():
    counts = [0, 0, *range(1, 26), *[0] * 60]  # 25 in a row, then good ones again
    assert steps_until_stopped(counts, limit=20) == 22 + events.LOOK_BACK
    assert steps_until_stopped(counts, limit=25) == 27 + events.LOOK_BACK
    assert steps_until_stopped(counts, limit=26) is None
    assert steps_until_stopped([0, 1, 2, 3], limit=3) == 4  # the last step is always logged
    assert steps_until_stopped([1, 2, 3, 0, 0], limit=3, log_every=5) == 5


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, -jnp.inf])
def test_29_what_is_not_finite_is_never_saved(tmp_path, value):
    checkpoints = Checkpoints(tmp_path / "c")
    good = {"params": {"w": jnp.ones((3, 5))}, "step": jnp.int32(1)}
    assert checkpoints.save(1, good, {})
    bad = {"params": {"w": good["params"]["w"].at[2, 4].set(value)}, "step": jnp.int32(2)}
    with pytest.raises(Diverged, match=r"\['params'\]\['w'\].* the last good checkpoint is 1"):
        checkpoints.save(2, bad, {})
    checkpoints.close()
    assert [path.name for path in (tmp_path / "c").glob("0*")] == ["000000001"]


def test_29_updates_that_are_not_finite_are_skipped_and_end_the_run(tmp_path, capsys):
    """The gradient is finite and the rate times it is not; no model of it is exported."""
    settings = ("--config.optimizer.weight_decay=9", "--config.optimizer.decay_on=all",
                "--config.schedule.learning_rate=3e38", "--config.schedule.decay=constant",
                "--config.schedule.warmup_steps=0")  # fmt: skip
    assert train(tmp_path / "run", *settings) == 1
    assert "None of the 6 updates was finite" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert last["train/skipped_updates"] == 6 and np.isfinite(last["train/gradient_norm"])


@pytest.mark.parametrize("value", ["nan", "inf", "1e39", "-1e39"])
def test_29_a_setting_is_finite_in_float32(tmp_path, capsys, value):
    assert train(tmp_path / "run", f"--config.schedule.learning_rate={value}") == 1
    assert "config.schedule.learning_rate" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
