"""The launchers that use SSH, and worker.sh, end to end, in a cloud that is a folder."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAUNCH = ROOT / "launch"
TRAIN = ("--", "--config=/shared/mine.py", "--workdir=/shared/a b")

# On each host: ends with what the next line of CLOUD/ends says (0 when there is none), "wait" until
# asked to stop. Like the real one it ends with 42 after SIGTERM, and so do all others of its job.
VIT_JAX = """#!/bin/bash
trap 'touch "$CLOUD/asked"; echo saved; exit 42' TERM
printf '%s|' "$PWD" "$@" "$LIBTPU_INIT_ARGS" >>"$HOME/runs"
echo >>"$HOME/runs"
number=$(wc -l <"$HOME/runs")
end=$(sed -n "${number}p" "$CLOUD/ends" 2>/dev/null)
echo "run $number: ${end:=0}"
if [ "$end" = wait ]; then until [ -e "$CLOUD/asked" ]; do sleep 0.05; done; exit 42; fi
exit "$end"
"""


class Cloud:
    """A folder with our gcloud, and the launcher that uses it."""

    def __init__(self, folder):
        self.folder = folder
        for name in ("bin", "hosts", "requests"):
            (folder / name).mkdir()
        gcloud = folder / "bin" / "gcloud"
        fake = Path(__file__).with_name("fake_gcloud.py")
        gcloud.write_text(f'#!/bin/sh\nexec {sys.executable} -S {fake} "$@"\n')
        gcloud.chmod(0o755)
        (folder / "vit-jax").write_text(VIT_JAX)
        (folder / "vit-jax").chmod(0o755)

    def words(self, action, *options):
        size = ("--name=vit", "--zone=us-west4-a", "--poll=0.2", "--shared=gs://bucket")
        return ["bash", str(LAUNCH / "tpu_vm.sh"), action, *size, *options]

    def engine(self, action, *options):
        size = ("--name=vit", "--project=p", "--zone=us-central1-c", "--topology=2x2x2")
        return subprocess.run(
            ["bash", str(LAUNCH / "compute_engine.sh"), action, *size, *options],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def environment(self, **extra):
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return {**os.environ, "PATH": path, "CLOUD": str(self.folder), **extra}

    def __call__(self, action, *options, **extra):
        return subprocess.run(
            self.words(action, *options),
            env=self.environment(**extra),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ends(self, *lines):
        (self.folder / "ends").write_text("\n".join(map(str, lines)) + "\n")

    def calls(self):
        """The commands that were given, such as "queued-resources create" or "ssh start"."""
        lines = (self.folder / "calls").read_text().splitlines()
        for words in map(shlex.split, lines):
            said = next((word for word in words if word.startswith("--command=")), "")
            said = next(
                (w for w in ("install", "start", "hold", "stop") if f"worker.sh {w}" in said), ""
            )
            yield " ".join([*words[3:5], said]).strip()

    def runs(self):
        """{host: how often training was started}."""
        found = (self.folder / "hosts").glob("*/runs")
        return {path.parent.name: len(path.read_text().splitlines()) for path in found}

    def wait_for_runs(self, count):
        deadline = time.monotonic() + 30
        while sum(self.runs().values()) < count:
            assert time.monotonic() < deadline, self.runs()
            time.sleep(0.05)

    def wait_for_the_end(self):
        """What `status` says when nothing runs any more."""
        deadline = time.monotonic() + 30
        while "running" in (said := self("status").stdout):
            assert time.monotonic() < deadline, self.runs()
        return said


def finish(process):
    """The standard error and the exit code of a babysitter, which must end by itself."""
    try:
        said = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    return said, process.returncode


@pytest.fixture
def cloud(tmp_path):
    cloud = Cloud(tmp_path)
    yield cloud
    for pid in tmp_path.glob("hosts/*/vit_jax_run/*pid"):  # what a failed test leaves running
        subprocess.run(["kill", pid.read_text().strip()], capture_output=True)


def test_step_by_step_until_the_run_is_done(cloud):
    for action in ("create", "wait"):
        done = cloud(action, "--type=v5litepod-16", "--spot")
        assert done.returncode == 0, done.stderr
    first = (cloud.folder / "calls").read_text().splitlines()[1]
    assert first == (
        "gcloud compute tpus queued-resources create vit --zone=us-west4-a "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --node-id=vit --spot"
    )
    assert cloud("setup").returncode == 0
    host = cloud.folder / "hosts" / "vit-1"
    assert (host / "vit_jax" / "vit_jax" / "config.py").exists()
    assert "--editable=" in (host / "uv.log").read_text()
    assert "bucket /shared" in (host / "sudo.log").read_text()
    assert cloud("run", *TRAIN).returncode == 0
    cloud.wait_for_runs(2)
    said = cloud.wait_for_the_end()
    assert said.split("\n") == ["exit 0", "exit 0", ""]
    directory, train, *words = (host / "runs").read_text().strip("|\n").split("|")
    assert directory == str(host / "vit_jax")
    assert [train, *words[:-1]] == [
        "train",
        "--config=/shared/mine.py",
        "--workdir=/shared/a b",
    ]
    assert words[-1].startswith("--xla_tpu_")


def test_only_exit_code_42_is_restarted_on_the_host(cloud):
    cloud.ends(42, 42, 7)
    for action in ("create", "setup"):
        assert cloud(action).returncode == 0
    assert cloud("run", *TRAIN).returncode == 0
    said = cloud.wait_for_the_end()
    assert said == "exit 7\nexit 7\n"
    assert cloud.runs() == {"vit-0": 3, "vit-1": 3}


def test_stop_lets_the_run_save_and_it_stays_stopped(cloud):
    cloud.ends("wait")
    for action in ("create", "setup"):
        assert cloud(action).returncode == 0
    assert cloud("run", *TRAIN).returncode == 0
    cloud.wait_for_runs(2)
    twice = cloud("run", *TRAIN)
    assert twice.returncode == 1
    assert "a run is in progress; stop it first" in twice.stderr
    assert "a run is in progress" in cloud("setup").stderr
    assert cloud("stop").stdout == "stopped\nstopped\n"
    assert "saved" in (cloud.folder / "hosts/vit-0/vit_jax_run/log").read_text()
    assert cloud.runs() == {"vit-0": 1, "vit-1": 1}


def test_babysit_creates_trains_and_deletes(cloud):
    cloud.ends(42, 0)
    done = cloud("babysit", "--spot", *TRAIN)
    assert done.returncode == 0, done.stderr
    calls = [call for call in cloud.calls() if "describe" not in call and call != "tpu-vm ssh"]
    assert calls == [
        "queued-resources create",
        "tpu-vm scp",
        "tpu-vm ssh install",
        "tpu-vm ssh start",
        "queued-resources delete",
    ]


def test_babysit_starts_over_when_a_spot_tpu_is_taken_away(cloud):
    cloud.ends("wait")
    with subprocess.Popen(
        cloud.words("babysit", "--spot", "--slices=2", *TRAIN),
        env=cloud.environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as babysitter:
        cloud.wait_for_runs(4)  # two slices of two hosts
        for pid in cloud.folder.glob("hosts/*/vit_jax_run/pid"):
            subprocess.run(["pkill", "-KILL", "--session", pid.read_text().strip()])
        cloud.ends(0)
        (cloud.folder / "requests" / "vit").write_text("SUSPENDING\nSUSPENDED")
        said, code = finish(babysitter)
    assert code == 0, said
    kept = ("queued-resources create", "queued-resources delete")
    assert [call for call in cloud.calls() if call in kept] == 2 * list(kept)
    assert "start 2" in said


@pytest.mark.parametrize("code", [134, 137, 75])
def test_a_host_starts_again_what_lost_its_peers(cloud, code):
    """What docs promise, on the host: JAX aborts with 134 when another process is gone."""
    cloud.ends(code, 0)
    for action in ("create", "setup"):
        assert cloud(action).returncode == 0
    assert cloud("run", *TRAIN).returncode == 0
    assert cloud.wait_for_the_end() == "exit 0\nexit 0\n"
    assert cloud.runs() == {"vit-0": 2, "vit-1": 2}


def test_babysit_tries_again_when_a_host_cannot_be_reached(cloud):
    broken = cloud.folder / "broken"
    broken.write_text("vit-1")
    with subprocess.Popen(
        cloud.words("babysit", *TRAIN), env=cloud.environment(), stderr=subprocess.PIPE, text=True
    ) as babysitter:
        for line in babysitter.stderr:
            if "not all hosts could be started; trying again" in line:
                break
        broken.unlink()
        said, code = finish(babysitter)
    assert code == 0, said
    assert set(cloud.runs().values()) <= {1, 2}


def test_babysit_gives_up_at_an_error_and_keeps_the_tpu(cloud):
    cloud.ends(1)
    done = cloud("babysit", *TRAIN)
    assert done.returncode == 1
    assert "the run ended with an error, see launch/tpu_vm.sh logs" in done.stderr
    assert cloud.runs() == {"vit-0": 1, "vit-1": 1}
    assert "queued-resources delete" not in cloud.calls()


@pytest.mark.parametrize(
    "states, options, message",
    [
        ("FAILED", TRAIN, "the request for vit failed"),
        ("ACTIVE", ("--restarts=0", *TRAIN), "started 0 times without saving anything"),
        ("ACTIVE", TRAIN, None),
    ],
    ids=["no capacity", "no starts left", "done"],
)
def test_babysit_ends_when_there_is_nothing_to_wait_for(cloud, states, options, message):
    done = cloud("babysit", *options, STATES=states)
    assert done.returncode == (1 if message else 0)
    assert message is None or message in done.stderr


def test_an_installation_that_fails_is_not_tried_for_ever(cloud):
    """There is nothing that uv could install."""
    (cloud.folder / "vit-jax").unlink()
    done = cloud("babysit", *TRAIN)
    assert done.returncode == 1
    assert "the installation failed five times" in done.stderr
    assert list(cloud.calls()).count("tpu-vm ssh install") == 5


def test_babysit_ends_when_a_run_makes_no_progress(cloud):
    """It says why; the machines that it is started on count, and babysit above them."""
    cloud.ends(*40 * [134])
    done = cloud("babysit", *TRAIN, RESTART_DELAY="0")
    assert done.returncode == 1
    assert "the run ended with an error" in done.stderr
    log = (cloud.folder / "hosts/vit-0/vit_jax_run/log").read_text()
    assert "started 6 times without saving anything beyond its first step" in log
    assert cloud.runs() == {"vit-0": 6, "vit-1": 6}


def test_errors_of_gcloud_are_shown_in_full(cloud):
    (cloud.folder / "error").write_text("ERROR: (gcloud) PERMISSION_DENIED: no\n- reason: X\n- Y")
    done = cloud("create")
    assert done.returncode == 1
    assert "PERMISSION_DENIED: no" in done.stderr and "reason: X" in done.stderr


def test_a_tpu_that_exists_is_not_created_again(cloud):
    assert cloud("create").returncode == 0
    again = cloud("create")
    assert again.returncode == 1
    assert "vit exists in us-west4-a" in again.stderr


def test_delete_stops_the_run_first(cloud):
    cloud.ends("wait")
    for action in ("create", "setup"):
        assert cloud(action).returncode == 0
    assert cloud("run", *TRAIN).returncode == 0
    cloud.wait_for_runs(2)
    assert cloud("delete").returncode == 0
    last = ["tpu-vm ssh hold", "tpu-vm ssh stop", "queued-resources delete"]
    assert list(cloud.calls())[-3:] == last


@pytest.mark.parametrize("kind", ["tpu_vm", "compute_engine"])
def test_stop_tells_all_hosts_before_the_first_ends(cloud, kind):
    """JAX tells the others when one is asked to stop; none of them may start again then."""
    size = ("--slices=3",) if kind == "tpu_vm" else ()
    call = cloud if kind == "tpu_vm" else cloud.engine
    cloud.ends("wait")
    for action in ("create", "setup"):
        assert call(action, *size).returncode == 0
    assert call("run", *size, *TRAIN).returncode == 0
    hosts = 6 if size else 2
    cloud.wait_for_runs(hosts)
    begin = time.monotonic()
    done = call("stop", *size)
    assert time.monotonic() - begin < 20
    assert done.stdout == "stopped\n" * hosts
    lines = (cloud.folder / "calls").read_text().splitlines()
    told = [word for line in lines for word in ("hold", "stop") if f"worker.sh {word}" in line]
    nodes = 3 if size else 2
    assert told == ["hold"] * nodes + ["stop"] * nodes
    assert set(cloud.runs().values()) == {1}
    assert call("status", *size).stdout == "stopped\n" * hosts


def test_stop_reaches_the_hosts_that_it_can(cloud):
    """One that does not answer is said, the others save."""
    cloud.ends("wait")
    for action in ("create", "setup"):
        assert cloud.engine(action).returncode == 0
    assert cloud.engine("run", *TRAIN).returncode == 0
    cloud.wait_for_runs(2)
    (cloud.folder / "broken").write_text("vit-0")
    done = cloud.engine("stop")
    assert done.returncode != 0
    assert "not all hosts could be told; see status" in done.stderr
    assert done.stdout == "stopped\n"


def test_compute_engine_does_the_same_on_machines_of_a_group(cloud):
    cloud.ends(42, "wait")
    for action in ("create", "wait", "setup"):
        done = cloud.engine(action, "--spot")
        assert done.returncode == 0, done.stderr
    assert cloud.engine("run", *TRAIN).returncode == 0
    cloud.wait_for_runs(4)
    assert cloud.engine("status").stdout == "running\nrunning\n"
    assert cloud.engine("delete").returncode == 0
    assert cloud.runs() == {"vit-0": 2, "vit-1": 2}
    ends = [path.read_text() for path in cloud.folder.glob("hosts/*/vit_jax_run/exit")]
    assert ends == ["42\n", "42\n"]  # saved before the machines went


def test_a_group_without_machines_can_be_deleted_and_nothing_else(cloud):
    """Google had none to give: what was asked for must go all the same."""
    done = cloud.engine("delete")
    assert done.returncode == 0, done.stderr
    assert "instance-groups managed delete vit" in (cloud.folder / "calls").read_text()
    for action in ("status", "stop", "setup", "logs"):
        assert (
            "vit has no machines in us-central1-c; create it first." in cloud.engine(action).stderr
        )
