"""The record of who waits, batches that are moved ahead, and what is read out of a trace."""

import gzip
import json
import time
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from vit_jax import config as configuration
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.runtime import profiling, sharding
from vit_jax.runtime.logbook import read_metrics
from vit_jax.runtime.pace import Clock
from vit_jax.training import run


def test_intervals_by_hand():
    assert profiling.union([(5, 6), (0, 2), (1, 3)]) == [(0, 3), (5, 6)]
    assert profiling.overlap([(0, 3), (5, 6)], [(2, 5.5)]) == pytest.approx(1.5)
    assert profiling.overlap([(0, 1)], [(2, 3)]) == 0


def written(directory, events):
    """A trace file as the profiler leaves it; events are (name, begin, duration, args)."""
    found = [{"ph": "M", "name": "process_name", "pid": 1, "args": {"name": "/host:CPU"}}]
    found += [
        {"ph": "X", "name": name, "ts": begin, "dur": duration, "pid": 1, "tid": 1, "args": args}
        for name, begin, duration, args in events
    ]
    file = directory / "plugins" / "profile" / "now" / "host.trace.json.gz"
    file.parent.mkdir(parents=True)
    file.write_bytes(gzip.compress(json.dumps({"traceEvents": found}).encode()))


def test_facts_of_a_trace_by_hand(tmp_path):
    written(tmp_path, [
        ("train", 1000, 500, {"step_num": "1"}), ("train", 1500, 500, {"step_num": "2"}),
        ("wait for input", 1000, 100, {}),
        ("to devices", 1100, 100, {}), ("to devices", 1600, 100, {}),
        ("fusion.7", 1150, 100, {"hlo_op": "fusion.7", "run_id": "5"}),
        ("dot", 1400, 250, {"hlo_op": "dot", "run_id": "5"}),  # computing from 1150 to 1650
        ("other", 1990, 90, {"hlo_op": "other"}),
        ("something else", 0, 9000, {}),
    ])  # fmt: skip
    found = profiling.facts(tmp_path)
    assert found == profiling.Facts(2, 0.5, 51.0, 10.0, 20.0, 50.0)
    assert (
        "2 steps of 0.5 ms: devices computed 51% of the time, the loop waited for input 10%"
        in str(found)
    )


def test_directories_without_a_trace_are_refused(tmp_path):
    with pytest.raises(UserError, match="There is no trace in"):
        profiling.facts(tmp_path)
    written(tmp_path, [("something else", 0, 1, {})])
    with pytest.raises(UserError, match="has no training steps"):
        profiling.facts(tmp_path)


@pytest.mark.parametrize(
    "steps, message",
    [((5, 3), "1 to 9, in order"), ((0, 3), "1 to 9"), ((3, 10), "1 to 9")],
)
def test_wrong_steps(steps, message):
    profiling.check_steps((), 9)
    profiling.check_steps((1, 9), 9)
    with pytest.raises(UserError, match=message):
        profiling.check_steps(steps, 9)


def test_batches_are_moved_two_ahead_and_waits_are_counted(monkeypatch):
    moved, config = [], configuration.default()
    setup = SimpleNamespace(
        config=config,
        data=SimpleNamespace(train=None, train_transform=None),
        program=SimpleNamespace(mesh=None),
    )

    def slow(*_, **__):
        for number in range(100):
            time.sleep(0.02)
            yield {"number": number}

    def to_devices(batch, mesh):
        moved.append(batch["number"])
        return batch

    monkeypatch.setattr(run, "train_batches", slow)
    monkeypatch.setattr(sharding, "to_devices", to_devices)
    monkeypatch.setattr(sharding, "host_rows", lambda mesh, batch_size: None)
    clock = Clock(batch_size=4, step=0)
    batches = run.training_batches(setup, 0, clock)
    for number in range(5):
        assert next(batches)["number"] == number and moved == list(range(number + 3))
    assert clock.waited >= 7 * 0.02
    found = clock.read(5)
    assert 0 < found["train/input_wait_percent"] <= 100
    assert clock.waited == 0
    batches.close()


def test_a_run_leaves_its_waits_and_its_profile(tmp_path, capsys):
    overrides = {
        "pretrain": None, "total_epochs": None, "total_steps": 9, "log_every_steps": 3,
        "eval_every_epochs": None, "batch_size": 32, "model.num_layers": 1,
        "schedule.warmup_steps": 2, "profile_steps": "4,7",
    }  # fmt: skip
    arguments = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
    arguments += [f"--config.{key}={value}" for key, value in overrides.items()]
    assert main(arguments) == 0
    assert "profile of 4 steps of" in capsys.readouterr().out
    found = profiling.facts(tmp_path / "run" / "profile")
    assert found.steps == 4 and 0 <= found.input_wait_percent < 100
    assert found.to_devices_percent > 0 and 0 <= found.overlapped_percent <= 100
    records = [r for r in read_metrics(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
    assert [record["step"] for record in records] == [1, 3, 6, 9]
    assert all(0 <= record["train/input_wait_percent"] <= 100 for record in records)
    again = [*arguments, "--config.profile_steps=1,2"]  # does not change the results
    assert main(again) == 0 and "has finished" in capsys.readouterr().out


def test_the_devices_are_busy_in_a_trace(tmp_path):
    """How a trace marks the work of a device is promised by no interface."""
    profile = profiling.Profile(tmp_path, (1, 2))
    program = jax.jit(lambda x: x @ x @ x)
    x = jax.numpy.ones((500, 500))
    for step in range(1, 4):
        with profile.begin(step):
            results = program(x)
            with profiling.phase(profiling.TO_DEVICES):
                jax.device_put(np.ones(10))
                results.block_until_ready()
        assert profile.is_last(step) == (step == 2)
        if step == 2:
            found = profile.end()
            assert found.steps == 2 and found.computed_percent > 0
    profile.close()
