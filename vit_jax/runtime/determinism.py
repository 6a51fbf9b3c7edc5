"""Bitwise determinism on GPUs, by XLA flags that are set before JAX starts.

CPUs and TPUs are deterministic. On GPUs atomic additions complete in any order, and autotuning
chooses kernels by timing.
"""

from __future__ import annotations

import os

import jax

from vit_jax.errors import UserError

#: No nondeterministic kernels, cuDNN's attention included, and no autotuning.
FLAGS = ("--xla_gpu_deterministic_ops=true", "--xla_gpu_autotune_level=0")


def ask() -> None:
    """Adds FLAGS to XLA_FLAGS; those already set are kept."""
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
            "JAX starts; `vit-jax train` sets it, your own program must."
        )
