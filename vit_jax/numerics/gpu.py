"""Attention by cuDNN's fused kernel, on NVIDIA GPUs that support it."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp

from vit_jax.errors import UserError

Array = jax.Array


def compute_capability() -> float:
    """Of the NVIDIA GPU that is compiled for, e.g. 9.0; 0 on anything else."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def fused_attention(
    asked: str, *, capability: float, dtype: str, head_size: int, relative: bool
) -> bool:
    """Whether to use cuDNN's attention kernel, which stores no (b, h, n, n) array.

    It needs an NVIDIA GPU from Ampere on, a 16-bit dtype, and a head size of at most 128 that is a
    multiple of 8; it does not support relative positions.

    Args:
      asked: `model.attention`; "auto" and "cudnn" mean this kernel.
      capability: compute capability of the GPU; 0 on anything else.

    Raises:
      UserError: `asked` is "cudnn" and it is not supported.
    """
    obstacles = {
        "the device is not an NVIDIA GPU of compute capability 8.0 or higher": capability < 8.0,
        f"the compute dtype is {dtype}, not bfloat16": dtype != "bfloat16",
        f"the head size is {head_size}": head_size > 128 or head_size % 8 != 0,
        "position embeddings are relative": relative,
    }
    found = [text for text, there in obstacles.items() if there]
    if asked == "cudnn" and found:
        raise UserError(f"model.attention='cudnn' is not supported: {found[0]}; use 'auto'.")
    return asked in ("auto", "cudnn") and not found


def attention(qkv: Array, extra_logits: None = None) -> Array:
    """softmax(q k^T / sqrt(e)) v by cuDNN: (b, n, 3, h, e) to (b, n or n + 1, h e).

    The caller drops the padding token after the next product, where that costs nothing.
    """
    assert extra_logits is None  # `fused_attention` says when
    q, k, v = (part[:, :, 0] for part in jnp.split(qkv, 3, axis=2))
    y = cudnn_attention(q, k, v)
    return y.reshape(*y.shape[:2], -1)


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(e)) v by cuDNN. q, k, v (b, n, h, e) to (b, n or n + 1, h, e).

    Its gradient needs an even number of tokens: an odd number is padded by one masked token, which
    the caller drops.
    """
    n = q.shape[1]
    lengths = None
    if n % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full((q.shape[0],), n, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )
