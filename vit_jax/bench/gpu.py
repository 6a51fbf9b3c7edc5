"""Lower bounds on the time of training and inference on an NVIDIA GPU, from XLA's compiler alone.

  pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12  # jax's version
  python -m vit_jax.bench.gpu B/16:256 L/16:128 H/14:64

A kernel takes at least the time of its products, and of reading its operands and writing its
results (roofline). The sum over all kernels is a lower bound on a step, and shows where time can be
saved, without a GPU. The compiler cannot autotune without the GPU, so its choice of kernels may
differ there; the arrays written between them do not.
"""

from __future__ import annotations

import contextlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax

from vit_jax import models
from vit_jax.bench import collectives, steps
from vit_jax.errors import UserError, first_line
from vit_jax.models import cost
from vit_jax.numerics import Machine
from vit_jax.runtime import sharding

#: FLOP/s of a large bfloat16 product, and bytes/s of a copy, as measured on an H200.
PEAK, BANDWIDTH = 790e12, 4.3e12

#: XLA's description of an H100 or H200 (the same chip).
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_core: 233472
  shared_memory_per_block_optin: 232448 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 device_address_bits: 64
  cuda_compute_capability { major: 9 feature_extension: ACCELERATED_FEATURES }
  device_vendor: "NVIDIA Corporation" name: "NVIDIA H100 80GB HBM3"
  platform_version: "Compute Capability 9.0a" driver_version: "13.0.0"
  runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0" dnn_version: "9.10.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*?)\)")
FREE = ("parameter", "bitcast", "get-tuple-element", "tuple", "constant")
FORWARD, BACKWARD = "__cudnn$fmhaSoftmax", "__cudnn$fmhaSoftmaxBackward"


class Program(NamedTuple):
    """One kernel of a step. kind: "product", "attention" or "other". source: its origin.

    result: the text of its type. operands: dtypes of its products.
    """

    kind: str
    result: str
    source: str
    flops: float
    bytes: int
    operands: tuple[str, ...]

    def least_seconds(self, peak: float = PEAK, bandwidth: float = BANDWIDTH) -> float:
        return max(self.flops / peak, self.bytes / bandwidth)


#: The target of compilation.
H100 = Machine("gpu", 1, capability=9.0)


@contextlib.contextmanager
def pretended_gpu() -> Iterator[Any]:
    """Lowers programs as on a GPU of compute capability 9.0; yields its device.

    Raises:
      UserError: JAX's CUDA plugin is not installed.
    """
    from jax._src.cudnn import fused_attention_stablehlo as cudnn
    from jax.experimental import topologies

    try:
        topology = topologies.get_topology_desc(
            "h100", platform="cuda", target_config=TARGET, topology="1x1x1"
        )
    except Exception as error:
        raise UserError(
            "XLA's compiler for CUDA is not installed: pip install --no-deps jax-cuda12-plugin=="
            f"{jax.__version__} jax-cuda12-pjrt=={jax.__version__} nvidia-cuda-nvcc-cu12 "
            f"({first_line(error)})."
        ) from error
    # JAX queries the CUDA libraries, which are missing.
    answers = {
        "check_cudnn_version": 91000,
        "check_compute_capability": True,
        "is_cuda_compute_capability_equal": False,
    }
    kept = {name: getattr(cudnn, name) for name in answers}
    try:
        for name, answer in answers.items():
            setattr(cudnn, name, lambda *_, answer=answer, **__: answer)
        yield topology.devices[0]
    finally:
        for name, function in kept.items():
            setattr(cudnn, name, function)


def compiled_step(config: models.ModelConfig, batch: int, *, train: bool = True) -> Any:
    """The training step of a model (Adam, clipped gradients), or inference, compiled for a GPU."""
    with pretended_gpu() as device:
        mesh = sharding.make_mesh(devices=[device])
        jitted, arguments = steps.step_of(config, H100, mesh, batch, train=train)
        lowered = jitted.trace(*arguments).lower(lowering_platforms=("cuda",))
        return lowered.compile({"xla_gpu_autotune_level": "0"})


def programs(hlo: str) -> list[Program]:
    """The kernels of a compiled module, each once; loops are not followed."""
    computations = collectives.split_computations(hlo)
    sizes: dict[str, int] = {}
    found = []
    for line in computations["ENTRY"]:
        match = INSTRUCTION.match(line)
        if not match:
            continue
        name, result, operation, arguments = match.groups()
        sizes[name] = sum(collectives.array_bytes(result))
        if operation in FREE:
            continue
        read = sum(sizes.get(other, 0) for other in re.findall(r"%([\w.\-]+)", arguments))
        called = re.search(r"calls=%([\w.\-]+)", line)
        dots = products(computations, called[1]) if called else []
        kind, count = ("product" if dots else "other"), sum(number for number, _ in dots)
        target = re.search(r'custom_call_target="(.*?)"', line)
        if target and target[1] in (FORWARD, BACKWARD):
            b, h, n, e = largest_array(result)
            # Two products of (n, n, e) forward; backward four, and recomputation of q k^T.
            kind = "attention"
            count = 2 * b * h * n * n * e * (2 if target[1] == FORWARD else 5)
        source = re.search(r'op_name="(.*?)"', line)
        operands = tuple(dtype for _, pair in dots for dtype in pair)
        found.append(
            Program(kind, result, source[1] if source else "", count, read + sizes[name], operands)
        )
    return found


def products(computations: dict[str, list[str]], name: str) -> list[tuple[int, tuple[str, ...]]]:
    """(FLOPs, dtypes of the operands as read) of the products in a computation."""
    found: list[tuple[int, tuple[str, ...]]] = []
    shapes: dict[str, str] = {}
    for line in computations.get(name, []):
        match = INSTRUCTION.match(line)
        if not match:
            continue
        own, result, operation, arguments = match.groups()
        shapes[own] = result
        for called in re.findall(r"calls=%([\w.\-]+)", line):
            found += products(computations, called)
        if operation == "dot":
            left, right = (shapes[other] for other in re.findall(r"%([\w.\-]+)", arguments))
            contracted = collectives.numbers(re.search(r"lhs_contracting_dims={(.*?)}", line)[1])  # type: ignore[index]
            sides = dimensions(left)
            count = 2 * math.prod(dimensions(result)) * math.prod(sides[i] for i in contracted)
            found.append((count, (left.split("[")[0], right.split("[")[0])))
    return found


def dimensions(shape: str) -> list[int]:
    """ "bf16[2,3]{1,0}" as [2, 3]."""
    return collectives.numbers(re.search(r"\[([\d,]*)\]", shape)[1])  # type: ignore[index]


def largest_array(result: str) -> list[int]:
    """The dimensions of the first array of four axes in the text of a type."""
    return next(
        collectives.numbers(dims)
        for _, dims in collectives.ARRAY.findall(result)
        if dims.count(",") == 3
    )


def report(variant: str, batch: int, *, lines: int = 8) -> str:
    """The limits of inference and training in bfloat16: totals, and the slowest other kernels."""
    config = models.get_config(variant, dtype="bfloat16")
    text = []
    for train in (False, True):
        compiled = compiled_step(config, batch, train=train)
        found = programs(compiled.as_text())
        seconds = {
            kind: sum(one.least_seconds() for one in found if one.kind == kind)
            for kind in ("product", "attention", "other")
        }
        whole = sum(seconds.values())
        each = cost.train_flops_per_image(config) if train else 2 * cost.forward_macs(config)
        memory = compiled.memory_analysis()
        text.append(
            f"{variant}, batch {batch}, {'training' if train else 'inference'}: "
            f"at least {1e3 * whole:.1f} ms (products {1e3 * seconds['product']:.1f}, "
            f"attention {1e3 * seconds['attention']:.1f}, other {1e3 * seconds['other']:.1f}), "
            f"at most {batch / whole:.0f} images/s, MFU {100 * each * batch / whole / PEAK:.0f}%; "
            f"{(memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30:.1f} GiB"
        )
        groups: dict[tuple[str, str], list[float]] = {}
        for one in found:
            if one.kind == "other":
                key = re.sub(r"{[^}]*}", "", one.result)[:64], re.sub(r"\d+", "", one.source)[-56:]
                groups.setdefault(key, []).append(one.least_seconds())
        for (result, source), times in sorted(groups.items(), key=lambda g: -sum(g[1]))[:lines]:
            text.append(f"  {1e3 * sum(times):6.2f} ms  {len(times):3d} x  {result}  {source}")
    return "\n".join(text)


def main(arguments: Sequence[str]) -> None:
    for argument in arguments or ("B/16:256", "L/16:128", "H/14:64"):
        variant, _, batch = argument.partition(":")
        print(report(variant, int(batch or 64)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
