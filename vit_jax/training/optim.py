"""Optimizers and learning-rate schedules of the paper (section 4.1, Tables 3 and 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

from vit_jax.errors import UserError, nearest

DECAYS = ("linear", "cosine", "staircase", "constant")
DECAYED = ("all", "kernels")


def learning_rate_schedule(
    decay: str,
    learning_rate: float,
    total_steps: int,
    warmup_steps: int = 0,
    final_learning_rate: float = 0.0,
    boundaries_percent: Sequence[float] = (),
) -> Callable:
    """step -> learning rate: linear warm-up times a decay.

    With progress p = clip((t - w) / (T - w), 0, 1): linear is end + (base - end)(1 - p), cosine is
    base (1 + cos(pi p)) / 2; both are multiplied by min(1, t / w). A staircase, as in BiT, divides
    by 10 after each of `boundaries_percent` of the run.

    Raises:
      UserError: an unknown decay, or a warm-up that is not shorter than the run.
    """
    if decay not in DECAYS:
        raise UserError(
            f"config.schedule.decay={decay!r} does not exist; "
            f"there are {', '.join(DECAYS)}.{nearest(decay, DECAYS)}"
        )
    if final_learning_rate and decay != "linear":
        raise UserError(
            f"config.schedule.final_learning_rate is for decay='linear'; {decay!r} does not "
            "read it."
        )
    if bool(len(boundaries_percent)) != (decay == "staircase"):
        raise UserError(
            "config.schedule.boundaries_percent belongs to decay='staircase', e.g. (40, 60, 80); "
            f"decay is {decay!r} and boundaries_percent {tuple(boundaries_percent)}."
        )
    if list(boundaries_percent) != sorted(set(boundaries_percent)) or any(
        not 0 < percent < 100 for percent in boundaries_percent
    ):
        raise UserError(
            f"config.schedule.boundaries_percent={tuple(boundaries_percent)} must increase, each "
            "between 0 and 100, e.g. (40, 60, 80)."
        )
    edges = [round(total_steps * percent / 100) for percent in boundaries_percent]
    if not 0 <= warmup_steps < max(total_steps, 1):
        raise UserError(
            f"config.schedule: warm-up of {warmup_steps} steps does not fit a run of {total_steps} "
            "steps; lower config.schedule.warmup_steps."
        )

    def schedule(step):
        t = jnp.asarray(step, jnp.float32)
        progress = jnp.clip((t - warmup_steps) / (total_steps - warmup_steps), 0.0, 1.0)
        if decay == "linear":
            rate = final_learning_rate + (learning_rate - final_learning_rate) * (1.0 - progress)
        elif decay == "cosine":
            rate = learning_rate * 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
        elif decay == "staircase":
            passed = jnp.searchsorted(jnp.asarray(edges, jnp.float32), t, side="left")
            rate = learning_rate * jax.lax.pow(jnp.float32(0.1), passed)
        else:
            rate = jnp.full_like(t, learning_rate)
        return rate * jnp.minimum(1.0, t / warmup_steps) if warmup_steps else rate

    return schedule


def decayed(params: dict, which: str) -> dict[str, bool]:
    """The mask of weight decay: "all" parameters, as the paper's Adam, or "kernels" only."""
    if which not in DECAYED:
        raise UserError(f"config.optimizer.decay_on={which!r}: choose one of {', '.join(DECAYED)}.")
    return {path: which == "all" or path.rsplit("/", 1)[-1] == "kernel" for path in params}


def adam(
    *,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    decay_on: str = "all",
) -> optax.GradientTransformation:
    """Adam with decoupled weight decay: the direction m / (sqrt(v) + eps) + wd p.

    The step multiplies it by the current learning rate, so the decay follows the schedule. It
    applies to every parameter unless `decay_on="kernels"`.
    """
    return optax.chain(
        promoting(optax.scale_by_adam(b1=beta1, b2=beta2, eps=epsilon)),
        optax.add_decayed_weights(weight_decay, mask=lambda params: decayed(params, decay_on)),
    )


def sgd(
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    accumulator_dtype: str = "bfloat16",
    decay_on: str = "all",
) -> optax.GradientTransformation:
    """SGD with momentum (not Nesterov); the momentum buffer is bfloat16, as in fine-tuning.

    Weight decay, if any, is added to the gradient before the momentum.
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay, mask=lambda params: decayed(params, decay_on)),
        promoting(optax.trace(decay=momentum, accumulator_dtype=jnp.dtype(accumulator_dtype))),
    )


def promoting(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Allows dtype promotion: optax adds bfloat16 to float32 and takes powers of counts."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.update(updates, state, params)

    return optax.GradientTransformation(optimizer.init, update)


OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformation]] = {"adam": adam, "sgd": sgd}
