"""A run on TPUs looks first whether attention's kernel is right and fast there."""

from __future__ import annotations

from collections.abc import Callable

import jax

from vit_jax import models
from vit_jax.numerics import Numerics, self_check, tpu
from vit_jax.runtime import sharding


def checked(
    model: models.ModelConfig,
    numerics: Numerics,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    notes: list[str],
    *,
    verify: Callable[..., self_check.Verdict] = self_check.verify,
) -> tuple[models.ModelConfig, Numerics]:
    """The model and how it computes: as it was, or with XLA's attention if the check says so.

    What was found is added to `notes`. All processes do what any of them must: their programs have
    to be the same. With model.attention=fused the kernel is used whatever the check says.

    Args:
      batch_size: of one forward pass, over all devices.
    """
    if numerics.attention is not tpu.attention or not isinstance(model, models.ViTConfig):
        return model, numerics
    heads, parts = model.num_heads, mesh.shape["tensor"]
    verdict = verify(
        max(1, batch_size // sharding.batch_divisor(mesh)),
        model.num_tokens,
        heads // parts if heads % parts == 0 else heads,
        model.hidden_size // heads,
        model.dtype,
    )
    notes.append(verdict.text)
    if all(sharding.gathered(int(verdict.fused))) or model.attention == "fused":
        return model, numerics
    model = models.replace(model, attention="xla")
    return model, models.numerics_of(model, numerics.machine)
