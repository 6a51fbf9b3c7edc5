"""Attention of short sequences as one TPU kernel: nothing of shape (n, n) leaves the chip.

One grid step is one image. Its q, k and v arrive as rows of tokens, (n, 3 h e), and are transposed
to (3 h e, n): a head is then a range of sublanes, free to slice whatever its size, whereas in the
last axis a head of 64 would fill half of the 128 lanes. Scores are laid out as (keys, queries), so
that the softmax sums over sublanes, and every product but the scores streams the head's e rows
through the matrix unit. Measured: docs/performance.md.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from vit_jax.numerics import kernels, mesh

Array = jax.Array
#: Contracted axes of a product: rows with rows, columns with rows, columns with columns.
COLUMN_ROW = (((1,), (0,)), ((), ()))
COLUMN_COLUMN = (((1,), (1,)), ((), ()))
ROW_ROW = (((0,), (0,)), ((), ()))
LANES = 128
#: Heads in flight: scores are issued this many heads before their softmax, so that the matrix unit
#: and the vector unit overlap.
AHEAD = 2
#: Bytes of vector memory: a kernel's default, and what every chip from v5e on has.
#: Above this many tokens (the program is unrolled over them) XLA's attention is as good.
DEFAULT_MEMORY, MOST_MEMORY, MOST_TOKENS = 16 << 20, 60 << 20, 640


def memory(tokens: int, width: int, itemsize: int) -> int:
    """Approximate bytes of vector memory of the backward kernel, the larger of the two.

    The blocks of an image, double-buffered; and the scores and intermediates of the heads in
    flight.
    """
    blocks = 2 * (3 + 1 + 3) * tokens * width * itemsize
    scores = tokens * -(-tokens // LANES) * LANES * 4
    return blocks + (2 * AHEAD + 6) * scores


def fits(tokens: int, width: int, itemsize: int) -> bool:
    return tokens <= MOST_TOKENS and memory(tokens, width, itemsize) <= MOST_MEMORY


def dot(a: Array, b: Array, axes: Any) -> Array:
    """A product accumulated in float32; 32-bit operands are multiplied in full precision."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jax.lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def groups(heads: int, size: int) -> Iterator[range]:
    """Groups of heads whose columns are lane-aligned: pairs of 64, one of 128, eight of 80."""
    step = LANES // math.gcd(size, LANES)
    return (range(i, min(i + step, heads)) for i in range(0, heads, step))


def transposed_heads(ref: Any, offset: int, group: range, size: int) -> list[Array]:
    """The columns of a group of heads in (1, n, columns), transposed to (e, n) for each head."""
    first = group[0] * size
    rows = ref[0, :, offset + first : offset + first + len(group) * size].T
    return [rows[i * size : (i + 1) * size] for i in range(len(group))]


def put(ref: Any, offset: int, group: range, parts: list[Array]) -> None:
    """The inverse of `transposed_heads`: writes one (e, n) per head."""
    size = len(parts[0])
    first = offset + group[0] * size
    ref[0, :, first : first + len(group) * size] = jnp.concatenate(parts).astype(ref.dtype).T


def pipelined(count: int, begin: Callable[[int], Any], end: Callable[[int, Any], None]) -> None:
    """`end(i, begin(i))` in order; each `begin` is issued `AHEAD` heads before its `end`."""
    begun: dict[int, Any] = {}
    for i in range(count + AHEAD):
        if i < count:
            begun[i] = begin(i)
        if i >= AHEAD:
            end(i - AHEAD, begun.pop(i - AHEAD))


def attention_forward(qkv: Any, y: Any, *sums: Any, heads: int, size: int) -> None:
    """y (1, n, h e) of qkv (1, n, 3 h e); optionally log-sum-exp of the logits, (1, h, n)."""
    width, scale = heads * size, size**-0.5
    places = [(group, i) for group in groups(heads, size) for i in range(len(group))]
    parts: dict[range, list[list[Array]]] = {}
    found: list[Array] = []

    def begin(head: int) -> Array:
        group, i = places[head]
        if i == 0:
            parts[group] = [transposed_heads(qkv, part * width, group, size) for part in range(3)]
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


def attention_backward(qkv: Any, dy: Any, sums: Any, dqkv: Any, *, heads: int, size: int) -> None:
    """dqkv (1, n, 3 h e) from qkv, dy (1, n, h e) and the log-sum-exp of the forward kernel."""
    width, scale = heads * size, size**-0.5
    places = [(group, i) for group in groups(heads, size) for i in range(len(group))]
    parts: dict[range, list[list[Array]]] = {}
    found: list[list[Array]] = [[], [], []]

    def begin(head: int) -> tuple[Array, Array]:
        group, i = places[head]
        if i == 0:
            parts[group] = [transposed_heads(qkv, part * width, group, size) for part in range(3)]
            parts[group].append(transposed_heads(dy, 0, group, size))
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


def given(rows: Array) -> int | None:
    """Vector memory for the kernels on qkv (b, n, 3 h e); None if the default suffices."""
    needed = memory(rows.shape[1], rows.shape[2] // 3, rows.dtype.itemsize)
    return needed if needed > DEFAULT_MEMORY else None


def run_forward(qkv: Array, *, size: int, sums: bool) -> tuple[Array, ...]:
    """(y (b, n, h e),) of qkv (b, n, 3 h e); with `sums` also (b, h, n) float32; one device.

    qkv may also be (b, n, 3, h, e), here and below.
    """
    rows = qkv.reshape(*qkv.shape[:2], -1)
    b, n, width = rows.shape
    heads = width // 3 // size
    out = [jax.ShapeDtypeStruct((b, n, heads * size), rows.dtype)]
    out += [jax.ShapeDtypeStruct((b, heads, n), jnp.float32)] if sums else []
    kernel = functools.partial(attention_forward, heads=heads, size=size)
    return tuple(kernels.by_image(kernel, out, rows, memory=given(rows)))


def run_backward(qkv: Array, dy: Array, sums: Array, *, size: int) -> Array:
    """dqkv, of the shape of qkv, on one device."""
    rows = qkv.reshape(*qkv.shape[:2], -1)
    kernel = functools.partial(attention_backward, heads=sums.shape[1], size=size)
    out = [jax.ShapeDtypeStruct(rows.shape, rows.dtype)]
    return kernels.by_image(kernel, out, rows, dy, sums, memory=given(rows))[0].reshape(qkv.shape)


def run(function: Callable, qkv: Array, *more: Array, outputs: Any = None) -> Any:
    """`function` of qkv, dy (b, n, h e) and sums (b, h, n), on any mesh.

    qkv (b, n, 3, h, e) is passed as (b, n, 3 h e) unless its heads are sharded: five axes would
    have another layout, and a copy.

    Args:
      outputs: as in `mesh.on_the_mesh`; None: the shape of qkv.
    """
    *_, heads, size = shape = qkv.shape
    axes = "b..h."
    if not mesh.heads_are_split(qkv):
        qkv, axes, heads = qkv.reshape(*shape[:2], -1), "b..", 0
    found = mesh.on_the_mesh(
        functools.partial(function, size=size),
        qkv,
        *more,
        inputs=(axes, "b.h", "bh.")[: 1 + len(more)],
        outputs=outputs or axes,
        heads=heads,
    )
    return found if outputs else found.reshape(shape)


@jax.custom_vjp
def attention(qkv: Array) -> Array:
    """softmax(q k^T / sqrt(e)) v: (b, n, 3, h, e) to (b, n, h e), in the dtype of qkv.

    Products have operands in that dtype and accumulate in float32; the softmax is in float32. The
    backward pass stores qkv and one number per head and token.
    """
    return run(functools.partial(run_forward, sums=False), qkv, outputs=("b.h",))[0]


def _forward(qkv: Array) -> tuple[Array, tuple[Array, Array]]:
    forward = functools.partial(run_forward, sums=True)
    y, sums = run(forward, qkv, outputs=("b.h", "bh."))
    return y, (qkv, sums)


def _backward(kept: tuple[Array, Array], dy: Array) -> tuple[Array]:
    qkv, sums = kept
    return (run(run_backward, qkv, dy.astype(qkv.dtype), sums),)


attention.defvjp(_forward, _backward)
