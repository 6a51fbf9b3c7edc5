"""Few-shot regression, neighbours, ReaL and calibration, against golden numbers and by hand."""

import errno

import golden_weights
import numpy as np
import pytest

from vit_jax import data
from vit_jax.data.source import FileSource
from vit_jax.errors import UserError
from vit_jax.evaluation import calibration, fewshot, figures, knn, objectnet, probe, real, result

PROTOCOL = golden_weights.numbers("protocol")


@pytest.mark.parametrize("case", ["fewshot_wide", "fewshot_tall"])
@pytest.mark.parametrize("power", [-10, 0, 10, 19])
def test_ridge_equals_the_original(case, power):
    """Wide: more features than examples; tall: fewer."""
    g = {k.split("/")[1]: v for k, v in PROTOCOL.items() if k.startswith(f"{case}/")}
    wanted = g[f"scores_l2_2^{power}"]
    scores = fewshot.ridge_scores(
        g["x_train"], g["y_train"], g["x_test"], wanted.shape[1], 2.0**power
    )
    # The original solves in float32, which the bias feature of 100 makes coarse for a small l2.
    tolerance = 1e-3 if power < 10 else 5e-5
    np.testing.assert_allclose(scores, wanted, atol=tolerance * np.abs(wanted).max())
    np.testing.assert_array_equal(scores.argmax(1), wanted.argmax(1))
    accuracy = (scores.argmax(1) == g["y_test"]).mean()
    assert accuracy == pytest.approx(float(g[f"accuracy_l2_2^{power}"]), abs=1e-6)


def test_ridge_by_hand():
    """The normal equations, solved plainly."""
    rng = np.random.default_rng(0)
    x, y, z = rng.normal(size=(9, 4)), rng.integers(0, 3, 9), rng.normal(size=(5, 4))
    a, b = fewshot.whiten(x, z)
    assert a.shape == (9, 5) and (a[:, -1] == 100).all()
    np.testing.assert_allclose(a[:, :4].mean(0), 0, atol=1e-12)
    targets = np.where(np.arange(3) == y[:, None], 1, -1)
    w = np.linalg.inv(a.T @ a + 3.0 * np.eye(5)) @ a.T @ targets
    np.testing.assert_allclose(fewshot.ridge_scores(x, y, z, 3, 3.0), b @ w, rtol=1e-7)
    one = fewshot.ridge_scores(x[:2], y[:2], z, 3, 3.0)  # fewer examples than features
    a, b = fewshot.whiten(x[:2], z)
    w = np.linalg.inv(a.T @ a + 3.0 * np.eye(5)) @ a.T @ targets[:2]
    np.testing.assert_allclose(one, b @ w, rtol=1e-7)


def test_shots_are_of_every_class_and_follow_the_seed():
    labels = np.array([0, 1, 2] * 10)
    chosen = fewshot.choose_shots(labels, 5, 3, seed=0)
    assert len(set(chosen)) == 15 and list(np.bincount(labels[chosen])) == [5, 5, 5]
    assert list(chosen) == list(fewshot.choose_shots(labels, 5, 3, seed=0))
    assert list(chosen) != list(fewshot.choose_shots(labels, 5, 3, seed=1))
    with pytest.raises(UserError, match="class 0 has 10"):
        fewshot.choose_shots(labels, 11, 3, seed=0)


def test_the_l2_of_the_best_mean_rank():
    results = {
        "a": {1: {0.1: [0.5], 1.0: [0.6], 10.0: [0.4]}},
        "b": {1: {0.1: [0.9], 1.0: [0.8], 10.0: [0.1]}},
        "c": {1: {0.1: [0.2], 1.0: [0.3], 10.0: [0.1]}},
    }
    assert fewshot.best_l2(results, 1) == 1.0


def test_few_shots_of_separable_features():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(4, 16)) * 5
    y = np.repeat(np.arange(4), 30)
    x = centres[y] + rng.normal(size=(120, 16))
    found = fewshot.accuracies(x, y, x, y, 4, shots=(1, 5), seeds=(0, 1))
    assert len(found[1][fewshot.L2]) == 2 and np.mean(found[5][fewshot.L2]) > 0.97


def test_neighbours_by_hand():
    bank = np.array([[1, 0], [0, 1], [-1, 0], [1, 1]], np.float32)
    indices, similarities = knn.nearest_neighbours(np.array([[2.0, 0.1]]), bank, 3)
    assert list(indices[0]) == [0, 3, 1]
    np.testing.assert_allclose(similarities[0, 0], 2 / np.hypot(2, 0.1), rtol=1e-6)
    y = np.array([0, 1, 1, 1])
    found = knn.accuracies(bank, y, np.array([[2.0, 0.1]]), np.array([0]), 2, ks=(1, 3, 9))
    assert found == {1: 1.0, 3: 0.0}  # one vote for 0, then two of three for 1; 9 are not there


def test_neighbours_vote_by_their_similarity():
    """One that is near outweighs two that are far; those that point away still vote."""
    y = np.array([0, 1, 1])
    for bank in ([[1, 0], [-0.9, 1], [-0.9, -1]], [[-1, 1], [-1, 0], [-1, 0.01]]):
        found = knn.accuracies(np.array(bank), y, np.eye(2)[:1], np.array([0]), 3, ks=(3,))
        assert found == {3: 1.0}


@pytest.mark.parametrize("seed", range(10))
def test_neighbours_do_not_depend_on_lengths_or_on_the_order_of_the_bank(seed):
    rng = np.random.default_rng(seed)
    bank, x = rng.normal(size=(12, 4)), rng.normal(size=(30, 4))
    y, wanted = rng.integers(0, 3, 12), rng.integers(0, 3, 30)
    found = knn.accuracies(bank, y, x, wanted, 3, ks=range(1, 13))
    order, lengths = rng.permutation(12), rng.uniform(0.5, 2.0, (12, 1))
    again = knn.accuracies((bank * lengths)[order], y[order], 3 * x, wanted, 3, ks=range(1, 13))
    assert again == found


def test_invalid_options_are_one_line():
    x, y = np.random.default_rng(0).normal(size=(6, 4)), np.array([0, 0, 0, 0, 0, 1])
    with pytest.raises(UserError, match="--k=9,20 is too many: there are 6"):
        knn.accuracies(x, y, x, y, 2, ks=(9, 20))
    for count in (1, 4):
        with pytest.raises(UserError, match=f"more than {count} training images"):
            probe.accuracy(x[:count], y[:count], x, y)
    for l2 in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="must be above 0, or sweep"):
            fewshot.fewshot(None, None, l2=l2)


class HalfAFigure:
    def savefig(self, place, **options):
        place.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")


def test_results_are_whole_and_replace_nothing_else(tmp_path):
    pictures = {"a": HalfAFigure}
    with pytest.raises(UserError, match=r"evaluation_a\.png cannot be written \(No space"):
        result.write(tmp_path, "x", {"b": 1}, result.Result({}, [], {}, pictures=pictures))
    assert [file.name for file in tmp_path.iterdir()] == ["evaluation.json"]
    assert result.earlier(tmp_path) == {"x": {"b": 1}}
    (tmp_path / "evaluation.json").write_text("[]")
    with pytest.raises(UserError, match="has no results; move it away"):
        result.earlier(tmp_path)


def test_real_counts_images_that_have_a_label():
    labels = [[1, 2], [], [0], [3]]
    assert real.real_accuracy([2, 5, 1, 3], labels) == pytest.approx(2 / 3)
    with pytest.raises(UserError, match="for 4 images but 3"):
        real.real_accuracy([1, 2, 3], labels)
    with pytest.raises(UserError, match="No image"):
        real.real_accuracy([1], [[]])


def test_real_labels_from_a_file(tmp_path):
    (tmp_path / "real.json").write_text("[[1], [], [2, 3]]")
    assert real.read_labels(tmp_path / "real.json") == [[1], [], [2, 3]]
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(UserError, match="not a list of lists"):
        real.read_labels(tmp_path / "bad.json")
    with pytest.raises(UserError, match="reassessed-imagenet"):
        real.read_labels(tmp_path / "none.json")
    names = np.array(["x/ILSVRC2012_val_00000003.JPEG", "a/ILSVRC2012_val_00000001.JPEG"])
    source = FileSource(".", names, np.zeros(2, np.int32), ["a"], "folder:.")
    assert list(real.in_file_order(source).indices) == [1, 0]
    with pytest.raises(UserError, match="has no file names"):
        real.in_file_order(data.ArraySource(np.zeros((1, 2, 2, 3), np.uint8), [0]))


def test_calibration_by_hand():
    confidence = np.array([0.95, 0.9, 0.6, 0.55])
    correct = np.array([True, False, True, True])
    # bins of ten: (0.9, 1]: 0.95, right; (0.8, 0.9]: 0.9, wrong; (0.5, 0.6]: both right
    expected = (1 * 0.05 + 1 * 0.9 + 2 * (1 - 0.575)) / 4
    found = calibration.expected_calibration_error(confidence, correct, bins=10)
    assert found == pytest.approx(expected)
    matrix = calibration.confusion_matrix(np.array([0, 0, 1]), np.array([0, 1, 1]), 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_pictures_of_mistakes_are_of_the_examples_that_were_read():
    """The first could not be read: results are of the numbers 1 and 2."""
    results = {
        "index": np.array([1, 2]), "correct": np.array([False, True]), "label": np.array([0, 1]),
        "confidence": np.array([0.9, 0.8]), "prediction": np.array([1, 1]),
    }  # fmt: skip
    images = np.stack([np.full((4, 4, 3), value, np.uint8) for value in (0, 100, 200)])
    figure = figures.mistakes(results, data.ArraySource(images, [0, 0, 1]), ("a", "b"))
    assert (figure.axes[0].get_images()[0].get_array() == 100).all()


def test_pictures_of_wrong_labels_name_what_is_missed_and_what_is_wrong():
    """Of six channels; the largest loss first, and no image without an error."""
    labels, said = np.array([[1, 0], [1, 1], [0, 1]]), np.array([[0, 1], [1, 1], [0, 0]])
    results = {"index": np.array([2, 1, 0]), "loss": np.array([1.0, 9.0, 3.0])}
    images = np.stack([np.full((4, 4, 6), value, np.uint8) for value in (0, 100, 200)])
    source = data.ArraySource(images, labels, ("a", "b"))
    figure = figures.wrong_labels(results, labels, said, source, ("a", "b"))
    assert [cell.get_title() for cell in figure.axes] == ["missed: b", "missed: a\nwrong: b"]
    shown = [cell.get_images()[0].get_array() for cell in figure.axes]
    assert shown[0].shape == (4, 4, 3) and (shown[0] == 0).all() and (shown[1] == 200).all()
    assert figures.wrong_labels(results, labels, labels, source, ("a", "b")) is None


def test_objectnet_counts_any_of_an_objects_classes():
    classes = [[3, 7], [5]]
    ranked = np.array([[7, 1, 2, 0, 4], [5, 3, 1, 2, 0], [3, 4, 5, 0, 1], [9, 8, 7, 6, 2]])
    labels = np.array([0, 1, 1, 1])
    assert objectnet.accuracies(ranked, labels, classes) == (0.5, 0.75)


def test_objectnet_images_lose_their_border_and_their_margins():
    image = np.full((104, 204, 3), 10, np.uint8)
    image[2:-2, 2:-2] = 100
    transform = data.make_transform(name="objectnet", size=(48, 48), train=False)
    assert np.all(transform(image) == 100)
    wide = np.zeros((516, 1028, 3), np.uint8)  # inside its border 512 x 1024
    wide[:, 514 - 240 : 514 + 240] = 200
    found = data.make_transform(name="objectnet", size=(480, 480), train=False)(wide)
    assert found.shape == (480, 480, 3) and np.all(found == 200)
    assert np.all(transform.read(image[:5, :5], "corner.png") == 100)  # one pixel inside
    with pytest.raises(UserError, match=r"corner.png has 9x4 pixels, too few for the border"):
        transform.read(image[:4, :9], "corner.png")


def test_probe_finds_a_direction_that_neighbours_do_not():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 40)).astype(np.float32)
    y = (x[:, 0] + 0.5 * x[:, 1] > 0).astype(int)
    accuracy, inverse_l2 = probe.accuracy(x[:500], y[:500], x[500:], y[500:])
    assert accuracy > 0.93 and inverse_l2 in probe.INVERSE_L2
    assert knn.accuracies(x[:500], y[:500], x[500:], y[500:], 2, ks=(5,))[5] < 0.85
