"""Running a Pallas kernel on TPU: one image per grid step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax

Array = jax.Array
Shape = jax.ShapeDtypeStruct


def by_image(
    kernel: Callable, outputs: Sequence[Shape], *arrays: Array, memory: int | None = None
) -> list[Array]:
    """`kernel(*references)` for each image of arrays (b, ., .); arrays (., .) are passed whole.

    Compiled on a TPU; interpreted on CPU devices that emulate one.

    Args:
      outputs: shapes and dtypes.
      memory: bytes of vector memory, if more than a kernel's default.
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
