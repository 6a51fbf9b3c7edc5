"""The training step: accumulation, devices, clipping, averaging, gradients that are not finite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from often import often

from vit_jax import models
from vit_jax.objectives.classification import classification, measures, measures_of
from vit_jax.runtime import sharding
from vit_jax.training import optim, state
from vit_jax.training.step import make_train_step

CONFIG = models.get_config("debug", num_classes=5, head_bias=0.1, image_size=16)
STOCHASTIC = models.override(CONFIG, dropout_rate=0.3, stochastic_depth_rate=0.3)
RATE = 0.1


@pytest.fixture(scope="module")
def params():
    """Parameters with a head that is not zero, so that every gradient is at work."""
    init, _ = models.as_functions(CONFIG)
    values = jax.jit(init)(jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), values["head/kernel"].shape)
    return jax.device_get({**values, "head/kernel": 0.1 * noise})


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 16, 16, 3), dtype=np.uint8)
    return {"image": images, "label": rng.integers(0, 5, 16).astype(np.int32)}


def run(
    params, batch, *, devices=1, num_steps=2, model=CONFIG, optimizer=None, poison=(), **kwargs
):
    """Takes a few steps on a mesh of `devices`; returns (state, metrics of the last step)."""
    mesh = sharding.make_mesh(devices=jax.devices()[:devices], **kwargs.pop("mesh", {}))
    optimizer = optimizer or optim.sgd(accumulator_dtype="float32")
    _, apply = models.as_functions(model)
    make, abstract = state.initialise(
        dict,
        sharding.params_to_devices(params, mesh),
        optimizer,
        mesh,
        polyak=kwargs.get("polyak_decay") is not None,
    )
    step = make_train_step(
        classification(apply, 5, **kwargs.pop("mixing", {})),
        optimizer,
        kwargs.pop("schedule", lambda step: jnp.float32(RATE)),
        seed=0,
        **kwargs,
    )
    step = jax.jit(
        step,
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, abstract), None),
    )
    now = make()
    for i in range(num_steps):
        labels = batch["label"].astype(np.float32)[:, None] == np.arange(5)
        soft = np.where(i in poison, np.nan, labels.astype(np.float32))
        now, metrics = step(now, sharding.to_devices({**batch, "label": soft}, mesh))
    return jax.device_get((now, metrics))


@pytest.fixture(scope="module")
def whole(params, batch):
    """Two steps of the whole batch on one device."""
    return run(params, batch)


@pytest.fixture(scope="module")
def stochastic(params, batch):
    """The same with dropout and stochastic depth."""
    return run(params, batch, model=STOCHASTIC)


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    for path in a:
        np.testing.assert_allclose(a[path], b[path], rtol=rtol, atol=atol, err_msg=path)


def test_accumulation_keeps_the_global_batch(params, batch, whole):
    parts, _ = run(params, batch, accumulation_steps=4)
    assert_close(whole[0].params, parts.params)


@pytest.mark.parametrize("mesh", often({"fsdp": 2, "tensor": 2}, weekly=[{}, {"fsdp": 4}]))
def test_eight_devices_equal_one(params, batch, whole, mesh):
    one, metrics = whole
    eight, metrics8 = run(params, batch, devices=8, mesh=mesh)
    assert_close(one.params, eight.params)
    assert metrics8["train/loss"] == pytest.approx(metrics["train/loss"], rel=1e-5)


def test_eight_devices_accumulate_too(params, batch, whole):
    eight, _ = run(params, batch, devices=8, accumulation_steps=2)
    assert_close(whole[0].params, eight.params)


MESHED = {"devices": 8, "accumulation_steps": 2, "mesh": {"fsdp": 2, "tensor": 2}}


@pytest.mark.parametrize("model, options", [
    (STOCHASTIC, MESHED),
    (models.override(CONFIG, dropout_rate=0.3, scan=True, remat=True), {"accumulation_steps": 4}),
], ids=["plain", "scan"])  # fmt: skip
def test_dropout_does_not_depend_on_devices_or_on_accumulation(
    params, batch, whole, stochastic, model, options
):
    """The masks are of an example's place in the global batch."""
    one, metrics = stochastic if model is STOCHASTIC else run(params, batch, model=model)
    other, found = run(params, batch, model=model, **options)
    assert_close(one.params, other.params)
    np.testing.assert_allclose(found["train/loss"], metrics["train/loss"], rtol=1e-6)
    without, _ = whole
    assert max(abs(one.params[p] - without.params[p]).max() for p in params) > 1e-3


def test_pairs_that_are_mixed_do_not_depend_on_devices_or_on_accumulation(
    params, batch, stochastic
):
    mixing = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0}
    one, metrics = run(params, batch, model=STOCHASTIC, mixing=mixing)
    options = {"devices": 8, "accumulation_steps": 2}
    other, found = run(params, batch, model=STOCHASTIC, mixing=mixing, **options)
    assert_close(one.params, other.params)
    np.testing.assert_allclose(found["train/loss"], metrics["train/loss"], rtol=1e-6)
    without, _ = stochastic
    assert max(abs(one.params[p] - without.params[p]).max() for p in params) > 1e-3


@pytest.mark.long
def test_bits_of_before_are_those_of_threefry(params, batch, stochastic):
    """They depend on accumulation; runs that began with them go on with them."""
    one, _ = run(params, batch, model=STOCHASTIC, threefry=True)
    parts, _ = run(params, batch, model=STOCHASTIC, threefry=True, accumulation_steps=4)
    hashed, _ = stochastic
    for other in (parts, hashed):
        assert max(abs(one.params[p] - other.params[p]).max() for p in params) > 1e-3


def test_clipping_bounds_the_whole_gradient(params, batch):
    plain = optim.sgd(momentum=0.0, accumulator_dtype="float32")
    run_once = functools.partial(run, params, batch, optimizer=plain, num_steps=1)
    free, metrics = run_once()
    limit = float(metrics["train/gradient_norm"]) / 4
    clipped, again = run_once(gradient_clip_norm=limit)
    moved = {path: clipped.params[path] - params[path] for path in params}
    norm = np.sqrt(sum(np.square(delta).sum() for delta in moved.values()))
    assert norm == pytest.approx(RATE * limit, rel=1e-4)
    assert again["train/gradient_norm"] == metrics["train/gradient_norm"]  # reported unclipped
    for path in params:
        np.testing.assert_allclose(
            moved[path] * 4, free.params[path] - params[path], rtol=1e-3, atol=1e-5
        )


def test_non_finite_gradients_are_skipped_bit_exactly_and_counted(params, batch):
    before, _ = run(params, batch, num_steps=2, polyak_decay=0.5)
    after, metrics = run(params, batch, num_steps=4, poison={2, 3}, polyak_decay=0.5)
    for path in params:
        np.testing.assert_array_equal(before.params[path], after.params[path])
        np.testing.assert_array_equal(before.average[path], after.average[path])
    leaves = zip(jax.tree.leaves(before.opt_state), jax.tree.leaves(after.opt_state), strict=True)
    for old, new in leaves:
        np.testing.assert_array_equal(old, new)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (4, 2, 2)
    assert metrics["train/skipped_updates"] == 2
    recovered, _ = run(params, batch, num_steps=4, poison={1, 2})
    assert (recovered.skipped, recovered.skipped_in_a_row) == (2, 0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(recovered.params))


def test_an_update_that_is_not_finite_is_skipped_like_a_gradient(params, batch):
    """The gradient is finite, the learning rate times it is not."""
    options = {
        "schedule": lambda step: jnp.where(step == 0, jnp.float32(RATE), jnp.float32(3e38)),
        "optimizer": optim.adam(weight_decay=9.0),
        "polyak_decay": 0.5,
    }
    before, _ = run(params, batch, num_steps=1, **options)
    after, metrics = run(params, batch, num_steps=3, **options)
    assert np.isfinite(metrics["train/gradient_norm"]) and np.isfinite(metrics["train/loss"])
    for old, new in zip(jax.tree.leaves(before[1:4]), jax.tree.leaves(after[1:4]), strict=True):
        np.testing.assert_array_equal(old, new)
    assert (after.step, after.skipped, after.skipped_in_a_row) == (3, 2, 2)


def test_polyak_average_by_hand(params, batch):
    first, _ = run(params, batch, num_steps=1)
    two, _ = run(params, batch, num_steps=2, polyak_decay=0.9999)
    path = "head/kernel"
    # Of two updates each has its weight, the start has none.
    average = (0.9999 * first.params[path] + two.params[path]) / 1.9999
    np.testing.assert_allclose(two.average[path], average, rtol=1e-5, atol=1e-7)
    assert state.evaluated_params(two)[path] is two.average[path]
    ramp, _ = run(params, batch, num_steps=2, polyak_decay=0.9999, polyak_ramp=True)
    average = 0.1 * params[path] + 0.9 * first.params[path]  # step 0: weight 1/10
    average = 2 / 11 * average + 9 / 11 * two.params[path]  # step 1: weight 2/11
    np.testing.assert_allclose(ramp.average[path], average, rtol=1e-5, atol=1e-7)


def test_images_are_normalised_on_the_device():
    np.testing.assert_allclose(
        models.normalise(jnp.asarray([0, 255], jnp.uint8)), [-1.0, 1.0], rtol=1e-6
    )


def test_evaluation_step_ranks():
    logits = jnp.asarray([[0.0, 3.0, 2.0, 1.0, -1.0, -2.0], [5.0, 1.0, 2.0, 3.0, 4.0, -9.0]])
    step = measures(lambda params, images: logits, 6, measures_of)
    batch = {"image": jnp.zeros((2, 1, 1, 3), jnp.uint8), "label": jnp.asarray([1, 5])}
    results = step({}, batch)
    np.testing.assert_array_equal(results["correct"], [True, False])
    np.testing.assert_array_equal(results["top5"], [True, False])
    np.testing.assert_array_equal(results["prediction"], [1, 0])
