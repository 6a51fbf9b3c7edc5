"""Who is asked whether this is one process of several."""

import http.server
import threading
from types import SimpleNamespace

import jax
import pytest

from vit_jax.errors import UserError
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


def test_alone_without_a_launcher(joined):
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
