"""Who is asked whether this is one process of several."""

import http.server
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import pytest

from vit_jax.errors import ALONE, UserError
from vit_jax.runtime import distributed

LAUNCHERS = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "GCE_", "JAX_PLATFORMS")


@pytest.fixture
def joined(monkeypatch):
    """The calls of `jax.distributed.initialize`, in an environment that no launcher has set."""
    for name in list(distributed.os.environ):
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: None)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: calls.append((a, k)))
    return calls


@pytest.fixture
def metadata(monkeypatch):
    """A metadata server whose attributes a test sets, on a machine with libtpu."""
    attributes = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            value = attributes.get(self.path.rpartition("/")[2])
            known = value is not None and self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write((value or "").encode() if known else b"")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("GCE_METADATA_IP", f"127.0.0.1:{server.server_port}")
        monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: SimpleNamespace())
        yield attributes
        server.shutdown()
        thread.join()


def test_one_process_without_a_launcher(joined):
    distributed.join()
    assert joined == []


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        {"TPU_WORKER_HOSTNAMES": "host-0,host-1"},
        {"MEGASCALE_COORDINATOR_ADDRESS": "slice-0"},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_launchers_that_say_so_in_the_environment(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert len(joined) == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "2"},  # inside sbatch or salloc, but not started by srun
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"TPU_WORKER_HOSTNAMES": "localhost"},
    ],
    ids=["no srun", "one task", "one host"],
)
def test_a_launcher_of_one_process(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert joined == []


@pytest.mark.parametrize(
    "attributes, several",
    [
        ({"worker-network-endpoints": "a:0:10.0.0.1,b:1:10.0.0.2"}, True),
        ({"worker-network-endpoints": "a:0:10.0.0.1"}, False),
        (
            {
                "worker-network-endpoints": "a:0:10.0.0.1",
                "tpu-env": "MEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'\n",
            },
            True,
        ),
        ({}, False),
    ],
    ids=["four hosts", "one host", "slices of one host", "no TPU"],
)
def test_a_cloud_tpu_machine_asks_its_metadata_server(joined, metadata, attributes, several):
    metadata.update(attributes)
    distributed.join()
    assert len(joined) == several


def test_the_metadata_server_is_not_asked_when_the_tpu_is_ruled_out(joined, metadata, monkeypatch):
    metadata["worker-network-endpoints"] = "a:0:10.0.0.1,b:1:10.0.0.2"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    distributed.join()
    assert joined == []


def test_the_flags_belong_together(joined):
    distributed.join("host:1", 2, 1)
    assert joined[0][0] == ("host:1", 2, 1)
    with pytest.raises(UserError, match="give all three or none"):
        distributed.join("host:1")


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_NTASKS": "", "SLURM_PROCID": "0"},
        {"SLURM_NTASKS": "2", "SLURM_PROCID": ""},
        {"OMPI_COMM_WORLD_SIZE": ""},
        {"TPU_WORKER_HOSTNAMES": ""},
        {"MEGASCALE_COORDINATOR_ADDRESS": ""},
        {"SLURM_NTASKS": " ", "SLURM_PROCID": "0", "SLURM_STEP_ID": ""},
    ],
    ids=lambda environment: next(iter(environment)),
)
def test_a_variable_that_was_emptied_is_unset(joined, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.join()
    assert joined == []


@pytest.mark.parametrize("step", [None, "", "4294967291"])
def test_a_batch_script_without_srun_is_alone_and_says_so(joined, monkeypatch, capsys, step):
    """SLURM sets SLURM_NTASKS and SLURM_PROCID in a batch script too; its step is none."""
    for name, value in {"JOB_ID": "7", "NTASKS": "2", "PROCID": "0", "STEP_ID": step}.items():
        if value is not None:
            monkeypatch.setenv(f"SLURM_{name}", value)
    distributed.join()
    assert joined == []
    assert "SLURM_NTASKS=2, but srun did not start this process" in capsys.readouterr().err
    monkeypatch.setenv("SLURM_STEP_ID", "0")
    distributed.join()
    assert len(joined) == 1


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_a_count_that_is_no_number_is_named(joined, monkeypatch, name):
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv(name, "2(x4)")
    with pytest.raises(UserError, match=rf"{name}=2\(x4\) is not a number of processes"):
        distributed.join()


def test_one_process_is_alone(joined, monkeypatch):
    """Whatever a launcher says."""
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")
    distributed.join(num_processes=1)
    distributed.join(num_processes=1, process_id=0)
    assert joined == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("host:1", 2, 2), "--process_id=2 is out of range; give 0 to 1 with --num_processes=2."),
        (("host:1", 2, -2), "--process_id=-2 is out of range"),
        (("host:1", -1, 0), "--num_processes=-1 is not a positive number."),
        (("host", 2, 1), "--coordinator=host is not HOST:PORT"),
        ((":1", 2, 1), "--coordinator=:1 is not HOST:PORT"),
        (("host:", 2, 1), "--coordinator=host: is not HOST:PORT"),
        (("host:99999", 2, 1), "--coordinator=host:99999 is not HOST:PORT"),
        (("host:a", 2, 1), "--coordinator=host:a is not HOST:PORT"),
        (("", 2, 1), "give all three or none"),
        (("", 0, 3), "give all three or none"),
    ],
)
def test_flags_that_cannot_be_are_named(joined, arguments, message):
    """Our sentence, and not JAX's."""
    with pytest.raises(UserError) as raised:
        distributed.join(*arguments)
    assert message in str(raised.value)
    assert joined == []


@pytest.mark.parametrize("environment", [{}, {"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}])
@pytest.mark.parametrize("patience", [1, 3])
def test_patience_is_kept_and_a_partner_that_does_not_come_is_75(patience, environment):
    """25 s became 40, looked at every 20 (here: every 2); launchers restart after 75."""
    program = (
        "import sys, time; from vit_jax.runtime import distributed\n"
        "start = time.monotonic()\n"
        "distributed.SAY_EVERY = 2.0\n"
        "distributed.os._exit = lambda code: (print(code, time.monotonic() - start), sys.exit())\n"
        f"with distributed.waiting({patience}): time.sleep({patience + 2})"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )
    code, seconds = done.stdout.split()
    assert int(code) == ALONE
    assert patience <= float(seconds) < patience + 1
    assert ("SLURM_NTASKS=2: did srun" in done.stderr) == bool(environment)


def test_a_run_in_a_thread_of_a_program_gets_no_signals():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with distributed.StopRequest() as request:
            found.append(request.requested())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False] and signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer [::1]:1"), True),
        (RuntimeError("UNAVAILABLE: the coordinator is gone"), True),
        (ValueError("the peer of config.x"), False),
        (ValueError("UNKNOWN: a kernel failed"), False),
        (UserError("UNKNOWN: gloo"), False),
        (OSError("UNKNOWN: gloo"), False),
    ],
)
def test_a_lost_process_is_known_by_the_status_of_xla(error, lost, monkeypatch):
    """Found by the soak: as a ValueError it ended with 1, which launchers do not start again."""
    assert not distributed.lost_peer(error)  # alone, there is none to lose
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    assert distributed.lost_peer(error) is lost
