"""The Python API: saving and loading, adapting on the way, and one clear line for what is wrong."""

import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import vit_jax
from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.interop import convert, export, huggingface, load, timm
from vit_jax.models import adapt, saved as native
from vit_jax.models.saved import read_safetensors


@pytest.fixture(scope="module")
def model():
    made = vit_jax.create_model(
        "debug", num_classes=3, labels=("a", "b", "c"),
        preprocessing=(("name", "resize_center_crop"), ("resize", 40)),
    )  # fmt: skip
    params = models.get_params(made)
    params["head/kernel"] = jax.random.normal(jax.random.key(0), params["head/kernel"].shape)
    return models.set_params(made, params)


@pytest.fixture
def saved(model, tmp_path):
    vit_jax.save_model(model, tmp_path / "model")
    return tmp_path / "model"


def test_arguments_of_another_kind_are_refused(model, saved, monkeypatch):
    seeds = [{"seed": seed} for seed in ("x", 1.5, 10**30)]
    for wrong in (*seeds, {"dtype": "int8"}, {"dtype": jnp.bfloat16}):
        with pytest.raises(UserError, match=rf"{min(wrong)}=.* must be"):
            vit_jax.create_model("debug", **wrong)
    for make in (vit_jax.create_model, vit_jax.load_model):  # XLA would abort, or take 242 TiB
        with pytest.raises(UserError, match=r"65,\d+,\d+,\d+,\d+ parameters, 242,\d+ GiB, and the"):
            make("debug" if make is vit_jax.create_model else saved, num_classes=10**12)
    with pytest.raises(UserError, match="There is no checkpoint at ''"):
        vit_jax.load_model("")
    for wrong in ((3, saved), (model.config, saved), (model, ""), (model, None)):
        with pytest.raises(UserError, match=r"save_model (takes a model|needs a directory)"):
            vit_jax.save_model(*wrong)
    monkeypatch.setenv("HOME", str(saved))
    vit_jax.save_model(model, "~/again")
    assert vit_jax.load_model("~/again").config == vit_jax.load_model(saved / "again").config


@pytest.mark.parametrize("where", ["model", "."])
def test_save_and_load_keeps_everything(model, saved, where):
    """An exported directory, and a workdir that holds one."""
    again = vit_jax.load_model(saved.parent / where)
    assert again.config == model.config
    assert again.labels == ("a", "b", "c")
    assert again.preprocessing == {"name": "resize_center_crop", "resize": 40}
    x = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    np.testing.assert_array_equal(again(x), model(x))
    vit_jax.save_model(again, saved.parent / "copy")
    for name in ("model.safetensors", "config.json"):
        assert (saved / name).read_bytes() == (saved.parent / "copy" / name).read_bytes()
        with pytest.raises(UserError, match=r"copy/.* exists and would be overwritten"):
            vit_jax.save_model(again, saved.parent / "copy")
        (saved.parent / "copy" / name).unlink()  # the other one alone is not overwritten either
    vit_jax.save_model(again, saved.parent / "copy")


def test_changed_settings_keep_the_record_of_the_run(saved, model):
    """By it a run that ended early counts as finished."""
    run = {"step": 4, "last_step": 9}
    native.save(saved, model.config, models.get_params(model), run)
    file = load.replace_settings(str(saved), {"temperature": 2.0})
    assert json.loads(file.read_text())["run"] == run
    assert vit_jax.load_model(saved).config == models.override(model.config, temperature=2.0)


def test_another_resolution_and_other_classes(saved, capsys):
    other = vit_jax.load_model(saved, image_size=(48, 32), num_classes=7)
    assert other.image_size == (48, 32) and other.labels == ()
    assert other(jnp.zeros((1, 48, 32, 3))).shape == (1, 7)
    out = capsys.readouterr().out
    assert "adapted head: 3 classes -> 7" in out and "grid (4, 4) -> (6, 4)" in out


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        native.write_safetensors(tmp_path / "w.safetensors", {"a": np.zeros(2)})
        files.write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


def test_resnets_too(tmp_path):
    tiny = vit_jax.create_model(
        "R50x1", depths=(1, 1, 1, 1), width_factor=0.5, num_classes=2, image_size=64
    )
    vit_jax.save_model(tiny, tmp_path)
    again = vit_jax.load_model(tmp_path)
    assert again.config == tiny.config and again.num_params == tiny.num_params


def corrupt_weights(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])


def of_bytes(directory):
    file = directory / "model.safetensors"
    save_file({k: v.astype(np.int8) for k, v in read_safetensors(file).items()}, file)


def remove_weights(directory):
    (directory / "model.safetensors").unlink()


def change(**values):
    def apply(directory):
        file = directory / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return apply


def drop(key):
    def apply(directory):
        file = directory / "config.json"
        values = json.loads(file.read_text())
        del values[key]
        file.write_text(json.dumps(values))

    return apply


@pytest.mark.parametrize(
    "damage, message",
    [
        (corrupt_weights, r"model\.safetensors is damaged"),
        (remove_weights, r"model\.safetensors does not exist; the export did not finish"),
        (change(num_layers=3), r"16 missing|12 missing \(blocks/2/"),
        (change(num_layers=1), r"unexpected \(blocks/1/"),
        (change(mlp_dim=64), r"has shape .* but debug needs"),
        (change(hiden=1), "unknown setting 'hiden'"),
        (change(preprocessing=[["name", "resise"]]), r"model: .*name='resise' does not exist"),
        (change(preprocessing=[["name", "resize"], ["size", 3]]), "resize does not read"),
        (change(preprocessing=3), "a value in it has an unexpected type"),
        (of_bytes, "has the dtype I8; convert it"),
        (change(family="cnn"), "family 'cnn' is not one of vit, axial, resnet"),
        (drop("mlp_dim"), "the setting 'mlp_dim' is missing"),
    ],
)
def test_damaged_directories(saved, damage, message):
    damage(saved)
    with pytest.raises(UserError, match=message) as error:
        vit_jax.load_model(saved)
    assert "\n" not in str(error.value)


def test_paths_that_are_not_checkpoints_are_refused(saved, tmp_path):
    with pytest.raises(UserError, match="There is no checkpoint at"):
        vit_jax.load_model(tmp_path / "nothing")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="has not saved a checkpoint yet"):
        vit_jax.load_model(tmp_path / "run")
    with pytest.raises(UserError, match=r"There is no checkpoint at .* Did you mean 'run'\? Give"):
        vit_jax.load_model(tmp_path / "rnu")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    (tmp_path / "run" / "photo.jpg").write_text("")
    with pytest.raises(UserError, match=r"is not a checkpoint: .* it has photo\.jpg"):
        vit_jax.load_model(tmp_path / "run")
    (tmp_path / "run" / "a").mkdir()
    (tmp_path / "run" / "a" / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match=r"It contains runs: name one, such as .*/run/a\."):
        vit_jax.load_model(tmp_path / "run")
    (tmp_path / "w.pt").write_text("")
    with pytest.raises(UserError, match=r"w\.pt is not a checkpoint"):
        vit_jax.load_model(tmp_path / "w.pt")
    for name in ("m.onnx", "served/facts.json", "repository/m/1/model.xml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for name in ("m.onnx", "served", "repository/m/1/model.xml"):
        with pytest.raises(UserError, match=rf"{name} is an export: .*the checkpoint it was made"):
            vit_jax.load_model(tmp_path / name)
    with pytest.raises(
        UserError, match=r"m is the model of a server; its file is .*m/1/model\.xml"
    ):
        vit_jax.load_model(tmp_path / "repository" / "m")
    with pytest.raises(UserError, match="holds a debug, not a B/16"):
        vit_jax.load_model(saved, variant="B/16")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2", "F4", "F8_E8M0"])
def test_float8_weights_are_named(tmp_path, dtype):
    """It was once said that the file is damaged."""
    header = json.dumps(
        {"a.weight": {"dtype": dtype, "shape": [2], "data_offsets": [0, 2]}}
    ).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(UserError, match=f"a.weight has the dtype {dtype}, not supported"):
        load.read(file)


TRAVELLING = [
    (("name", "resize"), ("orient", True)),
    (("name", "resize"), ("orient", False)),
    (("name", "resize_center_crop"), ("orient", True), ("resize", 40)),
    (("name", "square_center_crop"), ("orient", True)),
    (("interpolation", "bicubic"), ("name", "pillow"), ("orient", True), ("resize", (36, 36))),
]


@pytest.mark.parametrize("preprocessing", TRAVELLING)
@pytest.mark.parametrize("form", [huggingface, timm])
def test_preprocessing_travels_with_the_model(tmp_path, form, preprocessing):
    """Whole; but what is edited there afterwards counts."""
    config = models.get_config("debug", patch_size=16, num_classes=3, preprocessing=preprocessing)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    form.save(tmp_path, config, params)
    assert load.read(tmp_path)[0].preprocessing == preprocessing
    file = tmp_path / ("config.json" if form is timm else "preprocessor_config.json")
    values = json.loads(file.read_text())
    if form is timm:
        values["pretrained_cfg"]["interpolation"] = "lanczos"
    else:
        values["resample"] = 1
    file.write_text(json.dumps(values))
    found = dict(load.read(tmp_path)[0].preprocessing)
    assert (found["name"], found["interpolation"]) == ("pillow", "lanczos")


@pytest.fixture
def zero_head(tmp_path):
    """A fresh model, whose classifier is all zeros."""
    config = models.get_config("debug", num_classes=3)
    params = jax.device_get(jax.jit(models.as_functions(config)[0])(jax.random.key(0)))
    assert not params["head/kernel"].any()
    native.save(tmp_path / "fresh", config, params)
    return tmp_path / "fresh", config, params


def test_a_proof_fails_where_only_the_classifier_is_equal(zero_head, tmp_path, monkeypatch):
    """The equal zeros of a zero classifier would hide anything before it."""
    source, _, _ = zero_head
    proof = convert.convert(str(source), tmp_path / "good", "native")
    assert proof.random_head and proof.scale > 0.1 and proof.same_top1 == 1 and proof.images == 8

    def broken(directory, config, params):
        wrong = {"blocks/1/mlp/dense2/kernel": -params["blocks/1/mlp/dense2/kernel"]}
        native.save(directory, config, dict(params) | wrong)

    form = convert.FORMATS["native"]._replace(save=broken)
    monkeypatch.setitem(convert.FORMATS, "native", form)
    with pytest.raises(UserError, match="refused: logits differ"):
        convert.convert(str(source), tmp_path / "bad", "native")
    assert not (tmp_path / "bad").exists()


def test_a_constant_output_is_never_called_equal(zero_head, tmp_path):
    """Weights that give every photograph the same answer prove nothing."""
    _, config, params = zero_head
    zeros = {path: np.zeros_like(value) for path, value in params.items()}
    zeros["head/bias"] = np.arange(3, dtype=np.float32)
    native.save(tmp_path / "dead", config, zeros)
    with pytest.raises(UserError, match="All photographs get the same logits"):
        convert.convert(str(tmp_path / "dead"), tmp_path / "out", "native")
    assert not (tmp_path / "out").exists()


def test_an_export_of_a_fresh_model_is_proved_by_a_random_classifier(zero_head, tmp_path):
    """What is written is the model's own, with its preprocessing."""
    source, _, _ = zero_head
    proof = export.export(str(source), tmp_path / "out", "stablehlo", batch_size=3)
    assert proof.random_head and proof.scale > 0.1 and proof.difference < 1e-5 * proof.scale
    weights = read_safetensors(tmp_path / "out" / "weights.safetensors")
    assert not weights["head/kernel"].any()


def test_another_image_size_is_cropped_in_proportion():
    """What is resized before the crop follows the size, instead of being padded."""
    preprocessing = (("name", "pillow"), ("resize", (36, 40)))
    config = models.get_config("debug", preprocessing=preprocessing)
    found = adapt.retarget(config, image_size=(64, 48))
    assert found.preprocessing == (("name", "pillow"), ("resize", (72, 60)))
    assert adapt.retarget(config, num_classes=2).preprocessing == preprocessing


@pytest.mark.parametrize("table, labels, said", [
    ({"0": "a", "1": "b", "2": "c"}, ("a", "b", "c"), ""),
    (["a", "b", "c"], ("a", "b", "c"), ""),
    ({"2": "c", "0": "a", "1": "b"}, ("a", "b", "c"), ""),
    ({"0": "a", "1": "b"}, (), "names 2 classes but the weights have 3"),
    ({"1": "a", "2": "b", "3": "c"}, (), "id2label has 3 names but none for '0'"),
    ({"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}, (), ""),
])  # fmt: skip
def test_names_of_classes_in_hugging_faces_ways(model, tmp_path, capsys, table, labels, said):
    """What cannot be names of the classes is left out, and that is said."""
    huggingface.save(tmp_path, model.config, jax.device_get(models.get_params(model)))
    change(id2label=table)(tmp_path)
    capsys.readouterr()
    assert vit_jax.load_model(tmp_path).labels == labels
    printed = capsys.readouterr().out
    assert said in printed and bool(said) == bool(printed)


def test_names_of_classes_in_timms_ways(model, tmp_path, capsys):
    timm.save(tmp_path, model.config, jax.device_get(models.get_params(model)))
    change(label_names=["a", "b"])(tmp_path)
    capsys.readouterr()
    assert vit_jax.load_model(tmp_path).labels == ()
    assert "names 2 classes but the weights have 3" in capsys.readouterr().out
