"""What is freed is kept: a program that ran before finds its pages."""

import mmap
import os
import subprocess
import sys

import numpy as np

from vit_jax.runtime import host_memory

SCRIPT = """
import resource, sys, time
from vit_jax.runtime import host_memory
if "keep" in sys.argv:
    assert host_memory.keep_freed_pages()
import jax, jax.numpy as jnp
if "give_back" in sys.argv:
    host_memory.return_freed_pages()
run = jax.jit(lambda x: x + 1)
x = jnp.ones((16 << 20,), jnp.float32)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    time.sleep(0.01)  # until XLA has released it
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def number_of(script: str, *arguments: str) -> float:
    """What a script prints that computes on a CPU, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return float(done.stdout)


def page_faults(*arguments: str) -> float:
    return number_of(SCRIPT, *arguments)


def test_freed_pages_are_reused():
    assert page_faults("keep") < 0.1 * page_faults()


FIRST_THREAD = """
import sys, threading
from vit_jax import cli
cli.prepare_process(["train"])  # it starts a thread
"""


def test_commands_keep_pages_before_their_first_thread():
    """A thread that came first has memory of its own, which XLA's threads then share."""
    script = FIRST_THREAD + SCRIPT.replace(
        "run(x).block_until_ready()",
        "thread = threading.Thread(target=lambda: run(x).block_until_ready())\n"
        "    thread.start()\n    thread.join()",
    )
    assert number_of(script) < 0.1 * page_faults()


def test_pages_can_be_given_back():
    assert page_faults("keep", "give_back") > 0.5 * page_faults()


ROOM = """
import ctypes, sys
from vit_jax.runtime import host_memory
assert host_memory.keep_freed_pages()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
SIZE = 256 << 20
host_memory.begin_peak()
before = host_memory.resident_bytes()
for step in range(12):
    size = SIZE + step * 4096  # a little does not fit, as where memory is aligned
    if "room" in sys.argv:
        host_memory.make_room(size)
    temporary = libc.malloc(size)
    ctypes.memset(temporary, 1, SIZE)
    if step % 3 == 0:
        libc.malloc(2 << 20)  # stays, behind the temporaries
    libc.free(temporary)
print((host_memory.peak_bytes() - before) / SIZE)
"""


def most_held(*arguments: str) -> float:
    """The peak of a loop whose steps take one piece each, in such pieces."""
    return number_of(ROOM, *arguments)


def test_a_step_takes_its_memory_once():
    assert most_held("room") < 1.1
    assert most_held() > 1.9


def test_the_peak_can_be_reset():
    host_memory.begin_peak()
    before = host_memory.peak_bytes()
    # Mapped, since malloc may have pages left over from another test.
    np.frombuffer(mmap.mmap(-1, 64 << 20), np.uint8).fill(1)
    assert host_memory.peak_bytes() > before + (60 << 20)
    host_memory.begin_peak()
    assert host_memory.peak_bytes() < host_memory.resident_bytes() + (8 << 20)


def test_memory_above_the_limit_is_given_back(monkeypatch):
    calls = []
    monkeypatch.setattr(host_memory, "trim", lambda: calls.append(1))
    host_memory.trim_above(2 * host_memory.resident_bytes())
    assert not calls
    host_memory.trim_above(host_memory.resident_bytes() // 2)
    assert calls


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not host_memory.keep_freed_pages()
