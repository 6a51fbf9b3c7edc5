"""What the backward pass finds in memory and what it computes again: `model.remat`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.ad_checkpoint import checkpoint_name

from vit_jax.errors import UserError, nearest

#: The name under which matrix products and convolutions can be kept.
PRODUCT = "product"


class Policy(NamedTuple):
    """What a block keeps. saveable: for `jax.checkpoint`; None keeps everything that it needs.

    seconds and activations are shares of "none", measured (docs/performance.md); they order what
    `config.memory="auto"` tries, and what it compiles decides.
    """

    saveable: Callable[..., Any] | None
    seconds: float
    activations: float


#: model.remat: "none" keeps all; "products" keeps the outputs of matrix products with parameters
#: and computes attention, norms and activations again; "full" keeps the input of every block only.
POLICIES = {
    "none": Policy(None, 1.0, 1.0),
    "products": Policy(
        jax.checkpoint_policies.save_only_these_names(PRODUCT), seconds=1.1, activations=0.4
    ),
    "full": Policy(jax.checkpoint_policies.nothing_saveable, seconds=1.25, activations=0.2),
}


def name_of(remat: bool | str) -> str:
    """The policy that a setting names; False is "none" and True is "full".

    Raises:
      UserError: there is none of that name.
    """
    name = ("full" if remat else "none") if isinstance(remat, bool) else remat
    if name not in POLICIES:
        raise UserError(
            f"model.remat={remat!r} does not exist; choose True, False or one of "
            f"{', '.join(POLICIES)}.{nearest(str(remat), POLICIES)}"
        )
    return name


def apply(block: Callable[..., Any], remat: bool | str) -> Callable[..., Any]:
    """`block`, whose backward pass keeps what the policy says."""
    saveable = POLICIES[name_of(remat)].saveable
    return block if saveable is None else jax.checkpoint(block, policy=saveable)


def compiler_options(remat: bool | str) -> dict[str, str]:
    """What XLA must be told so that a policy has an effect, for `jax.jit`.

    Its CPU compiler removes the barriers around what is computed again, sees that it was computed
    before, and keeps it after all.
    """
    if name_of(remat) == "none" or jax.default_backend() != "cpu":
        return {}
    return {"xla_disable_hlo_passes": "cse_barrier_expander"}


def product(x: jax.Array) -> jax.Array:
    """x, marked as a matrix product or convolution that the policy "products" keeps."""
    return checkpoint_name(x, PRODUCT)
