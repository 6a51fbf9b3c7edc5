"""Rare classes: weights of the loss by hand, and balanced sampling, draw by draw."""

import json

import numpy as np
import pytest
from small_run import prepared

from vit_jax import config as configuration, data
from vit_jax.data.batches import _Balanced
from vit_jax.data.source import ArraySource
from vit_jax.errors import UserError
from vit_jax.training import imbalance

RESIZE = data.make_transform(name="resize", size=(4, 4), train=False)
NAMES = ("ant", "bee", "cow", "doe")
#: 12 ants, 3 bees, no cow, 1 doe.
SINGLE = np.array([0] * 12 + [1] * 3 + [3])
SEVERAL = np.array([[1, 1, 0, 1]] * 3 + [[0, 1, 0, 1]] * 1)


def source(labels, known=True):
    """Record i is an image of the grey value i."""
    images = np.tile(np.arange(len(labels), dtype=np.uint8)[:, None, None, None], (1, 4, 4, 3))
    found = ArraySource(images, labels, NAMES, spec="animals[train]")
    if not known:
        found = data.Subset(found, np.arange(len(found)), "animals[train]")
        found.source.labels = None
    return found


def with_settings(**settings):
    config = configuration.default()
    for key, text in settings.items():
        configuration.override(config, key.replace("__", "."), text)
    return config


def weights(labels, setting="balanced", num_classes=4):
    return imbalance.class_weights(
        with_settings(class_weights=str(setting)), source(labels), num_classes
    )


def test_balanced_weights_by_hand():
    found, notes = weights(SINGLE)
    np.testing.assert_allclose(found, [16 / 36, 16 / 9, 1, 16 / 3], rtol=1e-6)
    assert found @ np.bincount(SINGLE, minlength=4) == pytest.approx(16)  # their mean is one
    assert "1 classes have no training image (e.g. 'cow'); their weight is 1" in notes[1]
    found, notes = weights(SEVERAL, num_classes=5)
    np.testing.assert_allclose(found, [1 / 3, 1, 1, 1, 1], rtol=1e-6)
    assert "3 classes have no training image, or every one" in notes[1]
    assert weights(SINGLE, "none") == (None, [])


def test_weights_of_a_file(tmp_path):
    file = tmp_path / "weights.json"
    file.write_text(json.dumps({"doe": 4, "cow": 3.5, "bee": 2, "ant": 1}))
    assert weights(SINGLE, file)[0].tolist() == [1, 2, 3.5, 4]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"ant": 1, "bee": NaN, "cow": 1, "doe": 1}', "the weight of 'bee' is nan"),
        ('{"ant": 1, "bee": 1e999, "cow": 1, "doe": 1}', "the weight of 'bee' is inf"),
        ('{"ant": 1, "bee": 0, "cow": 1, "doe": 1}', "'bee' is 0; it must be above 0"),
        ('{"ant": 1, "bee": true, "cow": 1, "doe": 1}', "'bee' is True"),
        ('{"ant": 1, "bee": "2", "cow": 1, "doe": 1}', "'bee' is '2'"),
        ('{"ant": 1, "bee": 1, "doe": 1}', "no weight for the class 'cow'"),
        ('{"ant": 1, "bee": 1, "cow": 1, "deo": 1}', "'deo', which the data do not have.*'doe'"),
        ("[1, 1, 1, 1]", "not a JSON object"),
        ("{", "is not JSON"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    file = tmp_path / "weights.json"
    file.write_text(content)
    with pytest.raises(UserError, match=message):
        weights(SINGLE, file)


def test_invalid_settings_are_refused():
    with pytest.raises(UserError, match=r"balansed does not exist; .*mean 'balanced'"):
        weights(SINGLE, "balansed")
    check = imbalance.check
    balanced = {"data__sampling": "balanced"}
    for settings, labels, known, message in (
        (balanced | {"class_weights": "balanced"}, SINGLE, True, "both correct for rare classes"),
        (balanced | {"loss__name": "sigmoid_cross_entropy"}, SEVERAL, True, "one label per image"),
        (balanced, SINGLE, False, "needs all labels of animals"),
        ({}, SEVERAL, True, "set config.loss.name=sigmoid_cross_entropy"),
    ):
        with pytest.raises(UserError, match=message):
            check(with_settings(**settings), source(labels, known))
    check(with_settings(objective__name="masked_patches"), source(SEVERAL))
    check(with_settings(**balanced), source(SINGLE))
    with pytest.raises(UserError, match="class_weights=balanced needs all labels"):
        imbalance.class_weights(with_settings(class_weights="balanced"), source(SINGLE, False), 4)


# --- balanced sampling --------------------------------------------------------------------------


def drawn(count, batch_size=4, **options):
    """(numbers of the records, labels) of the first batches, (count, rows)."""
    batches = data.train_batches(
        source(SINGLE), RESIZE, batch_size=batch_size, seed=5, balanced=True, **options
    )
    try:
        taken = [next(batches) for _ in range(count)]
    finally:
        batches.close()
    return tuple(
        np.stack(part)
        for part in ([b["image"][:, 0, 0, 0] for b in taken], [b["label"] for b in taken])
    )


def test_every_class_is_drawn_equally_often():
    """In each epoch of 16 draws, of 3 classes: 5 or 6 of each; all images before any again."""
    records, labels = drawn(12)
    assert (SINGLE[records] == labels).all()
    for epoch in range(3):
        count = np.bincount(labels[4 * epoch : 4 * epoch + 4].ravel(), minlength=4)
        assert count[2] == 0 and set(count[[0, 1, 3]]) <= {5, 6}
    ants = records.ravel()[labels.ravel() == 0]
    # Within an epoch draws are in a random order, so that a round ends in the middle of one.
    assert np.bincount(ants, minlength=12)[:12].tolist() == pytest.approx([16 / 12] * 12, abs=1)
    assert len(set(ants[:6])) == 6 and len(set(ants)) == 12
    assert not (np.diff(labels.ravel().reshape(3, 16), axis=0) == 0).all()  # another order


def test_draws_are_the_same_however_they_are_read():
    records, _ = drawn(9)
    assert (drawn(3, start_step=6)[0] == records[6:]).all()
    for rows in ([0, 2], [1, 3]):  # of two processes
        assert (drawn(9, rows=np.array(rows))[0] == records[:, rows]).all()
    assert (drawn(9, num_threads=1)[0] == records).all()
    assert (drawn(4, num_workers=1)[0] == records[:4]).all()
    assert (drawn(3, batch_size=12)[0].ravel() == records.ravel()).all()


def test_classes_of_one_size_have_orders_of_their_own():
    twelve = ArraySource(np.zeros((24, 4, 4, 3), np.uint8), [0] * 12 + [1] * 12, NAMES[:2])
    draws = [_Balanced(twelve, seed=5).map_with_index(i, i) for i in range(24)]
    assert sorted(draws) == list(range(24))
    assert draws[0::2] != [record - 12 for record in draws[1::2]]


def test_the_effect_of_balanced_sampling_is_printed():
    notes = imbalance.sampling_notes(source(SINGLE))
    assert "an epoch is 16 draws, 5.333 for each of 3 classes" in notes[0]
    assert "'doe' is drawn 5.33 times, of 'ant' 0.444 times" in notes[0]
    assert "1 classes have no training image and are never drawn (e.g. 'cow')" in notes[1]


def test_a_run_with_weights_says_so_and_computes_another_loss():
    plain, weighted = prepared(), prepared(class_weights="balanced")
    assert plain.data.class_weights is None and weighted.data.class_weights.shape == (10,)
    assert any("class_weights: from" in note for note in weighted.notes)
    with pytest.raises(UserError, match=r"does not read config\.class_weights"):
        prepared(class_weights="balanced", objective__name="masked_patches")
