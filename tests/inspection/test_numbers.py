"""Attention distance, rollout and position similarity, worked out by hand."""

import numpy as np
import pytest

from vit_jax import inspection, models
from vit_jax.errors import UserError


def test_identity_attention_has_distance_zero():
    weights = np.broadcast_to(np.eye(10), (3, 2, 10, 10))  # a class token and 3x3 patches
    found = inspection.attention_distance(weights, (3, 3), 48)
    assert found.shape == (3, 2) and not found.any()


def test_uniform_attention_has_the_mean_distance():
    """2x2 patches of 10 pixels: a query is 0, 10, 10 and 10 sqrt 2 from the four."""
    among = np.full((1, 1, 4, 4), 0.25)
    mean = (0 + 10 + 10 + 10 * 2**0.5) / 4
    assert inspection.attention_distance(among, (2, 2), 20)[0, 0] == pytest.approx(mean)
    with_token = np.full((1, 1, 5, 5), 0.2)  # a fifth goes to the class token: not renormalised
    found = inspection.attention_distance(with_token, (2, 2), 20)[0, 0]
    assert found == pytest.approx(mean * 4 / 5)


def test_distances_on_a_grid_that_is_not_square():
    """1x3 patches, 30 pixels wide: the first attends to the last only, the others to themselves."""
    weights = np.eye(3)[None, None].copy()
    weights[0, 0, 0] = (0, 0, 1)
    assert inspection.attention_distance(weights, (1, 3), (10, 30))[0, 0] == pytest.approx(20 / 3)
    distances = inspection.token_distances((2, 3), (20, 60))
    assert distances[0, 5] == pytest.approx(np.hypot(10, 40))


def test_the_mean_is_over_images():
    near, far = np.eye(4), np.eye(4)[::-1]
    weights = np.stack([near, far])[None, :, None]  # one layer, two images, one head
    found = inspection.attention_distance(weights, (2, 2), 20)
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(0.5 * 10 * 2**0.5)


def test_attention_of_another_grid_is_refused():
    with pytest.raises(UserError, match="10 tokens does not fit a grid of 2x2"):
        inspection.attention_distance(np.zeros((1, 1, 10, 10)), (2, 2), 32)


def test_rollout_of_known_matrices():
    """Two layers over a class token and 1x2 patches, multiplied out by hand."""
    a = np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    b = np.array([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    # With the identity and normalised, the class row of a is (1/2, 1/2, 0), of b (1/2, 0, 1/2);
    # b after a: 1/2 (1/2, 1/2, 0) + 1/2 (0, 0, 1).
    found = inspection.attention_rollout(np.stack([a, b])[:, None], (1, 2))
    np.testing.assert_allclose(found, [[0.25, 0.5]])


def test_rollout_averages_heads_and_guesses_squares():
    uniform = np.full((2, 3, 5, 5), 0.2)
    found = inspection.attention_rollout(uniform)
    assert found.shape == (2, 2)
    np.testing.assert_allclose(found, found[0, 0])
    one = (0.2 * np.ones((5, 5)) + np.eye(5)) / 2
    np.testing.assert_allclose(found.ravel(), (one @ one)[0, 1:])
    with pytest.raises(UserError, match="row of the class token"):
        inspection.attention_rollout(np.zeros((1, 1, 4, 4)), (2, 2))


def test_position_similarity():
    config = models.get_config("debug", image_size=(16, 24))  # 2x3 patches, a class token
    table = np.random.default_rng(0).normal(size=(1, 7, 64))
    found = inspection.position_similarity(config, {"position_embedding/0/embedding": table})
    assert found.shape == (2, 3, 2, 3)
    np.testing.assert_allclose(found[1, 2, 1, 2], 1)
    a, b = table[0, 1 + 0 * 3 + 1], table[0, 1 + 1 * 3 + 2]
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found[0, 1, 1, 2], expected)


def test_position_similarity_of_rows_and_columns():
    config = models.get_config("debug", image_size=(16, 24), position_embedding="2d")
    rng = np.random.default_rng(0)
    params = {
        "position_embedding/0/y": rng.normal(size=(2, 32)),
        "position_embedding/0/x": rng.normal(size=(3, 32)),
    }
    found = inspection.position_similarity(config, params)
    y, x = params["position_embedding/0/y"], params["position_embedding/0/x"]
    a, b = np.concatenate([y[0], x[2]]), np.concatenate([y[1], x[0]])
    expected = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    np.testing.assert_allclose(found[0, 2, 1, 0], expected)


@pytest.mark.parametrize(
    "config, message",
    [
        (models.get_config("debug", position_embedding="none"), "its kind is 'none'"),
        (models.get_config("R50x1"), "a ResNet has none"),
    ],
)
def test_no_position_embeddings(config, message):
    with pytest.raises(UserError, match=message):
        inspection.position_similarity(config, {})


def test_filter_components_find_what_varies():
    """Filters that are mixtures of two patterns have two components, and these are the patterns."""
    rng = np.random.default_rng(0)
    patterns = np.stack([np.eye(4), np.fliplr(np.eye(4))])[..., None].repeat(3, -1)
    weights = rng.normal(size=(2, 50)) * np.array([[3.0], [1.0]])
    filters = np.einsum("khwc,kn->hwcn", patterns, weights)
    images, share = inspection.filter_components(filters, count=5)
    assert images.shape == (5, 4, 4, 3) and images.min() == 0 and images.max() == 1
    assert share[0] > 0.8 and share[:2].sum() == pytest.approx(1)
    centred = images[0] - np.median(images[0])
    overlap = abs((centred * patterns[0]).sum()) / np.linalg.norm(centred)
    assert overlap / np.linalg.norm(patterns[0]) > 0.95
