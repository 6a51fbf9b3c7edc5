"""Which exit codes are restarted, how often: launch/restart.py and worker.sh, real processes."""

import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_jax import errors

LAUNCH = Path(__file__).parents[2] / "launch"
RESTART = runpy.run_path(str(LAUNCH / "restart.py"))
LIMIT = RESTART["LIMIT"]

# A run whose Nth start does what line N of `ends` says: an exit code, "wait" (until TERM: 42) or
# "die" (kill -9); saving S says that step S is on the disk.
RUN = """#!/bin/bash
trap 'echo saved >>"{0}/log"; exit 42' TERM
echo start >>"{0}/starts"
read -r end _ step < <(sed -n "$(wc -l <"{0}/starts")p" "{0}/ends")
if [ "$step" ]; then
  mkdir -p "{0}/work/$STAGE"
  echo "{{\\"step\\": $step}}" >"{0}/work/$STAGE/saved.json"
fi
[ "$end" != die ] || kill -KILL $$
[ "$end" != wait ] || while true; do sleep 0.02; done
exit "${{end:-0}}"
"""


class Run:
    def __init__(self, folder):
        self.folder = folder
        self.program = folder / "vit-jax"
        self.program.write_text(RUN.format(folder))
        self.program.chmod(0o755)
        (folder / "work").mkdir()

    def ends(self, *lines):
        (self.folder / "ends").write_text("\n".join(map(str, lines)) + "\n")

    def starts(self):
        path = self.folder / "starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    def wait_for_starts(self, count):
        wait_for(lambda: self.starts() >= count)

    def words(self, *options):
        train = (self.program, "train", f"--workdir={self.folder / 'work'}")
        return [sys.executable, str(LAUNCH / "restart.py"), "run", *options, *map(str, train)]

    def environment(self, **extra):
        return {**os.environ, "RESTART_DELAY": "0", "STAGE": "", **extra}

    def __call__(self, *options, **extra):
        return subprocess.run(
            self.words(*options),
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=60,
        )


def wait_for(condition):
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_exit_codes_are_those_of_the_program():
    """Preempted, alone, and the signals ABRT and KILL."""
    aborted, killed = 128 + signal.SIGABRT, 128 + signal.SIGKILL
    assert set(RESTART["AGAIN"]) == {errors.PREEMPTED, errors.ALONE, aborted, killed}


@pytest.mark.parametrize("end", [42, 75, 134, 137, "die"])
def test_exit_codes_that_are_restarted(run, end):
    run.ends(end, end, 0)
    done = run("--again")
    assert (done.returncode, run.starts()) == (0, 3)
    assert done.stderr.count("restarting") == 2


@pytest.mark.parametrize("end", [0, 1, 2, 7, 130, 139])
def test_exit_codes_that_are_not_restarted(run, end):
    run.ends(end)
    assert run("--again").returncode == end
    assert run.starts() == 1


@pytest.mark.parametrize("end", [42, 134, "die"])
def test_a_run_that_makes_no_progress_stops_and_says_why(run, end):
    """On one machine."""
    run.ends(f"{end} saving 7", *50 * [end])
    done = run("--again")
    assert done.returncode == 1
    assert run.starts() == 1 + LIMIT + 1  # the first one saved step 7
    said = done.stderr.splitlines()[-1]
    assert f"started {LIMIT + 1} times without saving anything beyond step 7" in said
    assert RESTART["AGAIN"][137 if end == "die" else end] in said


def test_a_run_that_makes_no_progress_stops_where_each_try_is_another_pod(run):
    """The count is in the workdir, and the next command restarts the count."""
    run.ends(*50 * [134])
    codes = [run().returncode for _ in range(LIMIT + 2)]
    assert codes == [134] * LIMIT + [1, 134]
    assert json.loads((run.folder / "work/restarts/0.json").read_text())["tries"] == 1


def test_a_machine_that_goes_with_its_pod_counts_too(run):
    """Nobody is left to see the end: out of memory, or the power."""
    run.ends(*50 * ["wait"])
    for number in range(LIMIT + 1):
        with subprocess.Popen(run.words(), env=run.environment()) as pod:
            run.wait_for_starts(number + 1)
            pod.kill()
    done = run()
    assert done.returncode == 1
    assert "without saving anything beyond its first step" in done.stderr
    assert run.starts() == LIMIT + 1


@pytest.mark.parametrize("stage", ["", "pretrain"])
def test_progress_resets_the_limit(run, stage):
    """A step more is enough, in whatever stage."""
    run.ends(*[f"{(42, 134, 137, 75)[i % 4]} saving {i}" for i in range(3 * LIMIT)], 0)
    assert run("--again", STAGE=stage).returncode == 0
    assert run.starts() == 3 * LIMIT + 1
    assert not (run.folder / "work/restarts").exists()


def test_waiting_for_other_processes_is_bounded(run):
    """Machines that are asked for one by one; there is an end to it all the same."""
    run.ends(*5 * LIMIT * [75], 0)
    assert run("--again").returncode == 0
    run.ends(*1000 * [75])
    (run.folder / "starts").unlink()
    done = run("--again", "--waits=8")
    assert done.returncode == 1
    assert run.starts() == 9
    assert "the other processes did not join" in done.stderr.splitlines()[-1]


def test_processes_and_jobs_count_for_themselves(run):
    run.ends(*50 * [134])
    for slice_id in "01":
        for index in "01":
            there = {"MEGASCALE_SLICE_ID": slice_id, "JOB_COMPLETION_INDEX": index}
            assert [run(**there).returncode for _ in range(LIMIT)] == [134] * LIMIT
    assert len(list((run.folder / "work/restarts").iterdir())) == 4
    assert [run(SLURM_JOB_ID="1").returncode for _ in range(LIMIT)] == [134] * LIMIT
    assert [run(SLURM_JOB_ID="2").returncode for _ in range(LIMIT)] == [134] * LIMIT


def test_an_unmounted_share_is_not_created(run):
    words = [*run.words()[:-1], "--workdir=/nowhere-mounted/run"]
    run.ends(42)
    done = subprocess.run(words, env=run.environment(), capture_output=True, text=True)
    assert done.returncode == 42
    assert "starts are not counted: /nowhere-mounted/run" in done.stderr
    assert not Path("/nowhere-mounted").exists()


def test_term_is_passed_on_and_ends_it(run):
    run.ends("wait")
    with subprocess.Popen(run.words("--again"), env=run.environment()) as process:
        run.wait_for_starts(1)
        process.terminate()
        assert process.wait(20) == 42
    assert run.starts() == 1
    assert (run.folder / "log").read_text() == "saved\n"


def test_a_supervisor_that_is_killed_leaves_no_run_behind(run):
    run.ends("wait")
    with subprocess.Popen(run.words("--again"), env=run.environment()) as process:
        run.wait_for_starts(1)
        process.kill()
    wait_for((run.folder / "log").exists)


@pytest.mark.parametrize("how", ["stop", "term"])
def test_a_stop_during_the_pause_prevents_the_restart(run, how):
    """Looked at again when the pause is over."""
    run.ends(134, "wait")
    folder = run.folder / "state"
    folder.mkdir()
    words = run.words("--again", f"--folder={folder}")
    with subprocess.Popen(
        words, env=run.environment(RESTART_DELAY="60"), stderr=subprocess.PIPE, text=True
    ) as process:
        process.stderr.readline()  # restarting
        if how == "stop":
            (folder / "stop").touch()
        else:
            process.terminate()
        assert process.wait(20) == 134
    assert run.starts() == 1
    assert (folder / "exit").read_text() == "134\n"


class Worker:
    """worker.sh in a home of its own, where setup has been."""

    def __init__(self, run, home):
        self.run, self.home = run, home
        (home / "venv/bin").mkdir(parents=True)
        (home / "venv/bin/vit-jax").symlink_to(run.program)

    def __call__(self, *words, **extra):
        return subprocess.run(
            ["bash", LAUNCH / "worker.sh", *words],
            env={**os.environ, "HOME": str(self.home), **extra},
            capture_output=True,
            text=True,
            timeout=30,
        )


@pytest.fixture
def worker(run):
    worker = Worker(run, run.folder / "home")
    yield worker
    worker("stop")


def test_a_worker_starts_again_after_kill_9_and_stops(run, worker):
    """worker.sh itself."""
    run.ends("die", "wait")
    assert worker("start", f"--workdir={run.folder / 'work'}", RESTART_DELAY="0").returncode == 0
    run.wait_for_starts(2)
    assert worker("status").stdout == "running\n"
    assert worker("stop").stdout == "stopped\n"
    assert worker("status").stdout == "stopped\n"
    assert run.starts() == 2


def test_a_worker_that_is_stopped_in_the_pause_starts_nothing(run, worker):
    """`stop` does not wait for another try either."""
    run.ends(134, "wait")
    worker("start", f"--workdir={run.folder / 'work'}", RESTART_DELAY="60")
    log = worker.home / "vit_jax_run/log"
    wait_for(lambda: log.exists() and "restarting" in log.read_text())
    begin = time.monotonic()
    assert worker("stop").stdout == "stopped\n"
    assert time.monotonic() - begin < 10
    assert run.starts() == 1


def test_a_worker_on_hold_ends_with_its_run(run, worker):
    """What all hosts are told before the first is asked to stop."""
    assert worker("hold").returncode == 0  # nothing runs: nothing to hold
    run.ends("wait", "wait")
    worker("start", f"--workdir={run.folder / 'work'}", RESTART_DELAY="0")
    run.wait_for_starts(1)
    assert worker("hold").returncode == 0
    assert worker("status").stdout == "running\n"
    pid = (worker.home / "vit_jax_run/pid").read_text().strip()
    subprocess.run(["pkill", "-TERM", "--parent", pid], check=True)
    wait_for(lambda: worker("status").stdout == "stopped\n")
    assert run.starts() == 1


def test_help_and_wrong_usage(run, worker):
    for words in (["restart.py", "--help"], ["check.py", "--help"]):
        done = subprocess.run(
            [sys.executable, LAUNCH / words[0], *words[1:]], capture_output=True, text=True
        )
        assert done.returncode == 0
        assert f"launch/{words[0]}" in done.stdout
    assert "worker.sh install" in worker("--help").stdout
    assert run("--agian").returncode == 2


@pytest.mark.slow
def test_two_real_processes_finish_after_kill_9_of_one(tmp_path):
    """With vit-jax itself: the one that is left aborts, both start again and go on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    workdir = tmp_path / "run"
    settings = {"pretrain": None, "total_epochs": None, "total_steps": 40, "batch_size": 32,
                "eval_every_epochs": None, "log_every_steps": 1, "checkpoint_every_steps": 5,
                "schedule.warmup_steps": 2, "model.num_layers": 1,
                "eval_batch_size": 360}  # fmt: skip
    train = [sys.executable, "-m", "vit_jax", "train", "--config=configs/quickstart.py",
             f"--workdir={workdir}", f"--coordinator={address}", "--num_processes=2",
             *(f"--config.{key}={value}" for key, value in settings.items())]  # fmt: skip
    folders = [tmp_path / str(index) for index in range(2)]
    processes = []
    for index, folder in enumerate(folders):
        folder.mkdir()
        words = [sys.executable, LAUNCH / "restart.py", "run", "--again", f"--folder={folder}"]
        with (folder / "log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*words, *train, f"--process_id={index}"],
                    env={**os.environ, "JAX_NUM_CPU_DEVICES": "1", "RESTART_DELAY": "1"},
                    cwd=LAUNCH.parent,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    try:
        saved = workdir / "saved.json"
        deadline = time.monotonic() + 300
        while not saved.exists():
            assert time.monotonic() < deadline, (folders[0] / "log").read_text()
            time.sleep(0.05)
        subprocess.run(["pkill", "-KILL", "--parent", str(processes[1].pid)], check=True)
        assert [process.wait(300) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.terminate()
    logs = [(folder / "log").read_text() for folder in folders]
    assert "exit code 134: another process of the job died; restarting" in logs[0]
    assert "exit code 137: killed; restarting" in logs[1]
    assert "resumed from step" in logs[0]
    assert (workdir / "model" / "model.safetensors").exists()
