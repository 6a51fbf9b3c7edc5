"""How a kernel for TPUs is run: an image a step, on every device of a mesh with its own images."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import PartitionSpec

Array = jax.Array
Shape = jax.ShapeDtypeStruct
#: Axes of a mesh that images and heads are split over (vit_jax/runtime/sharding.py).
IMAGES, HEADS = ("data", "fsdp"), "tensor"


def by_image(
    kernel: Callable, outputs: Sequence[Shape], *arrays: Array, memory: int | None = None
) -> list[Array]:
    """`kernel(*references)` for each image of arrays (b, ., .); arrays (., .) are given whole.

    Compiled for a TPU, and interpreted on the CPU devices that stand in for one.

    Args:
      outputs: shapes and dtypes.
      memory: bytes of vector memory, if more than what a kernel is given by default.
    """
    run = functools.partial(_call, kernel, outputs, memory)
    return jax.lax.platform_dependent(
        *arrays,
        cpu=functools.partial(run, interpret=True),
        default=functools.partial(run, interpret=False),
    )


def _call(
    kernel: Callable,
    outputs: Sequence[Shape],
    memory: int | None,
    *arrays: Array,
    interpret: bool,
) -> list[Array]:
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    def block(array: Array | Shape) -> pl.BlockSpec:
        if array.ndim == 2:
            return pl.BlockSpec(array.shape, lambda image: (0, 0))
        return pl.BlockSpec((1, *array.shape[1:]), lambda image: (image, 0, 0))

    return pl.pallas_call(
        kernel,
        out_shape=list(outputs),
        grid=(arrays[0].shape[0],),
        in_specs=[block(array) for array in arrays],
        out_specs=[block(array) for array in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=memory
        ),
        interpret=interpret,
        name=getattr(kernel, "func", kernel).__name__,
    )(*arrays)


def on_the_mesh(
    run: Callable, *arrays: Array, inputs: Sequence[str], outputs: object, heads: int = 0
):
    """`run(*arrays)` on every device with its own images and heads, where the first is on a mesh.

    XLA cannot split a kernel by itself. An axis that does not divide is not split.

    Args:
      inputs, outputs: what the axes of arrays are: "b" images, "h" heads, "." neither.
    """
    mesh = jax.typeof(arrays[0]).sharding.mesh  # that of the arguments of the jitted function
    if mesh.empty or mesh.size == 1:
        return run(*arrays)
    images = tuple(axis for axis in IMAGES if axis in mesh.axis_names)
    share = math.prod(mesh.shape[axis] for axis in images)
    split = {"b": images if arrays[0].shape[0] % share == 0 else None, ".": None}
    split["h"] = HEADS if heads and heads % mesh.shape.get(HEADS, 1) == 0 else None  # type: ignore
    spec = lambda axes: PartitionSpec(*(split[axis] for axis in axes))  # noqa: E731
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=tuple(map(spec, inputs)),
        out_specs=jax.tree.map(spec, outputs),
        check_vma=False,
    )(*arrays)


def heads_are_split(array: Array) -> bool:
    """Whether an array is on a mesh whose devices each have a part of the heads."""
    mesh = jax.typeof(array).sharding.mesh
    return not mesh.empty and mesh.shape.get(HEADS, 1) > 1
