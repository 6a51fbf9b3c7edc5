"""How layers compute on a machine; models define what they compute.

May import nothing but errors. A model is given one row, `Numerics`, when it is built: `of` chooses
it from the machine and the dtype, `PLAIN` is the paper's. A new machine is a new row here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vit_jax.numerics import dense, gpu, norm, one_cpu, plain, remat, tpu
from vit_jax.numerics.plain import ACTIVATIONS

__all__ = ["ACTIVATIONS", "PLAIN", "Machine", "Numerics", "describe", "of", "this_machine"]

Array = jax.Array
Kernel = Callable[..., Array]


class Machine(NamedTuple):
    """The target of compilation. capability: compute capability of an NVIDIA GPU, else 0."""

    backend: str
    devices: int
    capability: float = 0.0


class Numerics(NamedTuple):
    """How the layers of a model compute. Hashable: it is a static part of modules.

    dense(x (..., i), kernel (i, ...), bias, *, activation=None, out_dtype=None) -> (..., ...).
    norm(x (..., d), scale (d,), bias (d,), epsilon) -> (..., d); statistics in float32.
    attention(qkv (b, n, 3, h, e), extra_logits=None) -> (b, n or more, h e): qkv as returned by
      `dense`; a row that prefers (b, n, 3 h e) reshapes in both.
      extra_logits: a function of q (b, h, n, e), added to q k^T. The caller drops padding tokens
      (beyond the n-th) after the next product.
    product(subscripts, a, b): einsum of two activations, accumulated and returned in float32.
    add(z, branch) -> branch + z: the residuals of Eq. 2 and 3.
    activation_dtype: dtype of activations between products.
    convolution(x (b, h, w, c), kernel (kh, kw, c, features), stride, padding), both in `dtype`.
    layer(block) -> block, rematerialised as `model.remat` says.
    dtype: of the operands of products. machine: the target of this row; None for any.
    """

    dense: Callable[..., Array]
    norm: Callable[[Array, Array, Array, float], Array]
    attention: Callable[..., Array]
    product: Callable[[str, Array, Array], Array]
    add: Callable[[Array, Array], Array]
    activation_dtype: jnp.dtype
    convolution: Callable[..., Array]
    layer: Callable[[Callable[..., Any]], Callable[..., Any]]
    dtype: jnp.dtype
    machine: Machine | None = None


#: The paper's formulas, in float32, for any machine.
PLAIN = Numerics(
    dense=plain.dense,
    norm=plain.norm,
    attention=plain.attention,
    product=plain.product,
    add=plain.add,
    activation_dtype=jnp.dtype(jnp.float32),
    convolution=plain.convolution,
    layer=functools.partial(remat.apply, remat="none"),
    dtype=jnp.dtype(jnp.float32),
)


def this_machine() -> Machine:
    """The target of JAX in this process."""
    return Machine(jax.default_backend(), jax.device_count(), gpu.compute_capability())


def of(
    dtype: str,
    machine: Machine | None = None,
    *,
    remat_policy: bool | str = False,
    attention: str = "xla",
    heads: int = 0,
    head_size: int = 0,
    tokens: int = 0,
    relative: bool = False,
) -> Numerics:
    """The row for a machine; by default the one this process runs on.

    Args:
      dtype: of the operands of products, "float32" or "bfloat16".
      remat_policy: `model.remat`.
      attention: `model.attention`; what is supported depends on `heads`, `head_size`, `tokens` (0:
        no attention over all tokens) and on whether position embeddings are `relative`.

    Raises:
      UserError: that attention is not supported there.
    """
    machine = machine or this_machine()
    cudnn = gpu.fused_attention(
        attention,
        capability=machine.capability,
        dtype=dtype,
        head_size=head_size,
        relative=relative,
    )
    fused = tpu.fused_attention(
        attention,
        backend=machine.backend,
        dtype=dtype,
        heads=heads,
        head_size=head_size,
        tokens=tokens,
        relative=relative,
    )
    kernel = gpu.attention if cudnn else tpu.attention if fused else None
    return _row(dtype, machine, remat.name_of(remat_policy), kernel)


@functools.cache  # one object per row, so that modules built with it compare equal
def _row(dtype: str, machine: Machine, policy: str, kernel: Kernel | None) -> Numerics:
    operands = jnp.dtype(dtype)
    on_one_cpu = machine.backend == "cpu" and machine.devices == 1
    activations = one_cpu.ACTIVATION_DTYPE if on_one_cpu else operands
    multiply = one_cpu.multiply if on_one_cpu else dense.bfloat16_product
    row = Numerics(
        dense=functools.partial(
            dense.affine,
            multiply=dense.float32_product if dtype == "float32" else multiply,
            activation_dtype=activations,
            recompute=policy == "none",  # otherwise the whole layer is rematerialised
        ),
        norm=functools.partial(norm.norm, dtype=activations),
        attention=kernel or functools.partial(plain.attention, product=dense.product),
        product=dense.product,
        add=one_cpu.add if on_one_cpu else plain.add,
        activation_dtype=activations,
        convolution=dense.convolution,
        layer=functools.partial(remat.apply, remat=policy),
        dtype=operands,
        machine=machine,
    )
    if machine.backend != "tpu":
        return row
    return row._replace(
        dense=functools.partial(tpu.dense, dtype=operands),
        norm=functools.partial(tpu.norm, dtype=operands),
    )


def describe(numerics: Numerics) -> str:
    """For the plan: "bfloat16 products, float32 activations (1 CPU)"."""
    machine, kept = numerics.machine, numerics.activation_dtype
    text = f"{numerics.dtype} products"
    text += " and activations" if kept == numerics.dtype else f", {kept} activations"
    if numerics.attention is gpu.attention:
        text += ", attention by cuDNN"
    if numerics.attention is tpu.attention:
        text += ", attention by one fused kernel"
    if machine is None:
        return text
    count = "one" if machine.devices == 1 else f"{machine.devices}"
    return f"{text} ({count} {machine.backend.upper()}{'s' if machine.devices > 1 else ''})"
