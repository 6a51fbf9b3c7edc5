"""A step over a whole source: every example exactly once, on any mesh and any processes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import data
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.runtime import sharding

#: A batch on devices, "image" (b, h, w, c) uint8 and "label" (b,) -> {name: (b, ...)}, replicated.
Step = Callable[[Mapping[str, jax.Array]], Mapping[str, jax.Array]]


def jit_eval_step(eval_step: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Jits an evaluation step so that every process sees every example's result."""
    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, PartitionSpec()))


def over_source(
    step: Step,
    source: Source,
    transform: Callable,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    mapping: np.ndarray | None = None,
    num_threads: int = 4,
    on_batch: Callable[[int], None] | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> dict[str, np.ndarray]:
    """Per-example results of `step`, in the order of `source`.

    Args:
      step: see Step; its results are the same on every process.
      transform: see data.make_transform.
      mapping: the model's class for each class of the data; None if they are the same.
      on_batch: called with the number of examples seen so far.
      on_bad: called for unreadable images, which are skipped; None: raise.

    Returns:
      {name: (n, ...)}, with "label" and "index", the example's index in `source`; n is its length
      without unreadable images.

    Raises:
      UserError: an image cannot be read, or none can.
      AssertionError: an example was missed or counted twice.
    """
    batch_size = sharding.fit_batch(batch_size, mesh, num_examples=len(source))
    batches = data.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        rows=sharding.host_rows(mesh, batch_size),
        num_threads=num_threads,
        on_bad=on_bad,
    )
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    parts: list[dict[str, np.ndarray]] = []
    seen = 0
    with contextlib.closing(batches):
        for batch in batches:
            if mapping is not None:
                batch["label"] = mapping[batch["label"]]
            on_device = sharding.to_devices(batch, mesh)
            results = dict(step(on_device))
            results |= gather({key: on_device[key] for key in ("label", "mask", "index")})
            parts.append(jax.device_get(results))
            seen += int(parts[-1]["mask"].sum())
            if on_batch:
                on_batch(seen)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    read, index = joined.pop("mask"), joined["index"]
    there = np.sort(index[index < len(source)])  # indices beyond are padding
    assert np.array_equal(there, np.arange(len(source))), (
        f"evaluation counted {len(there)} examples, {len(np.unique(there))} of them different, "
        f"instead of {len(source)}"
    )
    if not read.any():
        raise UserError(f"None of the {len(source)} images of {source.spec} can be read.")
    order = np.argsort(index[read], kind="stable")
    return {key: value[read][order] for key, value in joined.items()}
