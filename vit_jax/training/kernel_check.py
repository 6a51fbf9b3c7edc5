"""Before a run on TPU, checks that the attention kernel is correct and fast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.numerics import self_check, tpu
from vit_jax.runtime import sharding
from vit_jax.training.prepared import Setup
from vit_jax.training.setup import computed_as

#: The stored verdict in a workdir, so that a resumed run computes as before.
FILE = "attention.json"


def check_kernel(
    setup: Setup, workdir: Path, *, verify: Callable[..., self_check.Verdict] = self_check.verify
) -> tuple[Setup, dict[str, object] | None]:
    """The setup, with XLA's attention if the kernel fails the check; and the verdict to store.

    The verdict is added to the plan's notes. If the check fails on any process, all fall back,
    since their programs must be equal. A resumed run with the same shapes and chip keeps the stored
    verdict: when both are about equally fast, timing would otherwise change it between starts.
    With model.attention=fused the kernel is used in any case.

    Raises:
      UserError: the stored verdict is damaged.
    """
    model, numerics = setup.program.model, setup.program.numerics
    if numerics.attention is not tpu.attention or not isinstance(model, models.ViTConfig):
        return setup, None
    mesh, accumulation = setup.program.mesh, setup.config.accumulation_steps
    heads, parts = model.num_heads, mesh.shape["tensor"]
    images = setup.config.batch_size // accumulation // sharding.batch_divisor(mesh)
    shape = [max(1, images), model.num_tokens, heads // parts if heads % parts == 0 else heads]
    shape.append(model.hidden_size // heads)
    about = {"chip": jax.devices()[0].device_kind, "shape": shape, "dtype": model.dtype}
    kept = files.read_json(workdir / FILE)
    if kept is not None and not {"fused", "found"} <= set(kept if isinstance(kept, dict) else ()):
        raise UserError(f"{workdir / FILE} is damaged; remove it to check attention again.")
    if kept is not None and about == {key: kept.get(key) for key in about}:
        fused, found, since = kept["fused"], kept["found"], " (found when the run began)"
    else:
        fused, found = verify(*shape, model.dtype)
        fused, since = all(sharding.gathered(int(fused))), ""
    setup.notes.append(f"{found}{since}")
    keep = about | {"fused": fused, "found": found}
    used = fused or model.attention == "fused"
    return (setup if used else computed_as(setup, attention="xla")), keep


def write(workdir: Path, keep: dict[str, object] | None) -> None:
    """Stores the verdict, if there was a check."""
    if keep is not None and jax.process_index() == 0:
        files.write_json(workdir / FILE, keep)
