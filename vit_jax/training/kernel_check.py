"""A run on TPUs looks first whether attention's kernel is right and fast there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax

from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.numerics import self_check, tpu
from vit_jax.runtime import sharding
from vit_jax.training.decided import Setup
from vit_jax.training.setup import computed_as

#: In a workdir: what was found, so that a run goes on as it began.
FILE = "attention.json"


def settle(
    setup: Setup, workdir: Path, *, verify: Callable[..., self_check.Verdict] = self_check.verify
) -> tuple[Setup, dict[str, object] | None]:
    """The setup as it was, or with XLA's attention if the check says so; and what to keep of it.

    What was found is added to the plan's notes. All processes do what any of them must: their
    programs have to be the same. A run that goes on with the same shapes on the same chip keeps
    what it found, for a kernel that is as fast as XLA would otherwise be taken at one start and not
    at the next. With model.attention=fused the kernel is used whatever the check says.

    Raises:
      UserError: what is kept in the workdir is damaged.
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
        raise UserError(f"{workdir / FILE} is damaged; remove it to check attention anew.")
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
    """Notes what was found, if there was anything to check."""
    if keep is not None and jax.process_index() == 0:
        files.write_json(workdir / FILE, keep)
