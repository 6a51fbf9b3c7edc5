"""A step over a whole source: every example exactly once, on any mesh and processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax import data, models
from vit_jax.errors import UserError
from vit_jax.runtime import sharding


def jit_eval_step(eval_step: Callable, mesh: jax.sharding.Mesh) -> Callable:
    """Jits an evaluation step so that every process sees every example's result."""
    return jax.jit(eval_step, out_shardings=NamedSharding(mesh, PartitionSpec()))


def run(
    eval_step: Callable,
    params: Mapping[str, jax.Array],
    batches: Iterable[Mapping[str, np.ndarray]],
    mesh: jax.sharding.Mesh,
    *,
    num_examples: int,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Runs `eval_step` over all batches and returns its results in the source's order.

    Args:
      eval_step: jitted (params, batch) -> {name: (b,)}, replicated.
      batches: this process's part of each batch, with "mask" and "index" (see data.eval_batches).
      num_examples: how many there must be in the end.
      on_batch: called with the number of examples seen so far.

    Returns:
      {name: (n,)}, "label" included; n is num_examples less those whose images cannot be read.

    Raises:
      AssertionError: an example was missed or counted twice.
    """
    gather = jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, PartitionSpec()))
    parts: list[dict[str, np.ndarray]] = []
    seen = 0
    for batch in batches:
        on_device = sharding.to_devices(batch, mesh)
        results = dict(eval_step(params, on_device))
        results |= gather({key: on_device[key] for key in ("label", "mask", "index")})
        parts.append(jax.device_get(results))
        seen += int(parts[-1]["mask"].sum())
        if on_batch:
            on_batch(seen)
    joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    read, index = joined.pop("mask"), joined.pop("index")
    there = np.sort(index[index < num_examples])  # what is beyond fills the last batch
    assert np.array_equal(there, np.arange(num_examples)), (
        f"evaluation counted {len(there)} examples, {len(np.unique(there))} of them different, "
        f"instead of {num_examples}"
    )
    if not read.any():
        raise UserError(f"None of the {num_examples} images of an evaluation can be read.")
    order = np.argsort(index[read], kind="stable")
    return {key: value[read][order] for key, value in joined.items()}


def run_model(
    config: models.ModelConfig,
    params: models.Params,
    source: Any,
    step: Callable,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    mapping: np.ndarray | None = None,
    transform: Callable | None = None,
    num_threads: int = 4,
    on_batch: Callable[[int], None] | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> dict[str, np.ndarray]:
    """Every example's results of `step` (see `classification.run`), in the order of `source`.

    Args:
      mapping: the model's class for each class of the data; None if they are the same.
      transform: how images are prepared; None: as the model says.
      on_bad: called for images that cannot be read, which are left out; None raises.
    """
    transform = transform or data.evaluation_transform(config.image_size, config.preprocessing)
    batch_size = sharding.fit_batch(batch_size, mesh, num_examples=len(source))
    batches = data.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        rows=sharding.host_rows(mesh, batch_size),
        num_threads=num_threads,
        on_bad=on_bad,
    )
    numbered = (
        batch if mapping is None else {**batch, "label": mapping[batch["label"]]}
        for batch in batches
    )
    on_mesh = sharding.params_to_devices(params, mesh)
    return run(step, on_mesh, numbered, mesh, num_examples=len(source), on_batch=on_batch)
