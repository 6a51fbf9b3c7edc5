"""Optimizers and schedules against hand-computed steps."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vit_jax.errors import UserError
from vit_jax.training import optim, state


def steps_of(optimizer, gradients, rate, start=1.0, path="w/kernel"):
    """The parameter after each gradient, stepping as the trainer does: p - rate * direction."""
    params = {path: jnp.asarray([start])}
    state, seen = optimizer.init(params), []
    for gradient in gradients:
        direction, state = optimizer.update({path: jnp.asarray([gradient])}, state, params)
        params = {path: params[path] - rate * direction[path]}
        seen.append(float(params[path][0]))
    return seen


def test_adam_is_the_papers():
    """p <- p - lr m^/(sqrt(v^) + 1e-8) - lr wd p, worked out here in plain arithmetic."""
    rate, decay, p, m, v, expected = 0.1, 0.3, 1.0, 0.0, 0.0, []
    gradients = [0.5, -0.2, 0.7]
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.999**t)
        p = p - rate * m_hat / (v_hat**0.5 + 1e-8) - rate * decay * p
        expected.append(p)
    optimizer = optim.adam(weight_decay=decay)
    np.testing.assert_allclose(steps_of(optimizer, gradients, rate), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("decay_on", "path", "shrinks"),
    [("all", "norm/bias", True), ("kernels", "norm/bias", False), ("kernels", "mlp/kernel", True)],
)
def test_which_parameters_weight_decay_applies_to(decay_on, path, shrinks):
    optimizer = optim.adam(weight_decay=0.5, decay_on=decay_on)
    after = steps_of(optimizer, [0.0], rate=0.1, path=path)[0]
    assert after == pytest.approx(0.95 if shrinks else 1.0)


def test_sgd_momentum_is_not_nesterov_and_its_buffer_is_bfloat16():
    # buffer: 1, then 0.9 + 1 = 1.9; Nesterov would step by 1.9 at once
    assert steps_of(optim.sgd(), [1.0, 1.0], rate=0.1) == pytest.approx([0.9, 0.71], rel=1e-3)
    state = optim.sgd().init({"w": jnp.zeros(3)})
    assert optax.tree.get(state, "trace")["w"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("decay", "step", "expected"),
    [
        ("linear", 0, 0.0),
        ("linear", 5, 0.5),  # half of the warm-up
        ("linear", 10, 1.0),
        ("linear", 60, 1e-2 + 0.99 * 0.5),
        ("linear", 110, 1e-2),
        ("cosine", 5, 0.5),
        ("cosine", 10, 1.0),
        ("cosine", 60, 0.5),
        ("cosine", 35, 0.5 * (1 + np.cos(np.pi * 0.25))),
        ("cosine", 110, 0.0),
        ("constant", 60, 1.0),
    ],
)
def test_schedules(decay, step, expected):
    final = 1e-2 if decay == "linear" else 0.0
    schedule = optim.learning_rate_schedule(decay, 1.0, 110, 10, final)
    assert float(schedule(step)) == pytest.approx(expected, abs=1e-6)


def test_schedule_without_warmup_starts_at_the_base_rate():
    schedule = optim.learning_rate_schedule("linear", 0.4, total_steps=10)
    assert float(schedule(0)) == pytest.approx(0.4)


def test_polyak_average_with_a_ramp_rises_to_its_decay():
    assert float(state.weight_of_average(0, 0.9999, ramp=True)) == pytest.approx(0.1)
    assert float(state.weight_of_average(90, 0.9999, ramp=True)) == pytest.approx(0.91)
    assert float(state.weight_of_average(10**7, 0.9999, ramp=True)) == pytest.approx(0.9999)


@pytest.mark.parametrize("decay", [0.9, 0.9999, 0.99999])
def test_polyak_average_is_the_weighted_mean_of_the_updates(decay):
    """Weights (1 - d) d^(t - i) / (1 - d^t), which sum to one without the start."""
    values = np.random.default_rng(0).normal(size=50)
    average = 1e6  # the initial weights, of which nothing must be left
    for step, value in enumerate(values):
        keep = float(state.weight_of_average(jnp.int32(step), decay))
        average = keep * average + (1 - keep) * value
    weights = (1 - decay) * decay ** np.arange(49, -1, -1.0) / (1 - decay**50)
    assert weights.sum() == pytest.approx(1)
    assert average == pytest.approx(weights @ values, abs=1e-4)


def test_polyak_decays_that_are_asked_for_are_different_ones():
    late = [float(state.weight_of_average(jnp.int32(20_000), d)) for d in (0.9999, 0.99999)]
    assert late[0] == pytest.approx(0.9999 * (1 - 0.9999**20_000) / (1 - 0.9999**20_001), abs=1e-6)
    assert late[1] - late[0] > 2e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: optim.learning_rate_schedule("cosin", 1.0, 10), "Did you mean 'cosine'"),
        (lambda: optim.learning_rate_schedule("linear", 1.0, 10, 10), "warm-up of 10 steps"),
        (lambda: optim.adam(decay_on="kernel").init({"w": jnp.zeros(1)}), "decay_on='kernel'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_staircase_divides_by_ten():
    """After the step of a boundary, not at it, as in BiT."""
    rate = optim.learning_rate_schedule("staircase", 1.0, 500, 100, 0.0, (40, 60, 80))
    assert float(rate(201)) == pytest.approx(0.1) and float(rate(401)) == pytest.approx(1e-3)
    found = [float(rate(step)) for step in (0, 50, 100, 199, 200, 299, 300, 399, 400, 499)]
    expected = [0, 0.5, 1, 1, 1, 0.1, 0.1, 0.01, 0.01, 0.001]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_settings_of_another_decay_are_refused():
    with pytest.raises(UserError, match="belongs to decay='staircase'"):
        optim.learning_rate_schedule("cosine", 1.0, 500, 0, 0.0, (40,))
    with pytest.raises(UserError, match="belongs to decay='staircase'"):
        optim.learning_rate_schedule("staircase", 1.0, 500)
    with pytest.raises(UserError, match="is for decay='linear'"):
        optim.learning_rate_schedule("cosine", 1.0, 500, 0, 1e-5)
