"""Average precision, F1 and thresholds against scikit-learn, by hand, and by trying them all."""

import numpy as np
import pytest
from sklearn import metrics

from vit_jax.errors import UserError
from vit_jax.evaluation import classification, multilabel


def random_case(seed, n=60, k=5, levels=None):
    """(logits, labels); with `levels`, so few scores that many are equal."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, (n, k)).astype(np.int8)
    logits = rng.normal(size=(n, k)) + labels
    logits = np.round(logits * levels) / levels if levels else logits
    return logits.astype(np.float32), labels


@pytest.mark.parametrize("levels", [None, 1, 3])
@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_sklearn(seed, levels):
    logits, labels = random_case(seed, levels=levels)
    found = multilabel.average_precisions(logits, labels)
    wanted = metrics.average_precision_score(labels, logits, average=None)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    assert multilabel.summarise(logits, labels) == {"mAP": pytest.approx(wanted.mean(), rel=1e-12)}


def test_average_precision_by_hand():
    """Right, wrong, right, wrong: 1/2 (1/1) + 1/2 (2/3); with ties, the two steps are one."""
    there = np.array([1, 0, 1, 0])
    assert multilabel.average_precision(np.array([9.0, 8, 7, 6]), there) == pytest.approx(5 / 6)
    for scores in ([9.0, 8, 8, 6], [9.0, 8, 8, 6][::-1]):
        scores = np.array(scores)
        mine = there if scores[0] == 9 else there[::-1]
        assert multilabel.average_precision(scores, mine) == pytest.approx(5 / 6)
    assert multilabel.average_precision(np.zeros(4), there) == pytest.approx(1 / 2)
    assert multilabel.average_precision(np.array([1.0, 2]), np.array([1, 0])) == pytest.approx(0.5)


def test_logits_are_ranked_where_probabilities_round_to_one():
    logits, labels = np.array([[90.0], [80.0]], np.float32), np.array([[1], [0]])
    assert multilabel.probabilities(logits).tolist() == [[1.0], [1.0]]
    assert multilabel.average_precisions(logits, labels).tolist() == [1.0]
    assert multilabel.probabilities(np.array([-900.0, 0.0])).tolist() == [0.0, 0.5]


def test_classes_without_an_example_are_left_out():
    logits, labels = random_case(0)
    labels[:, 2] = 0
    found = multilabel.average_precisions(logits, labels)
    assert np.isnan(found[2]) and not np.isnan(found[[0, 1, 3, 4]]).any()
    keep = [0, 1, 3, 4]
    wanted = metrics.average_precision_score(labels[:, keep], logits[:, keep], average="macro")
    assert multilabel.summarise(logits, labels)["mAP"] == pytest.approx(wanted)
    assert multilabel.summarise(logits, labels[:, :2]) == multilabel.summarise(
        logits[:, :2], labels[:, :2]
    )  # classes that the model has and the data do not
    assert multilabel.summarise(logits, np.zeros_like(labels)) == {}


@pytest.mark.parametrize("seed", range(3))
def test_f1_equals_sklearn(seed):
    logits, labels = random_case(seed)
    labels[:, 1], logits[:, 3] = 0, -9  # without an example; never said
    said = multilabel.probabilities(logits) >= 0.6
    found = multilabel.counts(labels, said)
    rows = multilabel.per_class(np.zeros(5), found, tuple("abcde"), np.full(5, 0.6))
    known = [0, 2, 3, 4]
    wanted = metrics.precision_recall_fscore_support(labels, said, labels=known, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "examples"), wanted, strict=True):
        assert [rows[k][name] for k in known] == pytest.approx(list(values))
    assert rows[1]["f1"] is None and rows[1]["examples"] == 0 and rows[3]["precision"] == 0.0
    summary = multilabel.overall(rows, found)
    for average in ("micro", "macro"):
        values = metrics.precision_recall_fscore_support(
            labels, said, labels=known if average == "macro" else None, average=average,
            zero_division=0,
        )  # fmt: skip
        names = [f"{average}_{name}" for name in ("precision", "recall", "f1")]
        assert [summary[name] for name in names] == pytest.approx(list(values[:3]))


@pytest.mark.parametrize("levels", [None, 2])
def test_the_best_threshold_is_the_best_of_all(levels):
    logits, labels = random_case(4, k=1, levels=levels)
    scores, there = multilabel.probabilities(logits)[:, 0], labels[:, 0]
    found = multilabel.best_threshold(scores, there)
    tried = {t: metrics.f1_score(there, scores >= t) for t in np.unique(scores)}
    assert metrics.f1_score(there, scores >= found) == pytest.approx(max(tried.values()))
    assert not (scores == found).any()  # half-way: as far as can be from either side
    highest = max(t for t, f1 in tried.items() if f1 == max(tried.values()))
    assert (scores >= found).sum() == (scores >= highest).sum()


def test_thresholds_by_hand():
    scores, there = np.array([0.9, 0.7, 0.4, 0.2]), np.array([1, 1, 0, 0])
    assert multilabel.best_threshold(scores, there) == pytest.approx(0.55)
    assert multilabel.best_threshold(scores, np.ones(4)) == pytest.approx(0.1)
    logits, labels = random_case(5)
    labels[:, 2] = 0
    one, without = multilabel.choose_thresholds(logits, labels, each=False)
    assert len(one) == 1 and without == []
    each, without = multilabel.choose_thresholds(logits, labels, each=True)
    assert len(each) == 5 and without == [2] and each[2] == one[0]
    micro = [
        metrics.f1_score(labels[:, [0, 1, 3, 4]], multilabel.probabilities(logits[:, [0, 1, 3, 4]])
                         >= t, average="micro")
        for t in (one[0], *np.linspace(0.01, 0.99, 99))
    ]  # fmt: skip
    assert micro[0] == pytest.approx(max(micro))
    with pytest.raises(UserError, match="no image has any"):
        multilabel.choose_thresholds(logits, np.zeros_like(labels), each=True)


def test_single_labels_have_precision_recall_and_f1():
    rng = np.random.default_rng(0)
    label, prediction = rng.integers(0, 4, (2, 50))
    prediction[prediction == 2] = 3  # never said
    results = {"label": label, "prediction": prediction, "correct": label == prediction}
    rows = classification.per_class(results, tuple("abcdef"))
    wanted = metrics.precision_recall_fscore_support(
        label, prediction, labels=range(4), zero_division=0
    )
    for name, values in zip(("precision", "recall", "f1", "examples"), wanted, strict=True):
        assert [row[name] for row in rows[:4]] == pytest.approx(list(values))
    assert [row["f1"] for row in rows[4:]] == [None, None]
    assert rows[0]["accuracy"] == rows[0]["recall"]
    assert rows[2]["precision"] == 0.0 and rows[2]["f1"] == 0.0
    found = classification.macro(rows)
    assert found["macro_f1"] == pytest.approx(wanted[2].mean())
    assert found["classes_without_examples"] == 2
