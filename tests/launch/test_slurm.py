"""launch/slurm.sbatch in a real SLURM of one machine: two tasks, TERM, requeued, finished."""

import functools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_jax.runtime.logbook import read_metrics

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "launch" / "slurm.sbatch"
DAEMONS = ("munged", "slurmctld", "slurmd")
SBIN = "/usr/sbin"
STEPS = 60
ENDED = ("COMPLETED", "FAILED")
TRAIN = [
    "--config=configs/quickstart.py",
    "--config.pretrain=None",
    "--config.total_epochs=None",
    f"--config.total_steps={STEPS}",
    "--config.eval_every_epochs=None",
    "--config.schedule.warmup_steps=2",
    "--config.log_every_steps=1",
    "--config.batch_size=32",
    "--config.eval_batch_size=360",
    "--config.model.num_layers=1",
]
SLURM_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket={folder}/munge.socket
SlurmctldPort={port}
SlurmdPort={next_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SchedulerParameters=sched_interval=1,bf_interval=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=5
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES State=UP OverSubscribe=NO
"""


def test_a_dry_run_needs_no_slurm():
    done = subprocess.run(
        ["bash", SBATCH, "--dry-run", "--config=configs/quickstart.py", "--workdir=/shared/a b"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": "/usr/bin:/bin"},
    )
    assert "#SBATCH --signal=TERM@300" in done.stdout
    assert "A node needs 8 GPUs and 64 cores, or the job stays pending" in done.stdout
    step, last = "srun --kill-on-bad-exit=0 --wait=60 vit-jax train", done.stdout.splitlines()[-1]
    assert last == f"{step} '--config=configs/quickstart.py' '--workdir=/shared/a b'"


@pytest.mark.parametrize(
    ("words", "array", "code", "message"),
    [
        (["study"], "2 1 3 3", 0, "vit-jax study --config=c --workdir={w} --trial=2/3\n"),
        (["study"], "5 5 6 2", 0, "vit-jax study --config=c --workdir={w} --trial=1/2\n"),
        (["study"], "3 1 5 3", 1, "the array has gaps"),
        ([], "2 1 3 3", 1, "an array would train in one workdir at once"),
    ],
)
def test_a_job_of_an_array_runs_its_part_of_a_study(tmp_path, words, array, code, message):
    for name, text in (("srun", 'shift 2; echo "$@"'), ("scontrol", ""), ("vit-jax", "")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    environment |= dict(zip(names, array.split(), strict=True))
    work = tmp_path / "work"
    done = subprocess.run(
        ["bash", SBATCH, *words, "--config=c", f"--workdir={work}"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert message.format(w=work) in done.stdout + done.stderr


def test_without_sbatch_it_says_what_to_do():
    environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM")}
    done = subprocess.run(["bash", SBATCH], capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("launch/slurm.sbatch: error: submit it: sbatch ")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A SLURM of this machine alone, with two GPUs in name; the environment of its commands."""
    missing = [name for name in DAEMONS if not shutil.which(name, path=SBIN)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and {', '.join(DAEMONS)} (Debian: slurmctld slurmd munge)")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    port = 20_000 + os.getpid() % 10_000
    values = {"host": host, "folder": folder, "port": port, "next_port": port + 1}
    conf = folder / "slurm.conf"
    conf.write_text(SLURM_CONF.format(**values, cpus=os.cpu_count()))
    for name in ("gpu0", "gpu1"):
        (folder / name).touch()
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-1]\n")
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)

    # vit-jax on PATH, whether or not the package is installed where SLURM looks
    program = folder / "bin" / "vit-jax"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m vit_jax "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "SLURM_CONF": str(conf),
        "PATH": f"{program.parent}:{os.environ['PATH']}:{SBIN}",
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    with (folder / "daemons.log").open("w") as log:
        start = functools.partial(
            subprocess.Popen, env=environment, stdout=subprocess.DEVNULL, stderr=log
        )
        daemons = [start(words) for words in (
            [f"{SBIN}/munged", "--foreground", "--force", f"--key-file={key}",
             f"--socket={folder}/munge.socket", f"--pid-file={folder}/munged.pid",
             f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed"],
            [f"{SBIN}/slurmctld", "-D", "-c", "-f", str(conf)],
            [f"{SBIN}/slurmd", "-D", "-f", str(conf)],
        )]  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while "idle" not in slurm(environment, "sinfo", "--noheader", "--format=%T", check=False):
            assert time.monotonic() < deadline, (folder / "daemons.log").read_text()
            time.sleep(0.5)
        yield environment
    finally:
        slurm(environment, "scancel", "--user=root", check=False)
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait(30)


def slurm(environment, *words, check=True):
    done = subprocess.run(words, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def submit(environment, folder, *words):
    """Submits two tasks for two of the pretended GPUs; returns the job and its output."""
    size = ("--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1", "--time=10")
    cut = words.index(TRAIN[0])
    out = folder / "job.out"
    job = slurm(
        environment, "sbatch", "--parsable", *size, *words[:cut], f"--output={out}", SBATCH,
        *words[cut:],
    )  # fmt: skip
    return job.strip(), out


def field(environment, job, name):
    """A field of `scontrol show job`, such as JobState."""
    return re.search(rf"\b{name}=(\S+)", slurm(environment, "scontrol", "show", "job", job))[1]


def wait_for(condition, what, seconds=400):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


def steps(workdir):
    metrics = workdir / "metrics.jsonl"
    return [record["step"] for record in read_metrics(metrics)] if metrics.exists() else []


@pytest.mark.slow
def test_term_requeues_and_the_run_finishes(cluster, tmp_path):
    workdir = tmp_path / "run"
    job, out = submit(cluster, tmp_path, *TRAIN, f"--workdir={workdir}")

    def text():
        written = out.read_text() if out.exists() else "no output"
        return f"{slurm(cluster, 'scontrol', 'show', 'job', job)}\n{written}"

    wait_for(lambda: len(steps(workdir)) >= 3, text)
    slurm(cluster, "scancel", "--signal=TERM", job)  # to the tasks, as --signal=TERM@300 does
    wait_for(
        lambda: field(cluster, job, "Restarts") == "1" or field(cluster, job, "JobState") in ENDED,
        text,
    )
    assert field(cluster, job, "Restarts") == "1", text()
    assert "requeued" in text()
    assert "in 2 processes" in text()
    saved = max(steps(workdir))
    assert saved < STEPS
    # SLURM waits two minutes, because the old credential is revoked for the second of the requeue
    time.sleep(3)
    slurm(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: field(cluster, job, "JobState") in ENDED, text)
    assert field(cluster, job, "JobState") == "COMPLETED", text()
    assert f"resumed from step {saved}" in text()
    assert (workdir / "model" / "model.safetensors").exists()
    assert steps(workdir) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_a_lost_process_is_started_again(cluster, tmp_path):
    """kill -9 of one of two tasks: the job is requeued, and finishes."""
    workdir = tmp_path / "run"
    job, out = submit(
        cluster, tmp_path, *TRAIN, "--config.checkpoint_every_steps=5", f"--workdir={workdir}"
    )
    wait_for(lambda: len(steps(workdir)) >= 7, out.read_text)
    tasks = subprocess.run(
        ["pgrep", "--full", f"^{sys.executable} -m vit_jax train .*{workdir}"],
        capture_output=True,
        text=True,
    )
    os.kill(int(tasks.stdout.split()[-1]), signal.SIGKILL)
    wait_for(
        lambda: field(cluster, job, "Restarts") == "1" or field(cluster, job, "JobState") in ENDED,
        out.read_text,
    )
    assert "requeued" in out.read_text()
    time.sleep(3)
    slurm(cluster, "scontrol", "update", f"JobId={job}", "StartTime=now")
    wait_for(lambda: field(cluster, job, "JobState") in ENDED, out.read_text)
    assert field(cluster, job, "JobState") == "COMPLETED", out.read_text()
    assert "resumed from step" in out.read_text()
    assert not (workdir / "restarts").exists()


@pytest.mark.slow
def test_a_time_limit_below_the_margin_is_said(cluster, tmp_path):
    """TERM@300 in a job of two minutes comes at once."""
    workdir = tmp_path / "run"
    job, out = submit(
        cluster, tmp_path, "--time=2", *TRAIN, f"--workdir={workdir}", "--config.total_steps=100000"
    )
    wait_for(lambda: field(cluster, job, "JobState") in ENDED, out.read_text)
    assert field(cluster, job, "JobState") == "FAILED", out.read_text()
    assert field(cluster, job, "Restarts") == "0"
    said = "the time limit of 120 s is not above the 300 s before its end"
    assert f"warning: {said}" in out.read_text()
    assert f"error: not requeued: {said}" in out.read_text()


@pytest.mark.slow
def test_an_error_is_not_retried(cluster, tmp_path):
    job, out = submit(cluster, tmp_path, *TRAIN, "--config.seed=x", f"--workdir={tmp_path / 'run'}")
    wait_for(
        lambda: field(cluster, job, "Restarts") != "0" or field(cluster, job, "JobState") in ENDED,
        out.read_text,
    )
    assert field(cluster, job, "JobState") == "FAILED"
    assert field(cluster, job, "ExitCode") == "1:0"
    assert field(cluster, job, "Restarts") == "0"
    assert "vit-jax: error: " in out.read_text()


@pytest.mark.slow
def test_a_cancelled_job_stays_cancelled(cluster, tmp_path):
    workdir = tmp_path / "run"
    job, out = submit(cluster, tmp_path, *TRAIN, f"--workdir={workdir}")
    wait_for(lambda: len(steps(workdir)) >= 3, out.read_text)
    slurm(cluster, "scancel", job)
    wait_for(lambda: field(cluster, job, "JobState") == "CANCELLED", out.read_text)
    time.sleep(3)
    assert field(cluster, job, "JobState") == "CANCELLED"
    assert field(cluster, job, "Restarts") == "0"
