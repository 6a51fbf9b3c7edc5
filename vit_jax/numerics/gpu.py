"""Attention by cuDNN's fused kernel, on NVIDIA GPUs that have it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError

Array = jax.Array


def compute_capability() -> float:
    """That of the NVIDIA GPU which programs are compiled for, e.g. 9.0; 0 on anything else."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def fused_attention(
    asked: str, *, capability: float, dtype: str, head_size: int, relative: bool
) -> bool:
    """Whether attention is cuDNN's kernel, which keeps no (b, h, n, n) array in memory.

    It needs an NVIDIA GPU from Ampere on, 16 bits, and heads of at most 128 in multiples of 8; it
    knows no relative positions.

    Args:
      asked: `model.attention`; "auto" and "cudnn" mean this kernel.
      capability: compute capability of the GPU; 0 on anything else.

    Raises:
      UserError: `asked` is "cudnn", which cannot be.
    """
    obstacles = {
        "the device is no NVIDIA GPU of compute capability 8.0 or more": capability < 8.0,
        f"the compute dtype is {dtype}, not bfloat16": dtype != "bfloat16",
        f"the heads are {head_size} wide": head_size > 128 or head_size % 8 != 0,
        "position embeddings are relative": relative,
    }
    found = [text for text, there in obstacles.items() if there]
    if asked == "cudnn" and found:
        raise UserError(f"model.attention='cudnn' cannot be: {found[0]}; use 'auto'.")
    return asked in ("auto", "cudnn") and not found


def attention(qkv: Array, extra_logits: None = None) -> Array:
    """softmax(q k^T / sqrt(e)) v by cuDNN: (b, n, 3, h, e) to (b, n or n + 1, h e).

    The token more is to be cut off, after the product that follows: there it costs nothing.
    """
    assert extra_logits is None  # `fused_attention` says when
    q, k, v = (part[:, :, 0] for part in jnp.split(qkv, 3, axis=2))
    y = cudnn_attention(q, k, v)
    return y.reshape(*y.shape[:2], -1)


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(e)) v by cuDNN. Thrice (b, n, h, e) to (b, n or n + 1, h, e).

    Its gradient takes an even number of tokens only: an odd one gets a token more, to which nobody
    attends, and which is to be cut off.
    """
    n = q.shape[1]
    lengths = None
    if n % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full((q.shape[0],), n, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )
