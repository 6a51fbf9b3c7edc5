"""The state of a training run: everything that a step changes, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vit_jax.runtime import sharding


class TrainState(NamedTuple):
    """step: () int32. params, average: {path: array} (average is {} without Polyak averaging).

    skipped: () int32, updates left out for non-finite gradients; skipped_in_a_row: the latest run.
    """

    step: jax.Array
    params: dict[str, jax.Array]
    opt_state: optax.OptState
    average: dict[str, jax.Array]
    skipped: jax.Array
    skipped_in_a_row: jax.Array


def create(
    params: dict[str, jax.Array], optimizer: optax.GradientTransformation, *, polyak: bool
) -> TrainState:
    """The state before the first step."""
    zero = jnp.zeros((), jnp.int32)
    average = {path: jnp.array(value) for path, value in params.items()} if polyak else {}
    return TrainState(zero, params, optimizer.init(params), average, zero, zero)


def initialise(
    make_params: Callable[..., dict[str, jax.Array]],
    argument: object,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    *,
    polyak: bool,
    consume: bool = False,
) -> tuple[Callable[[], TrainState], TrainState]:
    """The initial state, made where it lives: no host ever holds the whole of it.

    Args:
      make_params: jittable; `make_params(argument)` are the initial parameters.
      consume: the arrays of `argument` become the state's; otherwise they stay beside it.

    Returns:
      A function that makes the state, and the state as shapes, dtypes and shardings.
    """

    def make(argument: object) -> TrainState:
        return create(make_params(argument), optimizer, polyak=polyak)

    shapes = jax.eval_shape(make, argument)
    shardings = sharding.tree_shardings(shapes, shapes.params, mesh)
    abstract = jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        shardings,
    )

    def make_on_mesh() -> TrainState:
        program = jax.jit(make, out_shardings=shardings, donate_argnums=0 if consume else ())
        # Compiled apart, it is not kept: nobody runs it again, and it is 80 MiB on a CPU.
        return program.lower(argument).compile()(argument)

    return make_on_mesh, abstract


def evaluated_params(state: TrainState) -> dict[str, jax.Array]:
    """The parameters that are evaluated and exported: the Polyak average where there is one."""
    return state.average or state.params


def weight_of_average(step, decay: float, *, ramp: bool = False):
    """The weight of the old average in the new one, after `step` = 0, 1, ... updates.

    The paper gives only the 0.9999, not how the average begins. Here it is bias-corrected: after t
    updates every one of them has its weight (1 - decay) decay^(t - i) / (1 - decay^t), the initial
    weights none. With `ramp` the weight rises as (1 + t) / (10 + t) up to `decay`, which 0.9999
    does not reach within 20,000 steps.
    """
    if ramp:
        t = jnp.asarray(step, jnp.float32)
        return jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    log = math.log(decay)
    before, after = (-jnp.expm1(log * jnp.asarray(step + i, jnp.float32)) for i in (0, 1))
    return decay * before / after
