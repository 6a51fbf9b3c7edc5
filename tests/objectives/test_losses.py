"""Losses against values worked out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.objectives import losses

LOGITS = jnp.asarray([[2.0, -1.0, 0.5]])
TARGET = jnp.asarray([[1.0, 0.0, 0.0]])


def test_sigmoid_is_summed_over_classes():
    expected = np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)) + np.log1p(np.exp(0.5))
    assert float(losses.sigmoid_cross_entropy(LOGITS, TARGET)[0]) == pytest.approx(expected)


def test_sigmoid_label_smoothing_moves_both_sides():
    smooth = losses.sigmoid_cross_entropy(LOGITS, TARGET, label_smoothing=0.1)
    by_hand = losses.sigmoid_cross_entropy(LOGITS, jnp.asarray([[0.9, 0.1, 0.1]]))
    np.testing.assert_allclose(smooth, by_hand, rtol=1e-6)


def test_softmax_and_its_smoothing():
    log_softmax = np.asarray(LOGITS[0]) - np.log(np.exp(np.asarray(LOGITS[0])).sum())
    plain = losses.softmax_cross_entropy(LOGITS, TARGET)
    np.testing.assert_allclose(plain, [-log_softmax[0]], rtol=1e-6)
    smooth = losses.softmax_cross_entropy(LOGITS, TARGET, label_smoothing=0.3)
    expected = -(0.8 * log_softmax[0] + 0.1 * log_softmax[1] + 0.1 * log_softmax[2])
    np.testing.assert_allclose(smooth, [expected], rtol=1e-6)


def test_one_hot_passes_soft_targets():
    soft = jnp.asarray([[0.3, 0.7]])
    np.testing.assert_array_equal(losses.one_hot(soft, 2), soft)
    np.testing.assert_array_equal(losses.one_hot(jnp.asarray([1]), 3), [[0, 1, 0]])


def test_class_weights_by_hand():
    logits, targets = jnp.array([[1.0, -2.0, 0.5]]), jnp.array([[1.0, 1.0, 0.0]])
    weights = jnp.array([2.0, 0.5, 7.0])
    there = 1 / (1 + np.exp(-np.array([1.0, -2.0, 0.5])))
    wanted = -2 * np.log(there[0]) - 0.5 * np.log(there[1]) - np.log(1 - there[2])
    found = losses.sigmoid_cross_entropy(logits, targets, weights)
    np.testing.assert_allclose(found, [wanted], rtol=1e-6)
    shares = np.exp([1.0, -2.0, 0.5]) / np.exp([1.0, -2.0, 0.5]).sum()
    found = losses.softmax_cross_entropy(logits, jnp.array([[0.0, 1.0, 0.0]]), weights)
    np.testing.assert_allclose(found, [-0.5 * np.log(shares[1])], rtol=1e-6)
    for loss in losses.LOSSES.values():
        one = loss(logits, targets, jnp.ones(3), label_smoothing=0.1)
        np.testing.assert_allclose(one, loss(logits, targets, label_smoothing=0.1), rtol=1e-6)


def test_several_labels_are_padded_to_the_classes_of_the_model():
    labels = jnp.array([[1, 0], [0, 1]], jnp.int8)
    assert losses.one_hot(labels, 3).tolist() == [[1, 0, 0], [0, 1, 0]]
    assert losses.one_hot(labels, 2).dtype == jnp.float32
