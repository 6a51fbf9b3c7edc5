"""The same bits from the same program on GPUs: XLA is asked before JAX begins.

CPUs and TPUs compute a program alike each time. On GPUs sums by atomic additions end in any order,
and which of several kernels is taken is decided by a race between them.
"""

from __future__ import annotations

import os

import jax

from vit_jax.errors import UserError

#: No kernel whose bits depend on the moment, cuDNN's attention included, and none chosen by timing.
FLAGS = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


def ask() -> None:
    """Adds FLAGS to XLA_FLAGS; what is there of them stays."""
    given = os.environ.get("XLA_FLAGS", "").split()
    names = {flag.partition("=")[0] for flag in given}
    given += [flag for flag in FLAGS if flag.partition("=")[0] not in names]
    os.environ["XLA_FLAGS"] = " ".join(given)


def check() -> None:
    """Raises UserError on a GPU whose programs may not be deterministic."""
    missing = [flag for flag in FLAGS if flag not in os.environ.get("XLA_FLAGS", "").split()]
    if jax.default_backend() == "gpu" and missing:
        raise UserError(
            f"config.deterministic needs XLA_FLAGS={' '.join(missing)!r} in the environment before "
            "JAX begins; `vit-jax train` sets it, a program of your own must."
        )
