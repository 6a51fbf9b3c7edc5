"""Position-embedding interpolation and head surgery."""

import dataclasses

import golden_weights
import numpy as np
import pytest

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models import adapt
from vit_jax.models.adapt import resize_position_embedding

PROTOCOL = golden_weights.numbers("protocol")


def random_params(config):
    """Normal parameters, each drawn from its name."""
    return {
        path: golden_weights.draw(path, leaf.shape)
        for path, leaf in models.abstract_params(config).items()
    }


@pytest.fixture
def pretrained():
    """A debug model with the paper's pre-training head of 20 classes, and its parameters."""
    config = models.get_config("debug", num_classes=20, representation_size="hidden")
    return config, random_params(config)


# resize_position_embedding


@pytest.mark.parametrize("old, new", [(14, 24), (7, 12), (24, 14)])
def test_equals_the_original(old, new):
    case = f"posemb_{old}_to_{new}"
    found = resize_position_embedding(PROTOCOL[f"{case}/in"], (new, new))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, PROTOCOL[f"{case}/out"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(17, 5), (2, 17, 5)])
def test_one_model_is_resized_at_a_time(shape):
    with pytest.raises(UserError, match=r"must be \(1, n, d\), but these"):
        resize_position_embedding(np.zeros(shape), (7, 7))


def test_one_number_is_a_square_grid():
    pos = golden_weights.draw("pos", (1, 17, 5))
    np.testing.assert_array_equal(
        resize_position_embedding(pos, 7), resize_position_embedding(pos, (7, 7))
    )


def test_the_same_grid_changes_nothing():
    pos = golden_weights.draw("pos", (1, 17, 5))
    np.testing.assert_array_equal(resize_position_embedding(pos, (4, 4)), pos)


def test_class_token_is_kept_and_corners_stay():
    pos = golden_weights.draw("pos", (1, 17, 5))
    found = resize_position_embedding(pos, (7, 6))
    assert found.shape == (1, 43, 5)
    np.testing.assert_array_equal(found[0, 0], pos[0, 0])
    old, new = pos[0, 1:].reshape(4, 4, 5), found[0, 1:].reshape(7, 6, 5)
    np.testing.assert_allclose(new[::6, ::5], old[::3, ::3], rtol=1e-6)
    np.testing.assert_allclose(new[3], (new[2] + new[4]) / 2, rtol=1e-4, atol=1e-6)


def test_a_plane_stays_a_plane_on_non_square_grids():
    def plane(rows, columns):
        r, c = np.linspace(0, 1, rows)[:, None], np.linspace(0, 1, columns)[None, :]
        return np.stack([r + 0 * c, 3 * c + 0 * r, r - c], axis=-1).reshape(1, -1, 3)

    found = resize_position_embedding(plane(3, 5), (4, 9), old_grid=(3, 5), has_class_token=False)
    np.testing.assert_allclose(found, plane(4, 9), atol=1e-6)


def test_a_grid_of_one_row_is_resized():
    pos = golden_weights.draw("pos", (1, 3, 2))
    found = resize_position_embedding(pos, (2, 3), old_grid=(1, 3), has_class_token=False)
    np.testing.assert_allclose(found[0].reshape(2, 3, 2), np.stack([pos[0], pos[0]]))


@pytest.mark.parametrize(
    "tokens, settings, message",
    [
        (16, {}, r"15 patches do not form a grid of 3x3; pass old_grid=\(rows, columns\)"),
        (17, {"has_class_token": False}, "17 patches do not form a grid of 4x4"),
        (17, {"old_grid": (3, 5)}, "16 patches do not form a grid of 3x5"),
    ],
)
def test_wrong_grids_are_refused(tokens, settings, message):
    with pytest.raises(UserError, match=message):
        resize_position_embedding(np.zeros((1, tokens, 2)), (8, 8), **settings)
    for tokens, grid in ((17, (0, 8)), (17, (8, -1)), (1, (8, 8))):
        with pytest.raises(UserError, match="both need at least one patch"):
            resize_position_embedding(np.zeros((1, tokens, 2)), grid)


# adapt


def test_the_same_model_is_passed_through(pretrained):
    config, params = pretrained
    adapted, notes = adapt.adapt(config, params, config)
    assert notes == []
    assert set(adapted) == set(params)
    for path, value in params.items():
        np.testing.assert_array_equal(adapted[path], value)


@pytest.mark.parametrize(
    "name, before, after",
    [("resize_center_crop", 256, 439), ("square_center_crop", 1.25, 1.25),
     ("pillow", (256, 256), (439, 878)), ("pillow", None, None)],
)  # fmt: skip
def test_an_image_is_cut_from_one_that_grows_with_it(name, before, after):
    known = (("name", name), ("orient", True), ("resize", before))
    config = models.get_config("B/16", preprocessing=known)
    found = adapt.retarget(config, image_size=(384, 768))
    assert found.preprocessing == (*known[:2], ("resize", after))


def test_head_surgery(pretrained):
    config, params = pretrained
    target = adapt.retarget(config, num_classes=10)
    assert target.representation_size is None
    adapted, notes = adapt.adapt(config, params, target)
    assert notes == ["head: 20 classes -> 10, from zero"]
    assert set(params) - set(adapted) == {"pre_logits/kernel", "pre_logits/bias"}
    assert adapted["head/kernel"].shape == (64, 10)
    assert not adapted["head/kernel"].any() and not adapted["head/bias"].any()
    assert adapt.is_zero_head(adapted) and not adapt.is_zero_head(params)
    for path in set(adapted) - {"head/kernel", "head/bias"}:
        np.testing.assert_array_equal(adapted[path], params[path])


def test_fine_tuning_starts_from_a_zero_head_on_the_same_labels_too(pretrained):
    """Section 3.2; `keep_head` is how one asks for the old one."""
    config, params = pretrained
    config = dataclasses.replace(config, representation_size=None)
    params = {path: value for path, value in params.items() if "pre_logits" not in path}
    params["head/kernel"] = np.ones(models.abstract_params(config)["head/kernel"].shape, np.float32)
    adapted, notes = adapt.adapt(config, params, config, new_head=True)
    assert not adapted["head/kernel"].any() and len(notes) == 1
    kept, notes = adapt.adapt(config, params, config, new_head=False)
    assert (kept["head/kernel"] == 1).all() and notes == []
    with pytest.raises(UserError, match="cannot be kept"):
        adapt.adapt(config, params, dataclasses.replace(config, num_classes=3), new_head=False)


def test_a_dropped_hidden_layer_is_a_new_head_for_as_many_classes(pretrained):
    config, params = pretrained
    target = dataclasses.replace(config, representation_size=None, head_bias=-10.0)
    adapted, notes = adapt.adapt(config, params, target)
    assert len(notes) == 1
    assert not adapted["head/kernel"].any()
    np.testing.assert_array_equal(adapted["head/bias"], np.full(20, -10, np.float32))


@pytest.mark.parametrize(
    "old, new, is_new",
    [(("a", "b"), ("b", "a"), True), (("a", "b"), ("a", "b"), False), ((), ("a", "b"), False)],
)
def test_other_labels_get_a_new_head(old, new, is_new):
    config = models.get_config("debug", num_classes=2, labels=old)
    params = random_params(config)
    adapted, notes = adapt.adapt(config, params, dataclasses.replace(config, labels=new))
    assert adapt.is_zero_head(adapted) == is_new == bool(notes)


def test_grid_change(pretrained):
    config, params = pretrained
    target = adapt.retarget(config, image_size=(48, 32))
    adapted, notes = adapt.adapt(config, params, target)
    path = "position_embedding/0/embedding"
    assert notes == [f"{path}: grid (4, 4) -> (6, 4), bilinear"]
    np.testing.assert_array_equal(
        adapted[path], resize_position_embedding(params[path], (6, 4), old_grid=(4, 4))
    )
    np.testing.assert_array_equal(adapted["head/kernel"], params["head/kernel"])
    back, _ = adapt.adapt(target, adapted, adapt.retarget(target, image_size=32))
    assert back[path].shape == params[path].shape


def test_grid_change_without_class_token():
    config = models.get_config("debug", classifier="gap", position_embedding_at="every")
    params = random_params(config)
    adapted, notes = adapt.adapt(config, params, adapt.retarget(config, image_size=64))
    assert len(notes) == 2  # one embedding per layer
    path = "position_embedding/1/embedding"
    assert adapted[path].shape == (1, 64, 64)
    np.testing.assert_allclose(adapted[path][0, 0], params[path][0, 0], rtol=1e-6)


def test_two_dimensional_tables_are_resized_apart():
    config = models.get_config("debug", position_embedding="2d")
    params = random_params(config)
    adapted, notes = adapt.adapt(config, params, adapt.retarget(config, image_size=(56, 40)))
    prefix = "position_embedding/0"
    assert adapted[f"{prefix}/y"].shape == (7, 32) and adapted[f"{prefix}/x"].shape == (5, 32)
    np.testing.assert_allclose(adapted[f"{prefix}/y"][::2], params[f"{prefix}/y"], rtol=1e-6)
    np.testing.assert_allclose(
        adapted[f"{prefix}/x"][2],
        (params[f"{prefix}/x"][1] + params[f"{prefix}/x"][2]) / 2,
        rtol=1e-5,
    )
    np.testing.assert_array_equal(adapted[f"{prefix}/class_token"], params[f"{prefix}/class_token"])
    assert [note.split(":")[0] for note in notes] == [f"{prefix}/x", f"{prefix}/y"]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 32}, r"debug does not fit the model debug: .* is .*, not .*32"),
        ({"num_layers": 3}, "it has no blocks/2/"),
        ({"classifier": "map"}, "it has no pooling/"),
        ({"num_heads": 2}, r"qkv.* is \(.*4, 16\), not \(.*2, 32\)"),
        ({"position_embedding": "2d"}, "it has no position_embedding/0/"),
        ({"position_embedding": "relative", "image_size": 64}, "it has no blocks/0/attention/rel"),
        ({"position_embedding": "none"}, "position_embedding"),
        ({"num_layers": 1}, "blocks/1/"),
        ({"classifier": "gap"}, "class_token"),
    ],
)
def test_other_models_are_refused(pretrained, settings, message):
    config, params = pretrained
    target = models.get_config("debug", num_classes=20, representation_size=64, **settings)
    with pytest.raises(UserError, match=message):
        adapt.adapt(config, params, target)


def test_a_resnet_gets_a_new_head_and_any_image_size():
    config = models.get_config("R50x1", depths=(1, 1, 1, 1), width_factor=0.5, num_classes=7)
    params = random_params(config)
    adapted, notes = adapt.adapt(
        config, params, adapt.retarget(config, num_classes=3, image_size=75)
    )
    assert notes == ["head: 7 classes -> 3, from zero"]
    assert adapted["head/kernel"].shape == (1024, 3)


def test_retarget_keeps_what_is_not_named():
    config = models.get_config(
        "debug", num_classes=2, labels=("a", "b"), representation_size=8, dropout_rate=0.1
    )
    assert adapt.retarget(config) == config
    assert adapt.retarget(config, num_classes=2, image_size=None) == config
    other = adapt.retarget(config, num_classes=3)
    assert (other.labels, other.representation_size, other.dropout_rate) == ((), None, 0.1)


# input channels


@pytest.mark.parametrize("channels", [1, 2, 4, 6, 13])
def test_resampled_channels_answer_grey_images_alike(channels):
    kernel = golden_weights.draw("kernel", (4, 4, 3, 8))
    found = adapt.resample_channels(kernel, channels)
    assert found.shape == (4, 4, channels, 8) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=2), kernel.sum(axis=2), atol=1e-5)


def test_one_channel_is_the_sum_of_three():
    kernel = golden_weights.draw("kernel", (2, 2, 3, 5))
    np.testing.assert_allclose(
        adapt.resample_channels(kernel, 1)[:, :, 0], kernel.sum(axis=2), atol=1e-6
    )
    np.testing.assert_allclose(adapt.resample_channels(kernel, 3), kernel, atol=1e-6)


@pytest.mark.parametrize(
    "variant, settings, path",
    [
        ("debug", {}, "patch_embedding/kernel"),
        ("R+Ti/16", {"image_size": 64, "num_layers": 1}, "stem/conv_root/kernel"),
        ("R50x1", {"depths": (1, 1), "width_factor": 0.5, "image_size": 64}, "conv_root/kernel"),
    ],
)
def test_channels_are_resampled_where_pixels_enter(variant, settings, path):
    config = models.get_config(variant, **settings)
    params = random_params(config)
    adapted, notes = adapt.adapt(config, params, adapt.retarget(config, channels=1))
    assert notes == [f"{path}: 3 input channels -> 1, equal on grey"]
    changed = [name for name in params if not np.array_equal(params[name], adapted[name])]
    assert changed == [path]
