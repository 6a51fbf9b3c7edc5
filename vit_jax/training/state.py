"""The state of a training run: exactly what a step changes."""

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

    skipped: () int32, updates that were not made: not finite, or rolled back; skipped_in_a_row: the
    latest consecutive non-finite ones.
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
    """The initial state, created sharded: no host ever holds all of it.

    Args:
      make_params: jittable; `make_params(argument)` returns the initial parameters.
      consume: donate the arrays of `argument` to the state; otherwise they are kept.

    Returns:
      A function that creates the state, and the state as shapes, dtypes and shardings.
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
        # It runs once, so it is compiled outside jit's cache (80 MiB on a CPU), and on CPUs without
        # LLVM's optimisation: 3 s of CPU time instead of 16 for the smallest models.
        on_cpu = mesh.devices.flat[0].platform == "cpu"
        options: dict[str, str | bool] = {"xla_backend_optimization_level": "0"} if on_cpu else {}
        return program.lower(argument).compile(compiler_options=options)(argument)

    return make_on_mesh, abstract


def evaluated_params(state: TrainState) -> dict[str, jax.Array]:
    """The parameters to evaluate and export: the Polyak average if there is one."""
    return state.average or state.params


def weight_of_average(step, decay: float, *, ramp: bool = False):
    """The decay of the Polyak average after `step` = 0, 1, ... updates.

    The paper gives 0.9999 but not how the average starts. Here it is bias-corrected: after t
    updates the i-th has the weight (1 - decay) decay^(t - i) / (1 - decay^t), and the initial
    weights have none. With `ramp` the decay rises as (1 + t) / (10 + t) up to `decay`, which for
    0.9999 takes more than 20,000 steps.
    """
    if ramp:
        t = jnp.asarray(step, jnp.float32)
        return jnp.minimum(decay, (1.0 + t) / (10.0 + t))
    log = math.log(decay)
    before, after = (-jnp.expm1(log * jnp.asarray(step + i, jnp.float32)) for i in (0, 1))
    return decay * before / after
