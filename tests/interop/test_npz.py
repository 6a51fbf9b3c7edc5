"""Official `.npz` files: which model they hold, old shapes, and what is refused."""

import io
import zipfile

import golden_weights
import numpy as np
import pytest

from vit_jax import data, models
from vit_jax.errors import UserError
from vit_jax.interop import load, npz

SMALL = dict(image_size=32, patch_size=8, num_layers=2, hidden_size=32, mlp_dim=64, num_heads=2)


def official(variant="debug", **settings):
    config = models.get_config(variant, **{"num_classes": 4, **settings})
    return config, golden_weights.weights(golden_weights.official_shapes(config))


def write(path, weights):
    np.savez(path, **weights)
    return path


@pytest.mark.parametrize(
    "variant, settings",
    [
        ("Ti/16", {"image_size": 64}),
        ("S/32", {"image_size": 64, "num_classes": 7}),
        ("S/16", {"image_size": 32, "representation_size": "hidden"}),
        ("R+Ti/16", {"image_size": 64}),
        ("R26+S/32", {"image_size": 64}),
    ],
)
def test_the_variant_is_found(variant, settings, tmp_path, capsys):
    config, weights = official(variant, **settings)
    found, params = load.read(write(tmp_path / "w.npz", weights))
    assert found == models.replace(config, preprocessing=data.FOREIGN_EVALUATION)
    assert set(params) == set(models.abstract_params(config))
    assert f"{variant} at {config.image_size[0]}x" in capsys.readouterr().out


@pytest.mark.parametrize("variant", ["B/16", "L/32", "H/14", "R50+B/16", "R50+L/32", "R152x4"])
def test_large_variants_are_found_by_shape_alone(variant):
    class Shape:
        def __init__(self, shape):
            self.shape = shape

    config = models.get_config(variant, num_classes=21_843)
    shapes = golden_weights.official_shapes(config)
    found = npz.find_config({name: Shape(shape) for name, shape in shapes.items()}, "x")
    assert found == config


def test_a_model_of_no_variant_is_custom_and_loads():
    config, weights = official(**SMALL)
    found = npz.find_config(weights, "x")
    assert found.variant == "custom" and found.num_heads == 2 and found.image_size == (32, 32)
    assert set(npz.from_official(weights, found)) == set(models.abstract_params(config))


def test_q_k_and_v_are_joined_in_order():
    config, weights = official(**SMALL)
    params = npz.from_official(weights, config)
    for i, part in enumerate(("query", "key", "value")):
        name = f"Transformer/encoderblock_1/{npz.ATTENTION}/{part}"
        np.testing.assert_array_equal(
            params["blocks/1/attention/qkv/kernel"][:, i], weights[f"{name}/kernel"]
        )
        np.testing.assert_array_equal(
            params["blocks/1/attention/qkv/bias"][i], weights[f"{name}/bias"]
        )


@pytest.mark.parametrize("change", ["flat", "four axes"])
def test_old_group_norm_shapes(change):
    config, weights = official("R+Ti/16", image_size=64)
    params = npz.from_official(weights, config)
    for name in list(weights):
        if name.startswith("gn_root/"):
            flat = weights[name].reshape(-1)
            weights[name] = flat if change == "flat" else flat[None, None, None]
    again = npz.from_official(weights, config)
    assert all(np.array_equal(params[path], again[path]) for path in params)


def test_names_of_current_flax(tmp_path):
    """As the original's own code names its parts on it."""
    config, weights = official(**SMALL)
    names = {theirs: today for today, theirs in npz.TODAY.items()}
    today = {
        "/".join(names.get(part, part) for part in name.split("/")): array
        for name, array in weights.items()
    }
    assert set(today) != set(weights)
    found, params = load.read(write(tmp_path / "today.npz", today))
    assert found.num_layers == config.num_layers
    for path, array in npz.from_official(weights, config).items():
        np.testing.assert_array_equal(params[path], array)


def test_numbered_convolutions_of_bit(tmp_path):
    """standardized_conv2d_1, as some BiT files have it."""
    config, weights = official("R50x1", depths=(1, 1), width_factor=0.5, num_classes=3)
    numbered = {
        name.replace("standardized_conv2d/", "standardized_conv2d_1/"): array
        for name, array in weights.items()
    }
    assert set(numbered) != set(weights)
    found, params = load.read(write(tmp_path / "numbered.npz", numbered))
    assert found.depths == (1, 1) and found.pool_padding == "zeros"
    for path, array in npz.from_official(weights, config).items():
        np.testing.assert_array_equal(params[path], array)
    name = next(name for name in weights if "standardized_conv2d/" in name)
    with pytest.raises(UserError, match="under two names"):
        load.read(write(tmp_path / "twice.npz", {**numbered, name: weights[name]}))


def test_names_and_shapes_must_be_those_of_the_model(tmp_path):
    _, weights = official(**SMALL)
    name = "Transformer/encoderblock_1/LayerNorm_0/scale"
    missing = {key: value for key, value in weights.items() if key != name}
    with pytest.raises(UserError, match=f"1 missing \\({name}\\)"):
        load.read(write(tmp_path / "a.npz", missing))
    with pytest.raises(UserError, match=r"1 unexpected \(surplus\)"):
        load.read(write(tmp_path / "b.npz", {**weights, "surplus": np.zeros(3)}))
    renamed = write(tmp_path / "c.npz", {**missing, name[:-1] + "a": weights[name]})
    with pytest.raises(UserError, match=r"1 missing .*1 unexpected .*Did you mean .*scala"):
        load.read(renamed)
    with pytest.raises(UserError, match=rf"{name} has shape \(5,\)"):
        load.read(write(tmp_path / "d.npz", {**weights, name: np.zeros(5)}))


def test_files_that_are_no_checkpoint(tmp_path):
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(UserError, match=r"text\.npz is not a readable \.npz"):
        load.read(tmp_path / "text.npz")
    _, weights = official(**SMALL)
    whole = write(tmp_path / "whole.npz", weights).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut\.npz is not a readable \.npz"):
        load.read(tmp_path / "cut.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(UserError, match="not an official ViT or BiT checkpoint: it has a"):
        load.read(tmp_path / "other.npz")


def test_pickles_are_never_unpickled(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    np.savez(tmp_path / "evil.npz", **{"head/kernel": np.array([Bomb()], object)})
    with pytest.raises(UserError, match="not a readable"):
        load.read(tmp_path / "evil.npz")
    assert not (tmp_path / "exploded").exists()


def test_another_variant_than_asked_for(tmp_path):
    _, weights = official("Ti/16", image_size=64)
    with pytest.raises(UserError, match="holds a Ti/16, not a S/16"):
        load.read(write(tmp_path / "w.npz", weights), variant="S/16")


def claims(shape, data=b""):
    """An .npy file whose header claims `shape` and which holds `data`."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    return file.getvalue() + data


@pytest.mark.parametrize(
    "members, message",
    [
        ({"a.npy": claims((10**6, 10**6))}, r"should be float32 \(1000000, 1000000\) but has 0"),
        ({"a.npy": claims((2,), bytes(4096))}, "has 4,096 bytes"),
        ({"a.npy": b"no array"}, "not a readable"),
    ],
)
def test_false_headers_cost_no_memory(tmp_path, members, message):
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=message):
        load.read(tmp_path / "lie.npz")


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    np.savez_compressed(
        tmp_path / "bomb.npz", **{"head/kernel": np.zeros((3000, 1000), np.float32)}
    )
    with pytest.raises(UserError, match="is not an official ViT or BiT checkpoint"):
        load.read(tmp_path / "bomb.npz")
