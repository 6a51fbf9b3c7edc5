"""Scenario 55: a loss spike; the updates that led to it are taken back, also across deaths."""

import math

import jax.numpy as jnp
import pytest
from tiny_runs import train

from vit_jax import files
from vit_jax.errors import Diverged
from vit_jax.pages import report
from vit_jax.runtime.logbook import read_metrics
from vit_jax.runtime.pace import Clock
from vit_jax.training import events, optim
from vit_jax.training.spikes import LOOK_BACK, NEWEST, Rule, Spike, Spikes

RULE = Rule(factor=1.5, window=12, limit=3)


def noticed(spikes, losses, anchors=(), start=0):
    """(step, spike, target) of the first spike, with checkpoints at some steps; None without."""
    for step, loss in enumerate(losses[start:], start=start + 1):
        if spike := spikes.note(jnp.float32(loss)):
            return step, spike, spikes.target(step)
        if step in anchors:
            spikes.anchor(step)
    return None


def test_spikes_are_found_by_medians():
    usual = [1.0, 1.1] * 15
    step, spike, target = noticed(Spikes(RULE), [*usual, *[3.0] * 20], range(5, 60, 5))
    assert step == 30 + NEWEST // 2 + 1 + LOOK_BACK
    assert (spike.usual, spike.loss, target) == (1.0, 3.0, 25)  # 16 steps before, or more
    _, spike, _ = noticed(Spikes(RULE), [*usual, *[math.nan] * 20])
    assert spike.loss == math.inf
    assert not noticed(Spikes(RULE), [*usual, *[9.0] * 4, *usual])  # a few bad batches
    assert not noticed(Spikes(RULE), [2.0 - 0.01 * i for i in range(150)])
    assert noticed(Spikes(RULE), [*[-2.0] * 30, *[-0.5] * 20])  # a loss may be negative
    assert not noticed(Spikes(RULE), [*[-2.0] * 30, *[-1.5] * 20])
    assert not noticed(Spikes(None), [*usual, *[math.nan] * 20])


def test_the_record_of_losses_resumes():
    losses = [*[1.0, 1.1] * 15, *[3.0] * 20]
    whole = noticed(Spikes(RULE), losses, [20])
    for cut in (10, 29, 33, 42):
        first = Spikes(RULE)
        assert noticed(first, losses[:cut], [20]) is None
        assert noticed(Spikes(RULE, first.record()), losses, [20], start=cut) == whole


def test_the_checkpoints_that_a_roll_back_may_lead_to():
    spikes = Spikes(RULE)
    for step in (5, 10, 15, 20, 25):
        spikes.anchor(step)
    back = LOOK_BACK + NEWEST
    assert [spikes.target(step + back) for step in (4, 5, 9, 14, 15)] == [None, 5, 5, 10, 15]
    spikes.anchor(40)
    assert spikes.anchors == [20, 25, 40]  # of older ones only the newest that is old enough
    spikes.losses.extend([1.0] * back)
    spikes.take_back(45, 25, Spike(3.0, 1.0))
    assert spikes.anchors == [25, 45] and not spikes.losses  # 40 had the updates taken back
    assert [spikes.was_taken_back(step) for step in (25, 26, 45, 46)] == [False, True, True, False]


def test_updates_that_are_skipped_end_a_run_only_if_they_are_not_taken_back():
    """Of a loss that is never finite again: 13 steps at first, 16 after a roll-back."""
    spikes, nothing = Spikes(RULE), Nothing()
    shared = events.Instruments(
        nothing, {}, Clock(1, 0), nothing, nothing, nothing, {}, nothing, spikes
    )
    logged = events.logged(shared, dict, due=lambda step: step % 50 == 0, max_skipped_steps=14)
    steps, rolled_back = [], []

    def run():
        for step in range(1, 100):
            steps.append(step)
            skipped = max(step - max([30, *rolled_back]), 0)
            logged.act(step, None, {"train/skipped_in_a_row": jnp.int32(skipped)})
            loss = jnp.float32(math.nan if step > 30 else 1.0)
            if len(rolled_back) < 2 and (spike := spikes.note(loss)):
                spikes.take_back(step, 20, spike)
                rolled_back.append(step)
            elif step % 5 == 0:
                spikes.anchor(step)

    with pytest.raises(Diverged, match="The last 14 gradients"):
        run()
    assert rolled_back == [43, 59] and steps[-1] == 59 + 14 + LOOK_BACK


#: Steps whose learning rate is far too high.
HIGH = range(31, 34)


@pytest.fixture
def spiking(monkeypatch):
    real = optim.learning_rate_schedule

    def schedule(*args, **kwargs):
        usual = real(*args, **kwargs)
        return lambda step: jnp.where(
            (jnp.asarray(step) >= HIGH[0]) & (jnp.asarray(step) <= HIGH[-1]), 30.0, usual(step)
        )

    monkeypatch.setattr(optim, "learning_rate_schedule", schedule)


SETTINGS = (
    "--config.total_steps=64", "--config.checkpoint_every_steps=5", "--config.log_every_steps=10",
    "--config.roll_back.factor=1.5", "--config.roll_back.window=12",
)  # fmt: skip


def test_55_updates_are_taken_back_and_a_resume_gives_the_same_bytes(
    spiking, tmp_path, monkeypatch, capsys
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert train(whole, *SETTINGS) == 0
    (line,) = [r for r in read_metrics(whole / "metrics.jsonl") if "roll_back/from" in r]
    first, last = line["roll_back/from"], line["roll_back/to"]
    assert first - 1 <= last - LOOK_BACK - NEWEST < first + 4 and last == line["step"]
    assert line["roll_back/loss"] > 1.5 * line["roll_back/usual"]
    end = read_metrics(whole / "metrics.jsonl")[-1]
    assert end["train/skipped_updates"] == last - first + 1 and end["train/loss"] < 3
    assert f"rolled back to the weights of step {first - 1:.0f}" in capsys.readouterr().out
    assert f"steps {first} to {last} were undone" in report.render(whole)
    newest = sorted((whole / "checkpoints").glob("0*"))[-1]
    meta = files.read_json(newest / "meta" / "metadata")
    assert [(r["from"], r["to"]) for r in meta["roll_back"]["ranges"]] == [(first, last)]

    real = events.save
    for death in (int(last), int(last) + 5):  # in the roll-back, and after it

        def save(shared, step, state, death=death):
            if step >= death:
                raise KeyboardInterrupt
            real(shared, step, state)

        monkeypatch.setattr(events, "save", save)
        assert train(broken, *SETTINGS) == 130
    monkeypatch.setattr(events, "save", real)
    assert train(broken, *SETTINGS) == 0
    model = "model/model.safetensors"
    assert (broken / model).read_bytes() == (whole / model).read_bytes()


class Nothing:
    """Stands for the log, the pace and the checkpoints of a run."""

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


def test_55_a_last_roll_back_and_one_without_a_checkpoint():
    def shared(spikes):
        nothing = Nothing()
        return events.Instruments(
            nothing, {}, nothing, nothing, nothing, nothing, {}, nothing, spikes
        )

    def run(spikes):
        event = events.rolled_back(shared(spikes), None)
        for step, loss in enumerate([*[1.0] * 30, *[9.0] * 40], start=1):
            assert event.act(step, None, {"train/loss": jnp.float32(loss)}) is None

    run(Spikes(RULE))  # once: then it is usual
    spikes = Spikes(RULE._replace(limit=1))
    spikes.ranges.append({"from": 2, "to": 3, "loss": 9.0, "usual": 1.0})
    spikes.anchors.append(3)
    with pytest.raises(Diverged, match=r"rolled back 1 times already \(config.roll_back.limit\)"):
        run(spikes)
