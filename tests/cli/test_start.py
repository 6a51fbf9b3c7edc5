"""The first moments of a command: TERM is heard, emptied variables are unset. Real processes."""

import contextlib
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

ROOT = Path(__file__).parents[2]
QUICK = ["--config=configs/quickstart.py"]


def command(*words, **extra):
    return subprocess.Popen(
        [*extra.pop("before", ()), sys.executable, "-m", "vit_jax", *words],
        env={**os.environ, **extra},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def hears(pid, number=signal.SIGTERM):
    """Whether a process has a handler; before Python runs, the signal simply ends it."""
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text())
    return bool(int(caught[1], 16) >> (number - 1) & 1)


def term_after(process, seconds, pid=None):
    """Sends TERM, so long after there is a handler; returns the exit code, which comes at once."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(IndexError):  # the process is not there yet
            if hears(pid() if pid else process.pid):
                break
        time.sleep(0.02)
    time.sleep(seconds)
    os.kill(pid() if pid else process.pid, signal.SIGTERM)
    try:
        return process.wait(10)
    finally:
        process.kill()


@pytest.mark.parametrize("seconds", [0, 1, 2.5])
def test_term_ends_a_run_that_starts(tmp_path, seconds):
    """Nothing is lost, so the exit code is one that is restarted."""
    with command("train", *QUICK, f"--workdir={tmp_path}") as process:
        assert term_after(process, seconds) == 42
        assert "asked to stop" in process.stderr.read()


def test_term_is_heard_while_the_others_are_waited_for(tmp_path):
    """The main thread is in JAX then, and would not see a signal for five minutes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    place = [f"--coordinator={address}", "--num_processes=2", "--process_id=0"]
    with command("train", *QUICK, f"--workdir={tmp_path}", *place) as process:
        assert term_after(process, 5) == 42


@pytest.mark.parametrize("seconds", [0, 1])
def test_term_ends_the_first_process_of_a_container(tmp_path, seconds):
    """The kernel throws away what such a process has no handler for."""
    unshare = [shutil.which("unshare") or "unshare", "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True).returncode != 0:
        pytest.skip("needs unshare, and the right to use it")
    with command("train", *QUICK, f"--workdir={tmp_path}", before=unshare) as process:

        def first():
            path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            return int(path.read_text().split()[0])

        assert term_after(process, seconds, first) == 42


def test_term_ends_other_commands_as_it_does_any_program():
    with command("doctor") as process:
        assert term_after(process, 0) == 128 + signal.SIGTERM


#: Read as numbers or addresses by JAX, its detection of clusters, and libtpu.
READ = [
    "JAX_NUM_CPU_DEVICES",
    "JAX_ENABLE_X64",
    "JAX_COORDINATOR_ADDRESS",
    "JAX_COMPILATION_CACHE_DIR",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_STEP_ID",
    "SLURM_LOCALID",
    "SLURM_STEP_NODELIST",
    "OMPI_COMM_WORLD_SIZE",
    "OMPI_COMM_WORLD_RANK",
    "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_MCA_orte_hnp_uri",
    "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID",
    "TPU_SKIP_MDS_QUERY",
    "MEGASCALE_COORDINATOR_ADDRESS",
]


def test_empty_environment_variables_are_unset(tmp_path):
    """The run gets as far as its data, which are not there."""
    environment = dict.fromkeys(READ, "") | {"SLURM_JOB_ID": "1"}
    words = [*QUICK, "--config.pretrain=None", "--config.data.dataset=folder:/nowhere"]
    with command("train", *words, f"--workdir={tmp_path / 'run'}", **environment) as process:
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 1
    assert "/nowhere" in said.splitlines()[-1]
