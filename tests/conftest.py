"""All tests run on eight fake CPU devices, so that sharding is tested on any machine.

Commands that a test starts as a process of their own inherit the platform and not the devices:
they see one CPU device, as a user's would.
"""

from __future__ import annotations

import gc
import importlib.metadata
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# LLVM compiles without optimisation: the tests' programs are small, and compiling them is most of
# the work. XLA's own passes stay as they are. `XLA_FLAGS= pytest` optimises as for users.
_flags = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):  # another may not know these
    # One module of LLVM, without MLIR: half the time to compile.
    _flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
os.environ.setdefault("XLA_FLAGS", _flags)
# The workers of pytest-xdist share the cores; BLAS reads this when NumPy is imported.
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_threads = str(max(1, (os.cpu_count() or 1) // _workers))
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, _threads)

import jax  # noqa: E402 (after the environment is set)
import pytest  # noqa: E402

# Tracing makes many small objects that live: looking for cycles among them is a tenth of the time.
gc.set_threshold(100_000, 20, 20)

jax.config.update("jax_num_cpu_devices", 8)
# Mixed dtypes are meant where they occur: bfloat16 beside float32 is cast by name.
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def known_machine(monkeypatch):
    """Saves `vit-jax bench` a process; tests/bench/test_bench.py measures the machine once."""
    from vit_jax.bench import measure

    found = {"device": "known", "matmul": 1e12, "copy": 1e9, "products": {}}
    monkeypatch.setattr(measure, "measure_machine", lambda options, dtype: found)
