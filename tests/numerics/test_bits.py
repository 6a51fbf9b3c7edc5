"""Bits of dropout: rate, independence of neighbours, places, steps and seeds; the same anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vit_jax.models import layers
from vit_jax.numerics import bits

ROWS = jnp.arange(64)


def key_of(seed=0, step=0, rows=ROWS):
    return bits.Key(jax.random.fold_in(jax.random.key(seed), step), rows.astype(jnp.uint32))


def words(shape=(64, 197, 768), **which):
    key = key_of(rows=jnp.arange(shape[0]), **which)
    return np.asarray(jax.jit(bits.random_words, static_argnums=1)(bits.words_of(key), shape))


def kept(shape=(64, 197, 768), rate=0.1, index=0, **which):
    key = bits.fold(key_of(rows=jnp.arange(shape[0]), **which), index)
    x = jnp.ones(shape, jnp.float32)
    return np.asarray(jax.jit(lambda x: bits.dropout(x, rate, key))(x)) != 0


def correlation(a, b):
    """Of two arrays of bits, in standard deviations of what chance gives."""
    a, b = (x.astype(np.float32) - x.mean() for x in (a.ravel(), b.ravel()))
    return float((a * b).mean() / (a.std() * b.std()) * np.sqrt(a.size))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.03, 0.9])
def test_the_rate_and_the_scale(rate):
    keep = kept(rate=rate)
    sigma = np.sqrt(rate * (1 - rate) / keep.size)
    assert abs((1 - keep.mean()) - rate) < 4 * sigma
    of_rows = (1 - keep.mean(axis=(1, 2))) - rate  # and in every example, no two alike
    assert np.abs(of_rows).max() < 5 * sigma * np.sqrt(len(keep))
    assert len({row.tobytes() for row in keep}) == len(keep)
    assert 0.7 < of_rows.std() / (sigma * np.sqrt(len(keep))) < 1.3
    x = jnp.full((4, 3, 2), 3.0)
    y = np.asarray(bits.dropout(x, rate, key_of(rows=jnp.arange(4))))
    np.testing.assert_allclose(y[y != 0], 3.0 / (1 - rate), rtol=1e-6)


def test_neighbours_places_layers_steps_and_seeds_are_independent():
    shape = (32, 197, 512)
    keep = kept(shape)
    assert abs(correlation(keep[:, :, 1:], keep[:, :, :-1])) < 4
    assert abs(correlation(keep[:, 1:], keep[:, :-1])) < 4
    assert abs(correlation(keep[1:], keep[:-1])) < 4
    assert abs(correlation(keep[:, :, 64:], keep[:, :, :-64])) < 4
    others = [{"index": 1}, {"index": 2}, {"step": 1}, {"step": 2}, {"seed": 1}, {"seed": 2}]
    for which in others:
        other = kept(shape, **which)
        assert abs(correlation(keep, other)) < 4, which
        assert (keep != other).mean() == pytest.approx(2 * 0.1 * 0.9, abs=1e-3)
        for place, row in ((-1, 0), (0, 1), (1, -1)):  # nor are they the same ones, moved
            moved = np.roll(other, (row, place), (0, 2))
            assert abs(correlation(keep, moved)) < 5, (which, place, row)


def test_words_pass_statistical_tests():
    """3 x 10^8 bits: bytes, pairs of bytes, single bits, runs, and gaps between small words."""
    found = words()
    for shift in (0, 8, 16, 24):
        counts = np.bincount((found.ravel() >> shift) & 255, minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > 1e-4
    pairs = (found[:, :, :-1] >> 24).astype(np.uint16) * 256 + (found[:, :, 1:] >> 24)
    assert scipy.stats.chisquare(np.bincount(pairs.ravel(), minlength=65536)).pvalue > 1e-4
    for bit in range(32):
        ones = int(((found >> bit) & 1).sum())
        assert abs(ones - found.size / 2) < 4.5 * np.sqrt(found.size) / 2, bit
    above = (found >= 2**31).ravel()
    runs, expected = 1 + int((above[1:] != above[:-1]).sum()), 1 + (above.size - 1) / 2
    assert abs(runs - expected) < 4 * np.sqrt(above.size) / 2
    gaps = np.diff(np.flatnonzero(found.ravel() < bits.threshold(0.1)))
    counts = np.bincount(np.minimum(gaps, 60), minlength=61)[1:]
    shares = 0.1 * 0.9 ** np.arange(60)
    shares[-1] = 1 - shares[:-1].sum()
    assert scipy.stats.chisquare(counts, shares * counts.sum()).pvalue > 1e-4


def test_mix_is_bijective_and_has_the_avalanche_property():
    x = np.arange(2**20, dtype=np.uint32) * np.uint32(4099)
    assert len(np.unique(np.asarray(bits.mix(jnp.asarray(x))))) == len(np.unique(x))
    for bit in range(32):
        flipped = np.asarray(bits.mix(jnp.asarray(x)) ^ bits.mix(jnp.asarray(x ^ (1 << bit))))
        share = np.array([((flipped >> b) & 1).mean() for b in range(32)])
        assert np.abs(share - 0.5).max() < 0.06, bit


def test_an_example_keeps_its_bits_wherever_it_is_computed():
    whole = np.asarray(bits.dropout(jnp.ones((64, 5, 7)), 0.3, key_of()))
    some = jnp.array([5, 63, 0, 17])
    part = np.asarray(bits.dropout(jnp.ones((4, 5, 7)), 0.3, key_of(rows=some)))
    np.testing.assert_array_equal(part, whole[np.array(some)])


def test_rows_and_columns_of_axial_attention_are_places_of_one_example():
    key = key_of(rows=jnp.arange(8))
    folded = np.asarray(bits.dropout(jnp.ones((8 * 4, 6, 5)), 0.5, key)).reshape(8, 4, 6, 5)
    plain = np.asarray(bits.dropout(jnp.ones((8, 4, 6, 5)), 0.5, key))
    np.testing.assert_array_equal(folded, plain)
    assert len({row.tobytes() for row in folded.reshape(32, -1)}) == 32
    with pytest.raises(ValueError, match="not a mask for 8 examples"):
        bits.dropout(jnp.ones((9, 2)), 0.5, key)


def test_the_gradient_has_the_mask_of_the_value():
    key = key_of()
    x = jax.random.normal(jax.random.key(1), (64, 9))
    y, pull = jax.vjp(lambda x: layers.dropout(x, 0.5, key), x)
    (dx,) = pull(jnp.ones_like(x))
    np.testing.assert_array_equal(np.asarray(dx), np.where(np.asarray(y) != 0, 2.0, 0.0))
    assert 0.3 < (np.asarray(y) == 0).mean() < 0.7


def test_whole_examples_are_dropped_together():
    key = key_of(rows=jnp.arange(512))
    y = np.asarray(layers.dropout(jnp.ones((512, 3, 2)), 0.25, key, shape=(512, 1, 1)))
    assert set(np.unique(y.reshape(512, -1).std(axis=1))) == {0.0}
    assert 0.17 < (y[:, 0, 0] == 0).mean() < 0.33


def test_no_bits_are_kept_for_the_gradient():
    """Of a function with dropout and another product behind it, only its words are kept."""
    key = key_of()

    def loss(x):
        return layers.dropout(jnp.sin(x), 0.5, key).sum()

    _, pull = jax.vjp(loss, jnp.ones((64, 9)))
    masks = [leaf for leaf in jax.tree.leaves(pull) if leaf.dtype in (jnp.bool_, jnp.uint32)]
    assert sum(leaf.size for leaf in masks) <= 2 * 64
