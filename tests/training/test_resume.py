"""A run that is killed at any step and started again ends in the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from vit_jax.cli import main
from vit_jax.runtime.logbook import read_metrics

OVERRIDES = [
    "--config.pretrain=None",
    "--config.total_epochs=None",
    "--config.total_steps=12",
    "--config.eval_every_epochs=None",
    "--config.eval_every_steps=6",
    "--config.schedule.warmup_steps=2",
    "--config.log_every_steps=1",
    "--config.checkpoint_every_steps=3",
    "--config.batch_size=32",
    "--config.eval_batch_size=360",
    "--config.model.num_layers=1",
    "--config.model.dropout_rate=0.1",
    "--config.polyak_decay=0.99",
]


def command(workdir, *extra):
    return [
        sys.executable, "-m", "vit_jax", "train", "--config=configs/quickstart.py",
        f"--workdir={workdir}", *OVERRIDES, *extra,
    ]  # fmt: skip


def environment(**extra):
    return {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", **extra}


def run(workdir, *extra, **env):
    return subprocess.run(
        command(workdir, *extra), env=environment(**env), capture_output=True, text=True
    )


def start(workdir, *extra):
    return subprocess.Popen(
        command(workdir, *extra),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def weights(workdir):
    return (workdir / "model" / "model.safetensors").read_bytes()


def wait_for_step(process, workdir, step):
    """Returns as soon as the run has logged `step`."""
    deadline = time.monotonic() + 300
    metrics = workdir / "metrics.jsonl"
    while time.monotonic() < deadline:
        records = read_metrics(metrics) if metrics.exists() else []
        if records and records[-1]["step"] >= step:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError(f"step {step} was never reached")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    done = run(workdir)
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.mark.parametrize(
    "step", [pytest.param(2, marks=pytest.mark.long), pytest.param(5, marks=pytest.mark.long), 9]
)
def test_kill_9_and_resume_gives_the_same_bytes(uninterrupted, tmp_path, step):
    with start(tmp_path) as process:
        wait_for_step(process, tmp_path, step)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    if step >= 9:  # the save of step 3 was over when that of step 6 began
        assert "resumed from step" in again.stdout
    assert weights(tmp_path) == weights(uninterrupted)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 13))
    whole = read_metrics(uninterrupted / "metrics.jsonl")
    assert [r["train/loss"] for r in records] == [r["train/loss"] for r in whole]


@pytest.mark.long
def test_memory_choices_are_kept_on_resume(tmp_path):
    """Even where more would fit by now; config.json has what was asked for."""
    auto, little = "--config.memory=auto", "--config.memory_limit_gib=0.014"
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = run(whole, auto, little)
    assert done.returncode == 0, done.stderr
    choice = json.loads((whole / "memory.json").read_text())
    assert choice != {"remat": "none", "accumulation_steps": 1}
    with start(cut, auto, little) as process:
        wait_for_step(process, cut, 9)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    again = run(cut, auto, "--config.memory_limit_gib=4")
    assert again.returncode == 0, again.stderr
    assert "as before" in again.stdout
    assert json.loads((cut / "memory.json").read_text()) == choice
    assert json.loads((cut / "config.json").read_text())["accumulation_steps"] == 1
    assert weights(cut) == weights(whole)


def test_sigterm_saves_and_exits_42(uninterrupted, tmp_path):
    with start(tmp_path) as process:
        wait_for_step(process, tmp_path, 4)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 42, err
    assert "run the same command to resume" in out
    again = run(tmp_path)
    assert again.returncode == 0, again.stderr
    assert weights(tmp_path) == weights(uninterrupted)


def test_a_finished_run_does_nothing_again(uninterrupted, capsys):
    before = weights(uninterrupted)
    assert main(command(uninterrupted)[3:]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert weights(uninterrupted) == before


def test_files_of_a_run(uninterrupted):
    names = {path.name for path in uninterrupted.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "model", "report.html"} <= names
    assert any(
        name.startswith("events.out.tfevents")
        for _, _, files in os.walk(uninterrupted)
        for name in files
    )
    last = read_metrics(uninterrupted / "metrics.jsonl")[-1]
    assert last["final"] is True
    needed = {"train/loss", "train/learning_rate", "train/images_per_second", "eval/accuracy"}
    assert needed <= set(last)
    evaluation = json.loads((uninterrupted / "evaluation.json").read_text())["classification"]
    assert evaluation["num_examples"] == 360
    assert evaluation["accuracy"] == last["eval/accuracy"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("--config.batch_size=64", "batch_size is 32 there and 64 here"),
        ("--config.optimizer.momentum=0.5", "optimizer.momentum is 0.9 there and 0.5 here"),
    ],
)
def test_another_config_on_the_workdir_is_refused(uninterrupted, capsys, override, message):
    before = (uninterrupted / "config.json").read_bytes()
    assert main(command(uninterrupted, override)[3:]) == 1
    error = capsys.readouterr().err
    assert message in error and len(error.strip().splitlines()) == 1
    assert (uninterrupted / "config.json").read_bytes() == before


def test_two_processes_end_in_the_bytes_of_one_with_two_devices(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    best = (
        "--config.keep_best=max:eval/loss",
        "--config.patience=2",
        "--config.eval_every_steps=2",
    )
    done = run(one, *best, JAX_NUM_CPU_DEVICES="2")
    assert done.returncode == 0, done.stderr
    port = 20_000 + os.getpid() % 20_000
    join = (f"--coordinator=127.0.0.1:{port}", "--num_processes=2")
    with (
        start(two, *best, *join, "--process_id=0") as first,
        start(two, *best, *join, "--process_id=1") as other,
    ):
        for rank in (first, other):
            _, err = rank.communicate(timeout=300)
            assert rank.returncode == 0, err
    assert weights(one) == weights(two)
    # An early stop, with the weights of another step than the last.
    ends = [read_metrics(workdir / "metrics.jsonl")[-1] for workdir in (one, two)]
    steps = [(end["best/step"], end["step"]) for end in ends]
    assert steps[0] == steps[1] and 2 <= steps[0][0] < steps[0][1] < 12
