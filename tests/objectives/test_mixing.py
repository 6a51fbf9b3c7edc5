"""Pairs of images that are mixed, against what they come to by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives.mixing import cutmix, mix, mixup

CUTMIX = jax.jit(cutmix)


def test_mixup_by_hand():
    images = jnp.arange(4.0).reshape(4, 1, 1, 1) * jnp.ones((4, 2, 2, 3))
    targets = jax.nn.one_hot(jnp.arange(4), 4)
    mixed, mixed_targets = mixup(images, targets, 0.5, jax.random.key(5))
    share = float(mixed_targets[0, 0])
    assert 0 < share < 1
    np.testing.assert_allclose(
        mixed[:, 0, 0, 0],
        [3 * (1 - share), share + 2 * (1 - share), 2 * share + 1 - share, 3 * share],
        rtol=1e-5,
    )
    np.testing.assert_allclose(mixed_targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(mixed_targets[1], [0, share, 1 - share, 0], rtol=1e-5)


def test_mixup_shares_follow_beta():
    keys = jax.random.split(jax.random.key(0), 2000)
    x = jnp.zeros((2, 1, 1, 1))
    share = jax.vmap(lambda key: mixup(x, jnp.eye(2), 0.1, key)[1][0, 0])(keys)
    assert float(share.mean()) == pytest.approx(0.5, abs=0.04)
    assert float(((share < 0.01) | (share > 0.99)).mean()) > 0.6  # Beta(0.1, 0.1) is at the ends


def numbered(height, width, count=4):
    """Images whose every pixel is their number, and their targets."""
    images = jnp.broadcast_to(
        jnp.arange(float(count))[:, None, None, None], (count, height, width, 3)
    )
    return images, jnp.eye(count)


@pytest.mark.parametrize("seed", range(8))
def test_cutmix_by_hand(seed):
    """Every pixel is its own or that of the mirror place; targets have the shares of pixels."""
    images, targets = numbered(12, 20)
    mixed, mixed_targets = jax.device_get(CUTMIX(images, targets, 1.0, jax.random.key(seed)))
    other = mixed[0, :, :, 0] == 3
    assert set(np.unique(mixed[0])) <= {0, 3} and set(np.unique(mixed[1])) <= {1, 2}
    for i in range(4):  # one box for the whole batch
        np.testing.assert_array_equal(mixed[i, :, :, 0], np.where(other, 3 - i, i))
    rows, columns = other.any(axis=1), other.any(axis=0)
    np.testing.assert_array_equal(other, rows[:, None] & columns)
    for line in (rows, columns):  # a box and nothing else: its places are next to each other
        assert np.ptp(np.flatnonzero(line)) + 1 == line.sum() if line.any() else True
    left = 1 - other.mean()
    np.testing.assert_allclose(mixed_targets[0], [left, 0, 0, 1 - left], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(mixed_targets[2], [0, 1 - left, left, 0], rtol=1e-5, atol=1e-7)


def test_the_box_of_cutmix_is_of_the_area_that_is_drawn():
    """Of Beta(1, 1), where nothing is cut off at the border: mean area of what lies inside."""
    images, targets = numbered(64, 64, 2)
    keys = jax.random.split(jax.random.key(0), 400)
    left = np.asarray(jax.jit(jax.vmap(lambda k: cutmix(images, targets, 1.0, k)[1][0, 0]))(keys))
    rng = np.random.default_rng(0)
    side = np.sqrt(1 - rng.beta(1, 1, 20_000))
    inside = [
        np.clip(c + side / 2, 0, 1) - np.clip(c - side / 2, 0, 1) for c in rng.random((2, 20_000))
    ]
    expected = 1 - inside[0] * inside[1]
    assert left.mean() == pytest.approx(expected.mean(), abs=0.04)
    assert left.std() == pytest.approx(expected.std(), abs=0.03)


def test_with_both_each_is_in_half_of_the_steps():
    images, targets = numbered(8, 8, 2)
    keys = jax.random.split(jax.random.key(1), 400)

    def is_whole(key):  # mixup's values are between two numbers
        mixed, _ = mix(images, targets, key, mixup_alpha=5.0, cutmix_alpha=1.0)
        return ((mixed == 0) | (mixed == 1)).all()

    assert float(jax.jit(jax.vmap(is_whole))(keys).mean()) == pytest.approx(0.5, abs=0.08)


def test_one_of_the_two_alone_is_used():
    images, targets = numbered(8, 8)
    key = jax.random.key(3)
    for given, alone in (
        ({"mixup_alpha": 0.5}, mixup(images, targets, 0.5, key)),
        ({"cutmix_alpha": 0.5}, cutmix(images, targets, 0.5, key)),
    ):
        for found, expected in zip(mix(images, targets, key, **given), alone, strict=True):
            np.testing.assert_array_equal(found, expected)
