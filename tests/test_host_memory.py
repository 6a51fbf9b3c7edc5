"""What is freed is kept: a program that ran before finds its pages."""

import os
import subprocess
import sys

from vit_jax import host_memory

SCRIPT = """
import resource, sys
from vit_jax import host_memory
if "keep" in sys.argv:
    assert host_memory.keep_freed_pages()
import jax, jax.numpy as jnp
if "give_back" in sys.argv:
    host_memory.give_back_freed_pages()
run = jax.jit(lambda x: x + 1)
x = jnp.ones((16 << 20,), jnp.float32)
faults = []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    run(x).block_until_ready()
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(min(faults))
"""


def page_faults(*arguments: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    return int(done.stdout)


def test_a_step_finds_its_pages():
    assert page_faults("keep") < 0.1 * page_faults()


def test_pages_can_be_given_back_after_all():
    assert page_faults("keep", "give_back") > 0.5 * page_faults()


def test_hosts_of_accelerators_are_left_alone(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    assert not host_memory.keep_freed_pages()
