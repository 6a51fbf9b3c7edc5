"""The step compiled for an NVIDIA GPU: what its programs multiply, and what they write."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax import models
from vit_jax.bench import gpu
from vit_jax.errors import UserError

ROOT = Path(__file__).parents[2]
HLO = """HloModule jit_step, num_partitions=1

%inner (p: bf16[8,4], q: bf16[4,16]) -> f32[8,16] {
  %p = bf16[8,4]{1,0} parameter(0)
  %q = bf16[4,16]{1,0} parameter(1)
  ROOT %d = f32[8,16]{1,0} dot(%p, %q), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer (p.1: bf16[8,4], q.1: bf16[4,16]) -> f32[8,16] {
  %p.1 = bf16[8,4]{1,0} parameter(0)
  %q.1 = bf16[4,16]{1,0} parameter(1)
  ROOT %f = f32[8,16]{1,0} fusion(%p.1, %q.1), kind=kCustom, calls=%inner
}

%half (r: f32[8,16]) -> bf16[8,16] {
  %r = f32[8,16]{1,0} parameter(0)
  ROOT %c = bf16[8,16]{1,0} convert(%r)
}

ENTRY %main (a: bf16[8,4], b: bf16[4,16]) -> bf16[8,16] {
  %a = bf16[8,4]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %g = f32[8,16]{1,0} fusion(%a, %b), kind=kCustom, calls=%outer, metadata={op_name="the/dot"}
  %t = bf16[2,3,6,8]{3,2,1,0} bitcast(%a)
  %s = (bf16[2,3,6,8]{3,1,2,0}, u8[0]{0}) custom-call(%t, %t, %t), custom_call_target="__cudnn$fmhaSoftmax"
  ROOT %h = bf16[8,16]{1,0} fusion(%g), kind=kLoop, calls=%half
}
"""  # noqa: E501


def test_programs_by_hand():
    product, attention, other = gpu.programs(HLO)
    assert product.kind == "product" and product.source == "the/dot"
    assert product.flops == 2 * 8 * 4 * 16 and product.operands == ("bf16", "bf16")
    assert product.bytes == 2 * 8 * 4 + 2 * 4 * 16 + 4 * 8 * 16
    assert attention.kind == "attention" and attention.flops == 2 * 2 * (2 * 3 * 6 * 6 * 8)
    assert other == gpu.Program("other", "bf16[8,16]{1,0}", "", 0, 4 * 8 * 16 + 2 * 8 * 16, ())
    assert product.least_seconds(1024.0, 1e9) == 1.0 and other.least_seconds(1e9, 768.0) == 1.0


SCRIPT = """
import json
from vit_jax import models
from vit_jax.bench import gpu
layers = 2
config = models.get_config("B/16", num_layers=layers, dtype="bfloat16")
found = gpu.programs(gpu.compiled_step(config, 64).as_text())
tokens = 64 * 197 * 768
print(json.dumps({
    "operands": sorted({dtype for one in found for dtype in one.operands}),
    "attention": [one.flops / (2 * 64 * 12 * 198 * 198 * 64) for one in found
                  if one.kind == "attention"],
    "strange": [one.result for one in found if "[197,768,64]" in one.result],
    "wide": [one.result for one in found if one.kind == "other"
             and any(f"f32[{s}]" in one.result for s in ("12608,768", "64,197,768", "12608,3072"))],
    "bytes": sum(one.bytes for one in found if one.kind == "other") / (2 * tokens * layers),
}))
"""


@pytest.mark.slow
def test_the_step_compiled_for_a_gpu():
    """Needs XLA's compiler for CUDA, in a directory of its own: see .ci/launch."""
    plugin = os.environ.get("CUDA_PLUGIN", "")
    if not plugin and importlib.util.find_spec("jax_cuda12_plugin") is None:
        pytest.skip("needs jax-cuda12-plugin, which CUDA_PLUGIN may name the directory of")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "JAX_PLATFORMS": "cpu",
             "PYTHONPATH": os.pathsep.join([str(ROOT), plugin, os.environ.get("PYTHONPATH", "")])},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["operands"] == ["bf16"]
    assert sorted(found["attention"]) == [2, 2, 5, 5]  # cuDNN's, forward and backward, both layers
    assert found["strange"] == []  # images of a batch lie apart: every product would turn them
    assert len(found["wide"]) <= 4  # at the ends of the stream only, not in every layer
    # Passes over the tokens per layer, with the optimizer's update, which is computed twice.
    assert found["bytes"] < 101, found


def test_without_the_compiler_it_says_what_to_install():
    if importlib.util.find_spec("jax_cuda12_plugin") is not None:
        pytest.skip("XLA's compiler for CUDA is here")
    with pytest.raises(UserError, match="pip install --no-deps jax-cuda12-plugin"):
        gpu.compiled_step(models.get_config("debug", dtype="bfloat16"), 2)
