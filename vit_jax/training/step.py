"""One training step for any objective: a pure function, jitted once, on any mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from vit_jax.numerics.bits import Key, Randomness
from vit_jax.objectives.objective import Batch, Objective
from vit_jax.training.state import TrainState, weight_of_average


def make_train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], jax.Array],
    *,
    seed: int,
    gradient_clip_norm: float | None = None,
    polyak_decay: float | None = None,
    polyak_ramp: bool = False,
    accumulation_steps: int = 1,
    threefry: bool = False,
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """The function (state, batch) -> (state, metrics), to be jitted with the state donated.

    The mean loss is over the global batch, for any number of devices, processes and accumulation
    steps. Randomness depends on the seed, the step and an example's index in the batch only. With
    `threefry` it is JAX's generator, for runs that began before `bits` existed.
    """

    def batch_loss(params, batch: Batch, key: Randomness) -> jax.Array:
        return objective.loss(params, batch, key).mean()

    value_and_grad = jax.value_and_grad(batch_loss)

    def random_key(step: jax.Array, rows: jax.Array, part: jax.Array | None = None) -> Randomness:
        """For the examples with these indices in the batch, a micro-batch."""
        key = jax.random.fold_in(jax.random.key(seed), step)
        if not threefry:
            return Key(key, rows)
        return key if part is None else jax.random.fold_in(key, part)

    def gradients(params, batch: Batch, step: jax.Array):
        rows = jnp.arange(len(jax.tree.leaves(batch)[0]), dtype=jnp.uint32)
        if accumulation_steps == 1:
            return value_and_grad(params, batch, random_key(step, rows))
        if objective.mix is not None:  # pairs do not depend on the micro-batches
            batch = objective.mix(batch, random_key(step, rows))
        # Every device slices its own rows, so no example moves between devices.
        parts = jax.tree.map(
            lambda x: x.reshape(-1, accumulation_steps, *x.shape[1:]).swapaxes(0, 1), (batch, rows)
        )

        def add(total, indexed):
            (part, rows), index = indexed
            new = value_and_grad(params, part, random_key(step, rows, index))
            return jax.tree.map(jnp.add, total, new), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, (parts, jnp.arange(accumulation_steps)))
        return jax.tree.map(lambda x: x / accumulation_steps, total)

    def train_step(state: TrainState, batch: Batch):
        value, grads = gradients(state.params, batch, state.step)

        norm = optax.tree.norm(grads)
        rate = schedule(state.step)

        def update(grads, opt_state, params):
            if gradient_clip_norm is not None:
                scale = jnp.minimum(1.0, gradient_clip_norm / jnp.maximum(norm, 1e-16))
                grads = jax.tree.map(lambda g: g * scale, grads)
            direction, opt_state = optimizer.update(grads, opt_state, params)
            return jax.tree.map(lambda p, d: p - rate * d, params, direction), opt_state

        before = (grads, state.opt_state, state.params)
        params, opt_state = update(*before)
        # Computed twice, so that the new parameters are tested without a copy beside the old ones.
        # Moments and average are finite if gradient and parameters are.
        tested, _ = update(*jax.lax.optimization_barrier(before))
        finite = jnp.isfinite(norm) & jnp.isfinite(value) & all_finite(tested)
        average = state.average
        if polyak_decay is not None:
            updates = state.step - state.skipped
            decay = weight_of_average(updates, polyak_decay, ramp=polyak_ramp)
            average = jax.tree.map(lambda a, p: decay * a + (1 - decay) * p, average, params)

        # A step with a non-finite loss, gradient or update changes only the counters.
        params, opt_state, average = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, average),
            (state.params, state.opt_state, state.average),
        )
        bad = 1 - finite.astype(jnp.int32)
        skipped_in_a_row = (state.skipped_in_a_row + 1) * bad
        new_state = TrainState(
            state.step + 1, params, opt_state, average, state.skipped + bad, skipped_in_a_row
        )
        metrics = {
            "train/loss": value,
            "train/learning_rate": rate,
            "train/gradient_norm": norm,
            "train/skipped_updates": new_state.skipped,
            "train/skipped_in_a_row": skipped_in_a_row,
        }
        return new_state, metrics

    return train_step


def all_finite(arrays: Mapping[str, jax.Array]) -> jax.Array:
    """Whether no element is an infinity or NaN, ()."""
    return jnp.stack([jnp.isfinite(array).all() for array in arrays.values()]).all()
