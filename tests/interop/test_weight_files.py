"""Foreign weights: whole or in shards, safetensors or torch's; and what is wrong with them."""

import functools
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop import huggingface, load, timm, weight_files

FORMS = pytest.mark.parametrize("form", [huggingface, timm])


@functools.cache
def small():
    config = models.get_config("debug", patch_size=16, image_size=32, num_classes=3)
    return config, jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))


@pytest.fixture
def whole(form, tmp_path):
    """(directory with a config.json alone, the arrays that belong there)."""
    form.save(tmp_path, *small())
    arrays = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    return tmp_path, arrays


def sharded(directory, arrays, write=save_file, name="model.safetensors"):
    """Writes two shards as `save_pretrained` does; returns {array: shard}."""
    stem, _, end = name.partition(".")
    table = {key: f"{stem}-{i % 2 + 1:05}-of-00002.{end}" for i, key in enumerate(sorted(arrays))}
    for shard in set(table.values()):
        write({key: arrays[key] for key in arrays if table[key] == shard}, directory / shard)
    index = {"metadata": {"total_size": 0}, "weight_map": table}
    (directory / f"{name}.index.json").write_text(json.dumps(index))
    return table


def equal(found, wanted):
    return found.keys() == wanted.keys() and all(
        np.array_equal(found[key], wanted[key]) for key in wanted
    )


def change_index(directory, **changes):
    """Lets the index say another shard of some arrays."""
    file = next(directory.glob("*.index.json"))
    values = json.loads(file.read_text())
    values["weight_map"] |= changes
    file.write_text(json.dumps(values))


@FORMS
def test_shards_are_read_by_their_index(whole):
    directory, arrays = whole
    with pytest.raises(UserError, match=r"no model.safetensors and no index of shards"):
        load.read(directory)
    sharded(directory, arrays)
    assert equal(load.read(directory)[1], small()[1])


@pytest.mark.parametrize("form", [timm])
@pytest.mark.parametrize(
    "elsewhere", ["../x.safetensors", "/x.safetensors", "a/x", "..", "", "a\\b"]
)
def test_a_shard_elsewhere_is_refused(whole, elsewhere):
    directory, arrays = whole
    sharded(directory, arrays)
    save_file(arrays, directory.parent / "x.safetensors")
    change_index(directory, **{min(arrays): elsewhere})
    with pytest.raises(UserError, match=r"is not a file beside it|is missing, but"):
        load.read(directory)


@FORMS
@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.module.", "model."])
def test_names_of_wrappers_are_left_out_and_said(whole, wrapper, capsys):
    directory, arrays = whole
    wrapped = {wrapper + name: array for name, array in arrays.items()}
    save_file(wrapped, directory / "model.safetensors")
    assert equal(load.read(directory)[1], small()[1])
    assert "all names begin with" in capsys.readouterr().out


@FORMS
def test_weights_that_are_not_finite_are_refused(whole):
    directory, arrays = whole
    name = max(arrays, key=lambda name: arrays[name].size)
    for value in (np.nan, -np.inf):
        changed = arrays[name].copy()
        changed.flat[5] = value
        save_file({**arrays, name: changed}, directory / "model.safetensors")
        with pytest.raises(UserError, match=r"kernel has values that are not finite"):
            load.read(directory)
    assert load.load_model(directory, verify=False) is not None


@FORMS
def test_weights_that_are_no_floats_or_lie_otherwise_are_refused(whole):
    directory, arrays = whole
    name = next(key for key, value in arrays.items() if value.shape in ((192, 64), (64, 3, 16, 16)))
    for changed, message in (
        (arrays[name].astype(np.int8), f"{name} has the dtype int8; convert the weights"),
        (np.ascontiguousarray(arrays[name].T), f"{name} has shape .* but .* needs"),
    ):
        save_file({**arrays, name: changed}, directory / "model.safetensors")
        with pytest.raises(UserError, match=message):
            load.read(directory)
    save_file({**arrays, name: arrays[name].reshape(-1)}, directory / "model.safetensors")
    assert equal(load.read(directory)[1], small()[1])  # in the same order: nothing to mistake


@FORMS
def test_weights_missing_from_shards_are_named(whole):
    directory, arrays = whole
    table = sharded(directory, arrays)
    first = min(arrays)
    change_index(directory, absent=table[first])
    with pytest.raises(UserError, match=f"{table[first]} lacks absent, which model.safetensors"):
        load.read(directory)
    (directory / table[first]).unlink()
    with pytest.raises(UserError, match=f"{table[first]} is missing, but model.safetensors.index"):
        load.read(directory)
    for text in ('{"metadata": {}}', "[]", '{"weight_map": []}'):
        (directory / "model.safetensors.index.json").write_text(text)
        with pytest.raises(UserError, match="no weight_map"):
            load.read(directory)


@FORMS
def test_an_array_in_two_shards_is_refused(whole):
    directory, arrays = whole
    table = sharded(directory, arrays)
    first = min(arrays)
    other = next(shard for shard in table.values() if shard != table[first])
    held = load_file(directory / other)
    save_file(held | {first: arrays[first] + 1}, directory / other)
    with pytest.raises(UserError, match=f"has {first} twice, in {table[first]} and in {other}"):
        load.read(directory)


@FORMS
def test_weights_that_no_index_names_are_refused(whole):
    """As in a file without an index: arrays that no ViT has are no ViT's."""
    directory, arrays = whole
    table = sharded(directory, arrays)
    held = load_file(directory / table[min(arrays)])
    save_file(held | {"adapter.weight": arrays[min(arrays)]}, directory / table[min(arrays)])
    with pytest.raises(UserError, match=r"1 unexpected \(adapter.weight\)"):
        load.read(directory)


@FORMS
@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json"])
def test_without_torch_a_bin_says_what_to_install(whole, monkeypatch, name):
    directory, _ = whole
    monkeypatch.setattr(weight_files, "has_torch", lambda: False)
    (directory / "pytorch_model.bin").write_bytes(b"")
    if name.endswith("json"):
        (directory / name).write_text('{"weight_map": {"a": "shard.bin"}}')
        (directory / "pytorch_model.bin").rename(directory / "shard.bin")
    with pytest.raises(UserError, match=r"\.bin is read by torch.*: pip install torch;") as error:
        load.read(directory)
    assert "\n" not in str(error.value)


@FORMS
@pytest.mark.parametrize("name", ["pytorch_model-00001-of-00002.bin", "tf_model.h5", "model.pth"])
def test_other_formats_are_named(whole, name):
    directory, _ = whole
    (directory / name).write_bytes(b"")
    with pytest.raises(UserError, match=f"has its weights in {name}, which is not supported"):
        load.read(directory)


# --- with torch ----------------------------------------------------------------------------------


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def tensors(torch, arrays):
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@FORMS
def test_a_bin_is_read_by_torch(torch, whole):
    directory, arrays = whole
    torch.save(tensors(torch, arrays), directory / "pytorch_model.bin")
    assert equal(load.read(directory)[1], small()[1])
    halves = {name: tensor.bfloat16() for name, tensor in tensors(torch, arrays).items()}
    torch.save(halves, directory / "pytorch_model.bin")
    rounded = load.read(directory)[1]["encoder_norm/scale"]
    assert rounded.dtype == np.float32 and np.array_equal(rounded, np.ones_like(rounded))


@FORMS
def test_a_bin_in_shards_is_read_by_torch(torch, whole):
    directory, arrays = whole
    sharded(directory, tensors(torch, arrays), torch.save, "pytorch_model.bin")
    assert equal(load.read(directory)[1], small()[1])


class Trap:
    """What runs code when it is unpickled."""

    sprung = False

    def __reduce__(self):
        return setattr, (Trap, "sprung", True)


@pytest.mark.parametrize("form", [huggingface])
def test_a_bin_that_would_run_code_is_refused(torch, whole):
    directory, _ = whole
    torch.save({"a": Trap()}, directory / "pytorch_model.bin")
    with pytest.raises(UserError, match="has more than tensors") as error:
        load.read(directory)
    assert not Trap.sprung and "\n" not in str(error.value)


@pytest.mark.parametrize("form", [huggingface])
@pytest.mark.parametrize(
    "make, message",
    [
        (lambda torch, a: {"model": a}, "has 'model', which is not a tensor"),
        (lambda torch, a: {**a, "epoch": 3}, "has 'epoch', which is not a tensor"),
        (lambda torch, a: list(a.values()), "is not a dict of tensors"),
        (
            lambda torch, a: {"a": torch.eye(3).to_sparse()},
            "a has the dtype .*sparse.*not supported",
        ),
    ],
)
def test_a_bin_of_something_else_is_named(torch, whole, make, message):
    directory, arrays = whole
    torch.save(make(torch, tensors(torch, arrays)), directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=message):
        load.read(directory)


@pytest.mark.parametrize("form", [huggingface])
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_bin_that_broke_off_is_damaged(torch, whole, share):
    directory, arrays = whole
    file = directory / "pytorch_model.bin"
    torch.save(tensors(torch, arrays), file)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UserError, match="damaged") as error:
        load.read(directory)
    assert "\n" not in str(error.value)
