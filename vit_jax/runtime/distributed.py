"""Multi-process jobs: joining one, and handling requests to stop."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from types import FrameType
from typing import TextIO

import jax
import psutil
from jax.experimental import multihost_utils

from vit_jax.errors import ALONE, UserError, printable


def join(
    coordinator: str = "", num_processes: int = 0, process_id: int = -1, *, patience: int = 300
) -> None:
    """Joins the other processes of the job, if any. Call before a device is used.

    With no arguments, JAX detects SLURM, GKE, Cloud TPU or Open MPI; without a launcher, or with
    `num_processes=1` only, this is a single-process job.

    Args:
      patience: seconds to wait for the others, after which the process exits with ALONE.

    Raises:
      UserError: only some of the three arguments are given, or they are invalid.
    """
    if num_processes == 1 and not coordinator and process_id in (-1, 0):
        return
    initialize = functools.partial(
        jax.distributed.initialize,
        heartbeat_timeout_seconds=30,
        shutdown_timeout_seconds=30,
        initialization_timeout=patience + 60,  # JAX would abort without our message
    )
    given = (bool(coordinator), num_processes != 0, process_id != -1)
    if all(given):
        check_place(coordinator, num_processes, process_id)
        if process_id == 0:
            check_port(coordinator)
        with waiting(patience, coordinator, num_processes, process_id):
            initialize(
                coordinator, num_processes, process_id, cluster_detection_method="deactivate"
            )
    elif any(given):
        raise UserError(
            "--coordinator=HOST:PORT, --num_processes=N and --process_id=I belong together; "
            "give all three or none."
        )
    elif _several_processes():
        with waiting(patience):
            initialize()


def check_port(coordinator: str) -> None:
    """Raises UserError if the port of process 0 is in use: JAX would crash on it."""
    host, _, port = coordinator.rpartition(":")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(("", int(port)))
    except OSError as error:
        raise UserError(
            f"Port {port} on this machine cannot be opened for the other processes "
            f"({error.strerror}); give all processes a --coordinator with a free port."
        ) from error


def check_place(coordinator: str, num_processes: int, process_id: int) -> None:
    """Raises UserError for an invalid process id or address; names the flag."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.1:8476.")
    if num_processes < 1:
        raise UserError(f"--num_processes={num_processes} is not a positive number.")
    if not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} is out of range; give 0 to {num_processes - 1} with "
            f"--num_processes={num_processes}."
        )


#: Interval of a waiting process's messages, in seconds.
SAY_EVERY = 20.0


@contextlib.contextmanager
def waiting(
    patience: int, coordinator: str = "", num_processes: int = 0, process_id: int = -1
) -> Iterator[None]:
    """Reports what a joining process waits for, and exits when its patience is over."""
    joined = threading.Event()

    def watch() -> None:
        begin = time.monotonic()
        seconds = 0.0
        while not joined.wait(min(SAY_EVERY, patience - seconds)):
            seconds = time.monotonic() - begin
            over = seconds >= patience
            who = f"process {process_id} of {num_processes}" if num_processes else "this process"
            print(
                f"{'vit-jax: error: ' if over else ''}{who} has waited {seconds:.0f} s for the "
                f"others{_roll_call(coordinator, num_processes, process_id)}",
                file=sys.stderr,
                flush=True,
            )
            if over:
                os._exit(ALONE)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        joined.set()
        thread.join()


def _roll_call(coordinator: str, num_processes: int, process_id: int) -> str:
    """What is known of the others: who is connected, or that process 0 does not respond."""
    if not coordinator:
        tasks = _count("SLURM_NTASKS")
        if tasks > 1:
            return f"; SLURM_NTASKS={tasks}: did srun start every task, and are all still running?"
        return "; is every process of the job running?"
    host, _, port = coordinator.rpartition(":")
    if process_id != 0:
        try:
            socket.create_connection((host, int(port)), timeout=5).close()
        except OSError as error:
            return f"; process 0 does not respond at {coordinator} ({error})"
        return f"; process 0 responds at {coordinator} and waits as well"
    others = [
        connection.raddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process().net_connections("tcp")
        if connection.laddr.port == int(port) and connection.raddr
    ]
    seen = ", ".join(f"{ip} x{others.count(ip)}" for ip in sorted(set(others))) or "none"
    return (
        f" at {coordinator}; of {num_processes} processes, this one included, these have "
        f"connected: {seen}. Is every process running, with the same --coordinator?"
    )


def _several_processes() -> bool:
    """Whether a launcher's environment says that this job has more than one process."""
    if (tasks := _count("SLURM_NTASKS")) > 1 and os.environ.get("SLURM_PROCID"):
        if not _in_batch_script():
            return True
        print(
            f"SLURM_NTASKS={tasks}, but srun did not start this process: it runs alone. For one "
            "process per task: srun vit-jax train ...",
            file=sys.stderr,
            flush=True,
        )
    if _count("OMPI_COMM_WORLD_SIZE") > 1:
        return True
    if "," in os.environ.get("TPU_WORKER_HOSTNAMES", ""):
        return True
    return bool(os.environ.get("MEGASCALE_COORDINATOR_ADDRESS")) or _on_cloud_tpu_slice()


def _in_batch_script() -> bool:
    """Whether this process runs in a SLURM batch script, not as a task of srun."""
    step = os.environ.get("SLURM_STEP_ID", "")
    return bool(os.environ.get("SLURM_JOB_ID")) and not (step.isdigit() and int(step) < 2**32 - 16)


def _count(variable: str) -> int:
    """A number from the environment; 1 if unset or empty.

    Raises:
      UserError: it is not a number.
    """
    text = os.environ.get(variable, "").strip() or "1"
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{variable}={text} is not a number of processes; unset it, or correct it.")
    return int(text)


def _on_cloud_tpu_slice() -> bool:
    """Whether this machine is one of several in a Cloud TPU slice, by its metadata server.

    Queried only with libtpu installed and the TPU not disabled.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if (platforms and "tpu" not in platforms) or "TPU_SKIP_MDS_QUERY" in os.environ:
        return False
    if importlib.util.find_spec("libtpu") is None:
        return False
    workers = _instance_attribute("worker-network-endpoints")
    return "," in workers or "MEGASCALE_COORDINATOR_ADDRESS" in _instance_attribute("tpu-env")


def _instance_attribute(name: str) -> str:
    """A metadata attribute of this Google Cloud machine; empty if missing, or elsewhere."""
    server = os.environ.get("GCE_METADATA_IP", "metadata.google.internal")
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/{name}",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=3) as reply:
            return reply.read().decode()
    except OSError:
        return ""


#: Texts in errors of collectives or the coordinator that mean another process has ended.
LOST = re.compile(
    r"gloo|connection (reset|closed|refused)|heartbeat|nccl.*(abort|remote)|unhealthy|"
    r"peer|UNAVAILABLE|DEADLINE_EXCEEDED",
    re.IGNORECASE,
)


#: Prefixes of XLA statuses, which some programs raise as ValueError instead of JAX's own.
STATUS = re.compile(r"(UNKNOWN|INTERNAL|UNAVAILABLE|DEADLINE_EXCEEDED|ABORTED|CANCELLED)\b")


def lost_peer(error: BaseException) -> bool:
    """Whether an error means that another process of the job has ended."""
    of_xla = isinstance(error, jax.errors.JaxRuntimeError) or (
        isinstance(error, ValueError | RuntimeError)
        and not isinstance(error, UserError)
        and STATUS.match(str(error)) is not None
    )
    return jax.process_count() > 1 and of_xla and LOST.search(str(error)) is not None


class StopRequest:
    """Handles SIGTERM and the first Ctrl-C; a run polls `requested` after steps and batches.

    With several processes, JAX's preemption service makes all of them agree on one step. A second
    Ctrl-C stops immediately. In a thread of a program, which gets no signals, nothing is handled.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        watched = [signal.SIGINT]
        if jax.process_count() == 1:  # otherwise keep JAX's own handler
            watched.append(signal.SIGTERM)
        for number in watched:
            self._previous[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _notice(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and (self._signalled or jax.process_count() > 1):
            raise KeyboardInterrupt
        self._signalled = True

    def requested(self) -> bool:
        """Whether to save and stop now; the same on every process.

        All must call it equally often: after each step and each batch of an evaluation.
        """
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(next(_asked))
        return self._signalled


#: Number of calls so far: JAX agrees on one of these, and they must increase.
_asked = itertools.count(1)


def say(text: str, file: TextIO | None = None) -> None:
    """Prints a line, on process 0 only; to standard output unless `file` is another."""
    if jax.process_index() == 0:
        print(printable(text), file=file, flush=True)
