"""Attention of short sequences as one kernel for TPUs: nothing of (n, n) leaves the chip.

One grid step is one image. Its q, k and v come in as rows of tokens, (n, 3 h e), and are turned to
(3 h e, n) on the way: a head is then a range of sublanes, which costs nothing to cut out whatever
its size, where in the last axis a head of 64 would fill half of the 128 lanes. Scores lie as
(keys, queries), so that the sums of the softmax run over sublanes, and all products but the scores
have the head's e rows as what is streamed through the matrix unit. Measured: docs/performance.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

Array = jax.Array
#: Axes that a product sums over: rows with rows, columns with rows, and columns with columns.
COLUMN_ROW = (((1,), (0,)), ((), ()))
COLUMN_COLUMN = (((1,), (1,)), ((), ()))
ROW_ROW = (((0,), (0,)), ((), ()))
LANES = 128
#: Heads whose scores are asked for before the softmax of a head is computed, so that the matrix
#: unit and the vector unit work at the same time.
AHEAD = 2
#: Axes of a mesh that images and heads are split over (vit_jax/runtime/sharding.py).
IMAGES, HEADS = ("data", "fsdp"), "tensor"


def most_tokens(heads: int, size: int, itemsize: int) -> int:
    """The longest sequence that the kernels have vector memory for."""
    del heads, size, itemsize
    return 640


def dot(a: Array, b: Array, axes: Any) -> Array:
    """A product summed in float32; operands of 32 bits are multiplied as such."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def groups(heads: int, size: int) -> Iterator[range]:
    """Ranges of heads whose columns begin at whole lanes: pairs of 64, one of 128, eight of 80."""
    step = LANES // math.gcd(size, LANES)
    return (range(i, min(i + step, heads)) for i in range(0, heads, step))


def turned(ref: Any, offset: int, group: range, size: int) -> list[Array]:
    """The columns of a group of heads in (1, n, columns), for each head as (e, n)."""
    first = group[0] * size
    rows = ref[0, :, offset + first : offset + first + len(group) * size].T
    return [rows[i * size : (i + 1) * size] for i in range(len(group))]


def put(ref: Any, offset: int, group: range, parts: list[Array]) -> None:
    """What `turned` takes, put back: one (e, n) for each head."""
    size = len(parts[0])
    first = offset + group[0] * size
    ref[0, :, first : first + len(group) * size] = jnp.concatenate(parts).astype(ref.dtype).T


def pipelined(count: int, begin: Callable[[int], Any], end: Callable[[int, Any], None]) -> None:
    """`end(i, begin(i))` in order, each `begin` written `AHEAD` heads before its `end`."""
    begun: dict[int, Any] = {}
    for i in range(count + AHEAD):
        if i < count:
            begun[i] = begin(i)
        if i >= AHEAD:
            end(i - AHEAD, begun.pop(i - AHEAD))


def forward_kernel(qkv: Any, y: Any, *sums: Any, heads: int, size: int) -> None:
    """y (1, n, h e) of qkv (1, n, 3 h e); if asked for, log sum exp of the logits, (1, h, n)."""
    width, scale = heads * size, size**-0.5
    places = [(group, i) for group in groups(heads, size) for i in range(len(group))]
    parts: dict[range, list[list[Array]]] = {}
    found: list[Array] = []

    def begin(head: int) -> Array:
        group, i = places[head]
        if i == 0:
            parts[group] = [turned(qkv, part * width, group, size) for part in range(3)]
        q, k, _ = parts[group]
        return dot(k[i], q[i], ROW_ROW)  # (keys, queries)

    def end(head: int, scores: Array) -> None:
        group, i = places[head]
        logits = scores * scale
        largest = logits.max(axis=0, keepdims=True)
        weights = jnp.exp(logits - largest)
        total = weights.sum(axis=0, keepdims=True)
        v = parts[group][2][i]
        found.append(dot(v, weights.astype(v.dtype), COLUMN_ROW) * (1 / total))
        if sums:
            sums[0][0, head : head + 1, :] = largest + jnp.log(total)
        if i == len(group) - 1:
            put(y, 0, group, found)
            found.clear()

    pipelined(heads, begin, end)


def backward_kernel(qkv: Any, dy: Any, sums: Any, dqkv: Any, *, heads: int, size: int) -> None:
    """dqkv (1, n, 3 h e) of qkv, of dy (1, n, h e) and of what the forward kernel summed."""
    width, scale = heads * size, size**-0.5
    places = [(group, i) for group in groups(heads, size) for i in range(len(group))]
    parts: dict[range, list[list[Array]]] = {}
    found: list[list[Array]] = [[], [], []]

    def begin(head: int) -> tuple[Array, Array]:
        group, i = places[head]
        if i == 0:
            parts[group] = [turned(qkv, part * width, group, size) for part in range(3)]
            parts[group].append(turned(dy, 0, group, size))
        q, k, v, dy_ = (part[i] for part in parts[group])
        return dot(k, q, ROW_ROW), dot(v, dy_, ROW_ROW)  # (keys, queries)

    def end(head: int, begun: tuple[Array, Array]) -> None:
        group, i = places[head]
        scores, d_weights = begun
        q, k, _, dy_ = (part[i] for part in parts[group])
        weights = jnp.exp(scores * scale - sums[0, head : head + 1, :])
        product = weights * d_weights
        d_logits = product - weights * product.sum(axis=0, keepdims=True)
        weights, d_logits = weights.astype(q.dtype), d_logits.astype(q.dtype)
        found[0].append(dot(k, d_logits, COLUMN_ROW) * scale)
        found[1].append(dot(q, d_logits, COLUMN_COLUMN) * scale)
        found[2].append(dot(dy_, weights, COLUMN_COLUMN))
        if i == len(group) - 1:
            for part in range(3):
                put(dqkv, part * width, group, found[part])
                found[part].clear()

    pipelined(heads, begin, end)


def call(kernel: Callable, heads: int, out_shapes: Any, *arrays: Array, interpret: bool) -> Any:
    """`kernel` over the images of `arrays`, one a step."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import tpu as pltpu

    size = arrays[0].shape[-1] // heads // 3

    def whole(array: Any) -> pl.BlockSpec:
        return pl.BlockSpec((1, *array.shape[1:]), lambda image: (image, 0, 0))

    return pl.pallas_call(
        functools.partial(kernel, heads=heads, size=size),
        out_shape=out_shapes,
        grid=(arrays[0].shape[0],),
        in_specs=[whole(array) for array in arrays],
        out_specs=[whole(array) for array in out_shapes],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",)),
        interpret=interpret,
        name=kernel.__name__.removesuffix("_kernel"),
    )(*arrays)


def on_the_platform(kernel: Callable, heads: int, out_shapes: Any, *arrays: Array) -> Any:
    """`call`, compiled for a TPU and interpreted on the CPU devices that stand in for one."""
    run = functools.partial(call, kernel, heads, out_shapes)
    return jax.lax.platform_dependent(
        *arrays,
        cpu=functools.partial(run, interpret=True),
        default=functools.partial(run, interpret=False),
    )


def run_forward(qkv: Array, *, sums: bool) -> tuple[Array, ...]:
    """(y (b, n, h e),) of qkv (b, n, 3, h, e), and with `sums` (b, h, n) float32, on one device."""
    b, n, _, h, e = qkv.shape
    out = [jax.ShapeDtypeStruct((b, n, h * e), qkv.dtype)]
    out += [jax.ShapeDtypeStruct((b, h, n), jnp.float32)] if sums else []
    return tuple(on_the_platform(forward_kernel, h, out, qkv.reshape(b, n, -1)))


def run_backward(qkv: Array, dy: Array, sums: Array) -> Array:
    """dqkv (b, n, 3, h, e) on one device."""
    b, n, _, h, _ = qkv.shape
    rows = qkv.reshape(b, n, -1)
    out = [jax.ShapeDtypeStruct(rows.shape, rows.dtype)]
    return on_the_platform(backward_kernel, h, out, rows, dy, sums)[0].reshape(qkv.shape)


def on_the_mesh(run: Callable, qkv: Array, *more: Array, inputs: Any, outputs: Any) -> Any:
    """`run` on every device with its own images and heads, where qkv is on a mesh.

    XLA cannot split a kernel by itself. An axis that does not divide is not split.

    Args:
      inputs, outputs: of `more` and of the results, the places of images and heads: "b", "h", "".
    """
    mesh = jax.typeof(qkv).sharding.mesh  # as the arguments of the jitted function have it
    if mesh.empty or mesh.size == 1:
        return run(qkv, *more)
    images = tuple(axis for axis in IMAGES if axis in mesh.axis_names)
    share = math.prod(mesh.shape[axis] for axis in images)
    names: dict[str, Any] = {"b": images if qkv.shape[0] % share == 0 else None, ".": None}
    fits = HEADS in mesh.axis_names and qkv.shape[3] % mesh.shape[HEADS] == 0
    names["h"] = HEADS if fits else None
    spec = lambda places: PartitionSpec(*(names[place] for place in places))  # noqa: E731
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=(spec("b..h."), *map(spec, inputs)),
        out_specs=jax.tree.map(spec, outputs),
        check_vma=False,
    )(qkv, *more)


@jax.custom_vjp
def attention(qkv: Array) -> Array:
    """softmax(q k^T / sqrt(e)) v: (b, n, 3, h, e) to (b, n, h e), in the dtype of qkv.

    Products have operands in that dtype and sums in float32; the softmax is in float32. For the
    gradient, qkv and one number per head and token are kept.
    """
    run = functools.partial(run_forward, sums=False)
    return on_the_mesh(run, qkv, inputs=[], outputs=("b.h",))[0]


def _forward(qkv: Array) -> tuple[Array, tuple[Array, Array]]:
    run = functools.partial(run_forward, sums=True)
    y, sums = on_the_mesh(run, qkv, inputs=[], outputs=("b.h", "bh."))
    return y, (qkv, sums)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    qkv, sums = kept
    dy = dy.astype(qkv.dtype)
    return (on_the_mesh(run_backward, qkv, dy, sums, inputs=["b.h", "bh."], outputs="b..h."),)


attention.defvjp(_forward, _backward)
