"""The environment files have only flags that this jaxlib knows."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ENV = Path(__file__).parents[2] / "launch" / "env"


def read(name):
    lines = (ENV / name).read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def start_jax(**environment):
    """JAX reads XLA_FLAGS when its backend starts; an unknown flag ends the process."""
    return subprocess.run(
        [sys.executable, "-c", "import jax; jax.devices()"],
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        capture_output=True,
        text=True,
    )


def test_jax_starts_with_the_flags_for_gpus():
    environment = read("gpu.env")
    assert "--xla_gpu_" in environment["XLA_FLAGS"]
    done = start_jax(**environment)
    assert done.returncode == 0, done.stderr


def test_an_unknown_flag_would_be_noticed():
    done = start_jax(XLA_FLAGS=read("gpu.env")["XLA_FLAGS"] + " --xla_gpu_enable_triton_softmax")
    assert done.returncode != 0
    assert "Unknown flag" in done.stderr


def test_flags_for_tpus_are_not_in_xla_flags():
    """XLA knows no --xla_tpu flags on other platforms; tests/launch/test_tpu.py asks libtpu."""
    environment = read("tpu.env")
    assert "XLA_FLAGS" not in environment
    assert "--xla_tpu_" in environment["LIBTPU_INIT_ARGS"]


@pytest.mark.parametrize("name", ["gpu.env", "tpu.env"])
def test_a_file_can_be_given_to_docker(name):
    """`docker run --env-file` takes quotes and `export` as they stand."""
    for key, value in read(name).items():
        assert re.fullmatch(r"[A-Z_]+", key)
        assert not set(value) & set("'\"`$\\")


def test_the_flags_were_checked_with_the_versions_that_are_pinned():
    pinned = dict(
        line.split("==")
        for line in (ENV.parent / "requirements.txt").read_text().splitlines()
        if "==" in line
    )
    assert set(pinned) == {"jax", "jaxlib"}
    assert len(set(pinned.values())) == 1
