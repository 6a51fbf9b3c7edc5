"""ONNX files of every kind of model, run by ONNX Runtime."""

import json
import os
import sys

import numpy as np
import PIL.Image
import pytest

from vit_jax import models
from vit_jax.cli import main
from vit_jax.errors import UsageError, UserError
from vit_jax.interop import export, load, onnx_files, peers, runtimes
from vit_jax.models import saved

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SMALL = dict(num_layers=2, num_classes=7, image_size=32, patch_size=8, hidden_size=32, mlp_dim=48)
RESNET = dict(depths=(1, 2), num_classes=7)
MODELS = {
    "token": ("debug", SMALL | dict(image_size=(16, 32))),
    "no positions": ("debug", SMALL | dict(position_embedding="none", activation="relu")),
    "2-D, every": ("debug", SMALL | dict(position_embedding="2d", position_embedding_at="every")),
    "2-D, shared, gap": (
        "debug",
        SMALL | dict(position_embedding="2d", position_embedding_at="shared", classifier="gap"),
    ),
    "map": ("debug", SMALL | dict(classifier="map", activation="gelu")),
    "relative": ("debug", SMALL | dict(position_embedding="relative", representation_size=5)),
    "relative, gap": (
        "debug",
        SMALL | dict(position_embedding="relative", classifier="gap", activation="silu"),
    ),
    "quick": ("debug", SMALL | dict(activation="quick_gelu", num_layers=1)),
    "axial": (
        "Axial-B/16",
        SMALL | dict(num_heads=4, patch_size=16, image_size=(64, 32), num_layers=1),
    ),
    "root": ("R+Ti/16", dict(num_layers=1, num_classes=7, image_size=(64, 32))),
    "hybrid": ("R50+B/16", dict(num_layers=1, num_classes=7, image_size=64, stem_depths=(1, 2))),
    "BiT": ("R50x1", RESNET | dict(image_size=(65, 80))),
    "BiT, lowest": ("R50x1", RESNET | dict(image_size=64, pool_padding="lowest")),
    "axial BiT": ("Axial-R50x1", RESNET | dict(image_size=(48, 64))),
}


def random_model(variant, settings):
    """Weights that leave no part of the model without effect: its own initial ones are often 0."""
    config = models.get_config(variant, **settings)
    rng = np.random.default_rng(0)

    def draw(path, shape):
        values = rng.normal(size=shape).astype(np.float32)
        if path.endswith("scale"):
            return 1 + 0.1 * values
        inputs = np.prod(shape[:-1]) if "conv" in path else shape[0]
        return values * (inputs**-0.5 if path.endswith("kernel") else 0.1)

    shapes = models.abstract_params(config)
    return config, {path: draw(path, leaf.shape) for path, leaf in shapes.items()}


def saved_random(directory, variant="debug", settings=SMALL):
    config, params = random_model(variant, settings)
    saved.save(directory, config, params)
    return str(directory)


def images_for(config, count=3):
    shape = (count, *config.image_size, 3)
    return np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)


@pytest.mark.parametrize("name", MODELS)
def test_onnx_outputs_equal_the_models(tmp_path, name):
    """Any batch, logits and features; of operations that are one or several in an opset."""
    config, params = random_model(*MODELS[name])
    images = images_for(config)
    wanted = peers.outputs(config, params, images)
    assert np.ptp(wanted.logits, axis=0).min() > 1e-3  # the images are told apart
    for opset in (17, 20):
        file = tmp_path / f"{opset}.onnx"
        onnx_files.save(file, config, params, {}, opset=opset, features=True)
        answer, _ = onnx_files.open_file(file)
        found = answer.run(images)
        features = found.pre_logits
        if getattr(config, "representation_size", None):
            features = np.tanh(features)
        for a, b in ((wanted.logits, found.logits), (wanted.pre_logits, features)):
            np.testing.assert_allclose(b, a, rtol=0, atol=2e-5 * np.abs(a).max())
        np.testing.assert_allclose(answer.run(images[:1]).logits, found.logits[:1], atol=1e-5)


def test_the_graph_is_small_and_its_names_say_what_they_are(tmp_path):
    config, params = random_model("debug", SMALL)
    counts = {}
    for opset in (17, 20):
        onnx_files.save(tmp_path / "m.onnx", config, params, {"a": [1]}, opset=opset)
        graph = onnx.load(tmp_path / "m.onnx").graph
        counts[opset] = len(graph.node)
        names = {node.name for node in graph.node}
        assert {"blocks/0/mlp/dense1/gemm", "blocks/1/attention/q/gemm", "head/gemm"} <= names
        weights = {weight.name for weight in graph.initializer}
        assert {"patch_embedding/kernel", "encoder_norm/scale", "head/bias"} <= weights
        assert [value.name for value in graph.input] == ["images"]
        assert [value.name for value in graph.output] == ["logits"]
    assert counts[20] < counts[17] < 40 * config.num_layers
    model = onnx.load(tmp_path / "m.onnx")
    assert model.ir_version <= 10  # what ONNX Runtime 1.20 reads
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts.pop("checksum") and facts == {"a": "[1]"}


def test_pixels_half_precision_and_eight_bits(tmp_path, capsys):
    source = saved_random(tmp_path / "model")
    config, params = saved.load(source)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    images = pixels.astype(np.float32) / 127.5 - 1
    wanted = peers.outputs(config, params, images).logits
    sizes, differences = {}, {}
    for name, flags in {
        "plain": [],
        "uint8": ["--uint8"],
        "float16": ["--dtype=float16"],
        "int8": ["--int8", "--calibration=digits[train[:16]]"],
    }.items():
        file = tmp_path / f"{name}.onnx"
        given = [f"--checkpoint={source}", "--format=onnx", f"--out={file}", *flags]
        assert main(["export", *given]) == 0
        said = capsys.readouterr().out
        assert "operations of opset 17" in said and "run by onnxruntime" in said
        found = export.open_exported(file).run(images).logits
        assert found.dtype == np.float32
        differences[name] = np.abs(found - wanted).max() / np.abs(wanted).max()
        sizes[name] = file.stat().st_size
    assert differences["plain"] < 1e-5 and differences["uint8"] < 1e-5
    assert 1e-5 < differences["float16"] < 1e-2 < 0.1 + differences["int8"]
    assert 1e-4 < differences["int8"] < 0.2
    assert sizes["float16"] < 0.6 * sizes["plain"]
    given = onnx.load(tmp_path / "uint8.onnx").graph.input[0].type.tensor_type.elem_type
    assert given == onnx.TensorProto.UINT8


def test_eight_bits_of_a_fixed_batch(tmp_path):
    """Which divides neither the images that scale the activations nor those of the proof."""
    source = saved_random(tmp_path / "model")
    proof = export.export(source, tmp_path / "m.onnx", "onnx", int8=True, batch_size=3)
    assert 1e-4 * proof.scale < proof.difference < 0.2 * proof.scale
    given = onnx.load(tmp_path / "m.onnx").graph.input[0].type.tensor_type.shape.dim[0]
    assert given.dim_value == 3


def test_a_file_that_takes_images_of_another_size_than_it_says(tmp_path):
    config, params = random_model("debug", SMALL)
    facts = export.facts(config) | {"image_size": [16, 16]}
    onnx_files.save(tmp_path / "m.onnx", config, params, facts)
    with pytest.raises(UserError, match=r"m\.onnx does not accept images of 16x16 with 3 ch"):
        export.open_exported(tmp_path / "m.onnx")


def test_weights_that_are_too_large_for_one_file_lie_beside_it(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_files, "LARGEST", 1000)
    source = saved_random(tmp_path / "model")
    export.export(source, tmp_path / "m.onnx", "onnx")
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"model", "m.onnx", "m.onnx.data"}
    config, params = saved.load(source)
    images = images_for(config)
    found = export.open_exported(tmp_path / "m.onnx").run(images).logits
    np.testing.assert_allclose(found, peers.outputs(config, params, images).logits, atol=1e-5)
    (tmp_path / "m.onnx.data").rename(tmp_path / "aside")
    with pytest.raises(UserError, match=r"m\.onnx\.data, with the weights of m\.onnx, is missing"):
        export.open_exported(tmp_path / "m.onnx")
    (tmp_path / "aside").rename(tmp_path / "m.onnx.data")
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(UserError, match=r"m\.onnx\.data exists and would be overwritten"):
        export.export(source, tmp_path / "m.onnx", "onnx")


@pytest.mark.parametrize("form, name", [("onnx", "m.onnx"), ("stablehlo", "m")])
def test_an_export_with_one_array_changed_by_a_percent_is_refused(
    tmp_path, monkeypatch, form, name
):
    source = saved_random(tmp_path / "model")
    save, *rest = export.FORMATS[form]

    def damaged(target, config, params, asked):
        params = dict(params)
        params["blocks/1/mlp/dense2/kernel"] = params["blocks/1/mlp/dense2/kernel"] * 1.01
        return save(target, config, params, asked)

    monkeypatch.setitem(export.FORMATS, form, (damaged, *rest))
    with pytest.raises(UserError, match=r"refused: logits differ .* Nothing was written"):
        export.export(source, tmp_path / name, form)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_features_are_evaluated_like_those_of_the_checkpoint(tmp_path):
    settings = SMALL | dict(image_size=16, patch_size=4, num_classes=10, representation_size=12)
    source = saved_random(tmp_path / "model", "debug", settings)
    options = ["--suite=fewshot", "--data=digits", "--shots=5", "--seeds=1", "--batch_size=256"]

    def evaluated(checkpoint, out):
        given = [f"--checkpoint={checkpoint}", f"--out={tmp_path / out}", *options]
        assert main(["evaluate", *given]) == 0
        found = json.loads((tmp_path / out / "evaluation.json").read_text())["fewshot"]
        return found["results"][0]["accuracy"]

    wanted = evaluated(source, "a")
    assert 0.15 < wanted < 0.95  # neither chance nor all
    for form, name in (("onnx", "m.onnx"), ("stablehlo", "m")):
        export.export(source, tmp_path / name, form, features=True)
        assert evaluated(tmp_path / name, f"of_{form}") == pytest.approx(wanted, abs=0.006)


def test_predict_and_features_of_a_file(tmp_path, capsys):
    photo, labels = tmp_path / "a.png", ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
    pixels = np.random.default_rng(0).integers(0, 255, (40, 30, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(photo)
    config, params = random_model("debug", SMALL | dict(labels=labels))
    saved.save(tmp_path / "model", config, params)
    export.export(str(tmp_path / "model"), tmp_path / "m.onnx", "onnx", features=True)
    export.export(str(tmp_path / "model"), tmp_path / "n.onnx", "onnx")

    def said(name, *words):
        status = main([words[0], f"--checkpoint={tmp_path / name}", *map(str, words[1:])])
        out = capsys.readouterr()
        return out.out if status == 0 else out.err

    wanted, found = (json.loads(said(n, "predict", "--json", photo)) for n in ("model", "m.onnx"))
    for a, b in zip(wanted["predictions"], found["predictions"], strict=True):
        assert a["class"] == b["class"] in labels
        assert a["probability"] == pytest.approx(b["probability"], rel=1e-4)
    rows = {}
    for name in ("model", "m.onnx"):
        out = tmp_path / f"{name}.npy"
        said(name, "features", "--data=digits[test[:9]]", f"--out={out}")
        rows[name] = np.load(out)
    assert rows["model"].shape == (9, 32)
    np.testing.assert_allclose(rows["m.onnx"], rows["model"], atol=1e-4)
    given = ("features", "--data=digits[test[:9]]", f"--out={tmp_path / 'no.npy'}")
    assert "returns logits, not 'pre_logits'; `vit-jax export --features`" in said("n.onnx", *given)
    assert "returns logits and pre_logits, not 'block_1'" in said(
        "m.onnx", *given, "--layer=block_1"
    )
    assert "--pool=mean is for tokens" in said("m.onnx", *given, "--pool=mean")
    assert not (tmp_path / "no.npy").exists()


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--format=onnx", "--opset=13"], "--opset=13 must be from 17, which brought LayerNorm"),
        (["--format=onnx", "--opset=99"], "--opset=99 must be from 17"),
        (["--format=onnx", "--dtype=bfloat16"], "--dtype=bfloat16 does not exist in ONNX"),
        (["--format=stablehlo", "--dtype=float16"], "--dtype is for --format=onnx"),
        (["--format=stablehlo", "--uint8"], "--uint8 is for --format=onnx"),
        (["--format=savedmodel", "--int8"], "--int8 is for --format=stablehlo or onnx or openvino"),
        (["--format=onnx", "--calibration=digits"], "--calibration is for --int8"),
        (["--format=onnx", "--int8", "--dtype=float16"], "exclude each other"),
        (["--format=onnxx"], "Did you mean 'onnx'?"),
    ],
)
def test_invalid_options_are_refused_and_nothing_is_written(tmp_path, capsys, flags, said):
    source = saved_random(tmp_path / "model")
    given = [f"--checkpoint={source}", f"--out={tmp_path / 'out.onnx'}", *flags]
    assert main(["export", *given]) == 1
    assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_weights_beyond_half_precision_and_models_without_an_encoder(tmp_path):
    config, params = random_model("debug", SMALL)
    params["blocks/0/mlp/dense1/bias"][0] = 1e5
    with pytest.raises(UserError, match=r"blocks/0/mlp/dense1/bias exceeds the range of float16"):
        onnx_files.save(tmp_path / "m.onnx", config, params, {}, dtype="float16")
    source = saved_random(tmp_path / "bit", *MODELS["BiT"])
    with pytest.raises(UserError, match="--int8 is for Vision Transformers"):
        export.export(source, tmp_path / "m.onnx", "onnx", int8=True)


def test_openvino(tmp_path):
    """Its IR answers as the model does, and says how images are prepared; ONNX files run in it."""
    pytest.importorskip("openvino")
    from vit_jax.interop import openvino_files

    source = saved_random(tmp_path / "model")
    proof = export.export(source, tmp_path / "m.xml", "openvino", features=True, uint8=True)
    assert proof.runtime.startswith("openvino 20") and proof.difference < 1e-4 * proof.scale
    assert {path.name for path in tmp_path.iterdir()} == {"model", "m.xml", "m.bin"}
    config, params = saved.load(source)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 32, 32, 3), np.uint8)
    images = pixels.astype(np.float32) / 127.5 - 1
    found, wanted = export.open_exported(tmp_path / "m.xml"), peers.outputs(config, params, images)
    assert found.image_size == (32, 32) and found.preprocessing
    np.testing.assert_allclose(found.run(images).logits, wanted.logits, atol=1e-4)
    np.testing.assert_allclose(found.run(images).pre_logits, wanted.pre_logits, atol=1e-4)
    export.export(source, tmp_path / "m.onnx", "onnx", batch_size=2)
    answer, _ = openvino_files.open_file(tmp_path / "m.onnx")
    assert answer.size == 2
    run = export.of_any_number(answer)
    np.testing.assert_allclose(run(images).logits, wanted.logits, atol=1e-4)
    for name, close in (("onnxruntime", 1e-4), ("openvino", 1e-4), ("openvino-bfloat16", 0.05)):
        logits = export.open_exported(tmp_path / "m.onnx", name).run(images).logits
        difference = np.abs(logits - wanted.logits).max() / np.abs(wanted.logits).max()
        assert difference < close, name
    for file, name in ((tmp_path / "m.xml", "onnxruntime"), (source, "openvino")):
        with pytest.raises(UsageError, match=f"--runtime={name} is for .*`vit-jax export`"):
            export.open_exported(file, name)
    whole = (tmp_path / "m.onnx").read_bytes()
    (tmp_path / "m.onnx").write_bytes(whole[:-9] + b"\0" + whole[-8:])
    with pytest.raises(UserError, match=r"m\.onnx is damaged: its checksum does not match"):
        export.open_exported(tmp_path / "m.onnx", "openvino")
    with pytest.raises(UserError, match=r"m\.xml exists and would be overwritten"):
        export.export(source, tmp_path / "m.xml", "openvino")
    (tmp_path / "m.bin").write_bytes(b"")
    with pytest.raises(UserError, match=r"m\.xml is damaged: its checksum does not match"):
        export.open_exported(tmp_path / "m.xml")
    with pytest.raises(UserError, match=r"out must end in \.xml for --format=openvino"):
        export.export(source, tmp_path / "out", "openvino")


def test_files_that_are_no_exports_are_refused_before_a_runtime_sees_them(tmp_path, capfd):
    """OpenVINO tries all of its formats on a file, and prints what each thinks of it."""
    pytest.importorskip("openvino")
    (tmp_path / "folder.onnx").mkdir()
    os.mkfifo(tmp_path / "fifo.xml")
    (tmp_path / "part.onnx").write_bytes(b"\x08\x07\x12\x09")
    (tmp_path / "page.xml").write_text("<html></html>")
    for name, said in (
        ("folder.onnx", "folder.onnx is not a regular file"),
        ("fifo.xml", "fifo.xml is not a regular file"),
        ("part.onnx", "part.onnx is no ONNX file"),
        ("page.xml", "page.xml has no preprocessing; only exports by `vit-jax export`"),
    ):
        with pytest.raises(UserError, match=said):
            export.open_exported(tmp_path / name, "openvino")
    assert capfd.readouterr() == ("", "")
    (tmp_path / "M.ONNX").touch()
    with pytest.raises(UserError, match=r"exports \(\.onnx, \.xml\)"):
        load.read(tmp_path / "M.ONNX")
    assert set(load.EXPORTS) == runtimes.SUFFIXES


def test_openvino_is_imported_without_its_telemetry(tmp_path, monkeypatch):
    """It would fork this process, with JAX's threads, to report the import over the network."""
    from vit_jax.interop import openvino_files

    (tmp_path / "openvino.py").write_text(
        "try:\n    import openvino_telemetry\nexcept ImportError:\n    silent = True\n"
    )
    (tmp_path / "openvino_telemetry.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("openvino", "openvino_telemetry"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert openvino_files.import_openvino().silent
    import openvino_telemetry  # for who wants it

    monkeypatch.delitem(sys.modules, "openvino_telemetry")
    monkeypatch.delitem(sys.modules, "openvino")
    assert openvino_telemetry.__file__ == str(tmp_path / "openvino_telemetry.py")
