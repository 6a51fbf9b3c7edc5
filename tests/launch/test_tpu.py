"""The trainer's step compiled for real TPU slices by libtpu's compiler; no TPU is needed.

Needs libtpu, in the version that jax[tpu] names: pip install 'jax[tpu]'.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
import functools, sys
from jax.experimental import topologies
from vit_jax import config
from vit_jax.runtime import sharding
from vit_jax.training import setup as of_run

name, *overrides = sys.argv[1:]
devices = topologies.get_topology_desc(topology_name=name, platform="tpu").devices
sharding.make_mesh = functools.partial(sharding.make_mesh, devices=devices)
settings = dict(item.split("=", 1) for item in overrides)
setup = of_run.set_up(config.load("configs/quickstart.py", settings))
step = of_run.jit_train_step(setup)
traced = step.trace(setup.program.abstract_state, of_run.abstract_batch(setup))
compiled = traced.lower(lowering_platforms=("tpu",)).compile()
text, memory = compiled.as_text(), compiled.memory_analysis()
print(len(devices), devices[0].device_kind)
print(*sorted({op for op in ("all-reduce", "all-gather", "bf16") if op in text}))
print(memory.argument_size_in_bytes + memory.temp_size_in_bytes)
"""
TINY = ["pretrain=None", "compute_dtype=bfloat16", "batch_size=64", "model.num_layers=1"]


def flags():
    """NAME: VALUE of launch/env/tpu.env."""
    lines = (ROOT / "launch" / "env" / "tpu.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and line[0] != "#")


def compile_for(topology, *overrides, **environment):
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install 'jax[tpu]'")
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, topology, *TINY, *overrides],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "2",  # on a single one, models are written for CPUs
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
            "TPU_SKIP_MDS_QUERY": "1",  # there is no TPU whose metadata to ask for
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nor one that only one process may have
            "JAX_ENABLE_COMPILATION_CACHE": "false",
            **flags(),
            **environment,
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "topology, devices, overrides, operations",
    [
        ("v5e:4x4", "16 TPU v5 lite", (), "all-reduce bf16"),
        ("v6e:2x2", "4 TPU v6 lite", ("mesh.fsdp=2",), "all-gather all-reduce bf16"),
    ],
    ids=["v5e-16", "v6e-4 with fsdp"],
)
def test_the_step_compiles_for_a_slice(topology, devices, overrides, operations):
    done = compile_for(topology, *overrides)
    assert done.returncode == 0, done.stderr[-2000:]
    kind, found, size = done.stdout.splitlines()[-3:]
    assert kind == devices
    assert found == operations
    assert 0 < int(size) < 2**30


@pytest.mark.slow
def test_a_flag_that_libtpu_does_not_know_is_noticed():
    """So that the test above says something about the flags of tpu.env."""
    done = compile_for("v5e:2x2", LIBTPU_INIT_ARGS="--xla_tpu_no_such_flag=true")
    assert done.returncode != 0
    assert "xla_tpu_no_such_flag" in done.stderr
