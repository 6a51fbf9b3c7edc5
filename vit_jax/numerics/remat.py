"""Rematerialisation: what the backward pass finds stored and what it recomputes (`model.remat`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError, nearest

#: The checkpoint name of matrix products and convolutions.
PRODUCT = "product"


class Policy(NamedTuple):
    """What a block stores. saveable: policy for `jax.checkpoint`; None stores everything.

    seconds and activations are relative to "none", measured (docs/performance.md). They order the
    candidates of `config.memory="auto"`; what those need is known when they are compiled.
    """

    saveable: Callable[..., Any] | None
    seconds: float
    activations: float


#: model.remat: "none" stores all; "products" stores the outputs of matrix products with parameters
#: and recomputes attention, norms and activations; "full" stores the input of every block only.
POLICIES = {
    "none": Policy(None, 1.0, 1.0),
    "products": Policy(
        jax.checkpoint_policies.save_only_these_names(PRODUCT), seconds=1.1, activations=0.4
    ),
    "full": Policy(jax.checkpoint_policies.nothing_saveable, seconds=1.25, activations=0.2),
}


def name_of(remat: bool | str) -> str:
    """The name of the policy of a setting; False is "none" and True is "full".

    Raises:
      UserError: there is no such policy.
    """
    name = ("full" if remat else "none") if isinstance(remat, bool) else remat
    if name not in POLICIES:
        raise UserError(
            f"model.remat={remat!r} does not exist; choose True, False or one of "
            f"{', '.join(POLICIES)}.{nearest(str(remat), POLICIES)}"
        )
    return name


def apply(block: Callable[..., Any], remat: bool | str) -> Callable[..., Any]:
    """`block`, rematerialised by the policy."""
    saveable = POLICIES[name_of(remat)].saveable
    return block if saveable is None else jax.checkpoint(block, policy=saveable)


def compiler_options(remat: bool | str) -> dict[str, str]:
    """Compiler options for `jax.jit` without which a policy has no effect.

    XLA's CPU compiler removes the barriers around recomputation; common-subexpression elimination
    then stores the values after all.
    """
    if name_of(remat) == "none" or jax.default_backend() != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def product(x: jax.Array) -> jax.Array:
    """x, marked as a matrix product or convolution that the policy "products" stores."""
    return checkpoint_name(x, PRODUCT)
