"""Several processes: preempted together, resumed on others; what is said when one is missing."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy
from tiny_runs import finish, free_port, start

from vit_jax.cli import main
from vit_jax.doctor import machine
from vit_jax.errors import PREEMPTED
from vit_jax.runtime import distributed, watchdog
from vit_jax.runtime.logbook import read_metrics

SETTINGS = [
    "--config=configs/quickstart.py", "--config.pretrain=None", "--config.total_epochs=None",
    "--config.eval_every_epochs=None", "--config.schedule.warmup_steps=2",
    "--config.log_every_steps=1", "--config.checkpoint_every_steps=500", "--config.batch_size=32",
    "--config.eval_batch_size=360", "--config.model.dropout_rate=0.1",
    "--config.model.num_layers=1",
]  # fmt: skip


def wait_for_step(job, workdir: Path, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        file = workdir / "metrics.jsonl"
        records = read_metrics(file) if file.exists() else []
        if records and records[-1]["step"] >= step:
            return
        assert all(process.poll() is None for process in job), finish(job)
        time.sleep(0.02)
    raise AssertionError(f"step {step} was never reached")


@pytest.mark.slow
def test_four_processes_are_preempted_together_and_resumed_by_two(tmp_path):
    """4 x 1 device, SIGTERM to one of them, then 2 x 2: as 1 x 4 without a break.

    Not to the bit: sums over four processes are added in another order than over four devices of
    one. With two, they are the same bytes (test_resume.py).
    """
    train = ["train", *SETTINGS, "--config.total_steps=40"]
    [(code, _, err)] = finish(start([*train, f"--workdir={tmp_path / 'whole'}"], 1, 4))
    assert code == 0, err
    workdir = tmp_path / "broken"
    job = start([*train, f"--workdir={workdir}"], 4, 1)
    wait_for_step(job, workdir, 3)
    job[2].send_signal(signal.SIGTERM)
    found = finish(job)
    assert [code for code, _, _ in found] == [42] * 4, found
    steps = {re.search(r"saved step (\d+)", out)[1] for _, out, _ in found}
    assert len(steps) == 1 and 3 <= int(steps.pop()) < 40
    for code, out, err in finish(start([*train, f"--workdir={workdir}"], 2, 2)):
        assert code == 0, (out, err)
    whole, broken = (
        safetensors.numpy.load_file(where / "model" / "model.safetensors")
        for where in (tmp_path / "whole", workdir)
    )
    off = sum(float(np.square(broken[path] - value).sum()) for path, value in whole.items())
    size = sum(float(np.square(value).sum()) for value in whole.values())
    # Other data, keys or steps would be off by a hundredth and more.
    assert (off / size) ** 0.5 < 1e-3, (off / size) ** 0.5


def test_evaluators_read_parameters_that_lie_on_two_processes(tmp_path):
    job = start(
        [
            "train", *SETTINGS, "--config.total_steps=4", f"--workdir={tmp_path}",
            "--config.mesh.fsdp=2", "--config.mesh.data=1",
            "--config.evaluators.classification.data=digits", "--config.evaluators.knn.data=digits",
            "--config.evaluators.fewshot.data=digits", "--config.evaluators.fewshot.shots=(5,)",
        ],
        2, 1,
    )  # fmt: skip
    for code, out, err in finish(job):
        assert code == 0, (out, err)
    last = read_metrics(tmp_path / "metrics.jsonl")[-1]
    assert last["classification/accuracy"] == last["eval/accuracy"]
    assert {name.split("/")[0] for name in last} >= {"knn", "fewshot"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.slow
def test_a_peer_that_dies_or_freezes_is_noticed(tmp_path, number):
    workdir = tmp_path / "w"
    train = ["train", *SETTINGS, "--config.total_steps=1000000", f"--workdir={workdir}"]
    job = start(train, 2, 1)
    wait_for_step(job, workdir, 3)
    begin = time.monotonic()
    job[1].send_signal(number)
    out, err = job[0].communicate(timeout=120)
    assert job[0].returncode == -signal.SIGABRT and time.monotonic() - begin < 60, (out, err)
    if number == signal.SIGKILL:  # in the middle of a collective
        assert "another process of the job died" in err, (out, err)
    else:  # JAX's own heartbeat
        assert "stopped sending heartbeats" in err or "heartbeat" in err
    job[1].kill()
    job[1].communicate()


@pytest.mark.slow
def test_a_write_that_fails_on_one_process_ends_all(tmp_path):
    """As a quota would, on the process that writes most: no file above 20,000 bytes."""
    more = ["--config.total_steps=3000", "--config.log_every_steps=5", "--config.batch_size=8"]
    command = ["train", *SETTINGS, *more, "--config.checkpoint_every_steps=10",
               "--config.model.hidden_size=64", f"--workdir={tmp_path / 'run'}"]  # fmt: skip
    job = start(command, 2, 1)
    while not (tmp_path / "run" / "saved.json").exists():
        assert job[0].poll() is None
        time.sleep(0.1)
    resource.prlimit(job[0].pid, resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    (code, _, err), (other, *_) = finish(job, seconds=100)
    assert code == 1 and "was not written to" in err and other != 0


def test_a_process_that_does_not_join_is_named():
    job = start(["doctor", "--patience=8"], 3, 1)
    missing = job.pop()
    missing.kill()
    missing.communicate()
    lines = [err for _, _, err in finish(job)]
    assert "of 3 processes" in lines[0] and "127.0.0.1 x" in lines[0]
    assert "process 0 responds" in lines[1] or "does not respond" in lines[1]


def test_doctor_runs_collectives_over_all_processes():
    found = finish(start(["doctor", "--devices"], 2, 2))
    assert [code for code, _, _ in found] == [0, 0], found
    out = found[0][1]
    assert "4 (cpu): 2 processes x 2" in out
    assert re.search(r"ok +collective all to all +.* over 4 device", out)


def test_doctor_names_what_is_wrong(tmp_path, capsys):
    arguments = [
        "doctor", "--devices", "--data=digits", f"--checkpoint={tmp_path}/none",
        "--config=configs/quickstart.py",
    ]  # fmt: skip
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "WRONG  checkpoint" in out and "1 problem found" in out
    assert "digits[test]: 360 examples" in out and "collective sum" in out
    assert main(["doctor", "--data=folder:/no/such"]) == 1


def test_a_stale_lock_file_is_told_from_a_held_one(tmp_path):
    import fcntl

    lock = tmp_path / "libtpu_lockfile"
    assert list(machine.lock_file(lock)) == []
    lock.touch()
    [finding] = machine.lock_file(lock)
    assert not finding.ok and f"rm {lock}" in finding.text
    with open(lock) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        [finding] = machine.lock_file(lock)
        assert "held by a running process" in finding.text


def test_a_missing_package_is_a_finding(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("jax", "no-such-package"))
    found = [finding for finding in machine.installation() if finding.name == "packages"]
    assert found[0].text == f"jax {jax.__version__}" and found[1].ok is False
    assert found[1].text == "missing: pip install no-such-package"


def test_a_process_that_holds_the_accelerator_is_named(tmp_path, monkeypatch):
    device = tmp_path / "accel0"
    device.touch()
    monkeypatch.setattr(machine, "DEVICE_FILES", (str(device),))
    command = [
        sys.executable,
        "-c",
        f"f = open({str(device)!r}); print('open', flush=True); input()",
        "\udcff",  # a command line need not be UTF-8
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout.readline()
        found = [f.text for f in machine.holders() if f.name == "held"]
        assert any(f"process {holder.pid} " in text and str(device) in text for text in found)
        holder.kill()


def test_errors_of_a_lost_peer(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    lost = jax.errors.JaxRuntimeError("Gloo all-reduce failed: Connection reset by peer")
    assert distributed.lost_peer(lost)
    assert not distributed.lost_peer(jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"))
    assert not distributed.lost_peer(ValueError("Gloo"))


WATCHED = """
import sys, time
from vit_jax.runtime.watchdog import Watchdog
with Watchdog(0.4) as dog:
    for i in range(8):
        dog.beat(f"step {i}", progress=i == 3 and sys.argv[1] == "saved")
        time.sleep(0.1)
    time.sleep(60)
"""


@pytest.mark.parametrize(("saved", "code"), [("saved", 42), ("nothing", 1)])
def test_the_watchdog_ends_what_stands_still(saved, code):
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, saved], capture_output=True, text=True, timeout=50
    )
    assert done.returncode == code and time.monotonic() - begin < 40
    assert "after step 7: a process of the job" in done.stderr
    assert "time.sleep" in done.stderr or "Thread 0x" in done.stderr  # where it stood


STOPPED = """
import time
from vit_jax.runtime.watchdog import Watchdog
with Watchdog(1.5) as dog:
    dog.beat("step 1")
    print("begun", flush=True)
    for i in range(6):
        time.sleep(0.1)
    dog.beat("step 2")
"""


def test_the_watchdog_does_not_count_the_time_of_a_stopped_process():
    """SIGSTOP and SIGCONT, as `scontrol suspend` and `resume` send them."""
    with subprocess.Popen([sys.executable, "-c", STOPPED], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGSTOP)
        time.sleep(3)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 0


def test_the_watchdog_leaves_a_run_alone_that_moves(monkeypatch, capfd):
    ends = []
    monkeypatch.setattr(watchdog.os, "_exit", ends.append)
    with watchdog.Watchdog(2.0) as dog:
        for i in range(24):
            dog.beat(f"step {i}")
            time.sleep(0.1)
    with watchdog.Watchdog(0.0):
        time.sleep(0.05)
    assert not ends
    with watchdog.Watchdog(0.1) as dog:
        dog.beat("step 24", progress=True)
        time.sleep(0.5)
    assert set(ends) == {PREEMPTED}
    assert "after step 24" in capfd.readouterr().err


def test_a_port_that_is_taken_is_one_line(tmp_path):
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "vit_jax", "train", *SETTINGS, f"--workdir={tmp_path}"),
                *(f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0"),
            ],
            env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert f"Port {port} on this machine" in ended.stderr


def test_an_error_of_one_process_keeps_its_sentence_and_its_code(tmp_path):
    """A launcher would restart after 134, and nobody would see the reason."""
    train = ["train", *SETTINGS, "--config.total_steps=4", f"--workdir={tmp_path}"]
    port = free_port()
    begin = time.monotonic()
    data = ("digits", "folder:/no/such/place")  # where a host has its data may differ
    job = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "vit_jax", *train, f"--coordinator=127.0.0.1:{port}"),
                *("--num_processes=2", f"--process_id={i}", f"--config.data.dataset={data[i]}"),
            ],
            env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        _, err = job[1].communicate(timeout=300)
        assert job[1].returncode == 1, err
        [line] = [line for line in err.splitlines() if "vit-jax: error" in line]
        assert "There is no folder /no/such/place" in line
    finally:
        job[0].kill()
        job[0].communicate()
    assert time.monotonic() - begin < 300
