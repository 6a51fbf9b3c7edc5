"""Conversions judged by the real other side: transformers, timm, ONNX Runtime, jax.export."""

import json
import sys

import golden_weights
import jax
import numpy as np
import PIL.Image
import pytest
from often import often

from vit_jax import data, models
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.evaluation import forward as forwards, predict
from vit_jax.interop import (
    convert,
    export,
    load,
    npz,
    peers,
)
from vit_jax.models import saved
from vit_jax.runtime import sharding

SMALL = dict(hidden_size=64, num_layers=2, mlp_dim=128, num_heads=2, image_size=64, num_classes=7)
LABELS = ("ant", "bee", "cat", "dog", "eel", "fox", "gnu")
pytestmark = pytest.mark.filterwarnings("ignore")  # the other packages' own


@pytest.fixture(scope="module")
def transformers():
    shim_torchvision()
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm():
    shim_torchvision()
    return pytest.importorskip("timm")


def shim_torchvision():
    pytest.importorskip("torch")
    peers.declare_torchvision()


def golden_model(variant="B/16", **settings):
    """A model with the golden weights: (config, params)."""
    config = models.get_config(variant, **{**SMALL, "labels": LABELS, **settings})
    weights = golden_weights.weights(golden_weights.official_shapes(config))
    return config, npz.from_official(weights, config)


def saved_model(tmp_path, *model, name="source"):
    saved.save(tmp_path / name, *model)
    return tmp_path / name


def same(a, b):
    return set(a) == set(b) and all(
        np.asarray(a[k]).tobytes() == np.asarray(b[k]).tobytes() for k in a
    )


# --- Hugging Face -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [{}, {"activation": "gelu", "layer_norm_epsilon": 1e-12}, {"channels": 1, "patch_size": 8}],
)
def test_transformers_gives_the_same_logits(transformers, tmp_path, settings):
    source = saved_model(tmp_path, *golden_model(**settings))
    proof = convert.convert(str(source), tmp_path / "hf", "huggingface", tolerance=2e-6)
    assert proof.runtime.startswith("transformers 5") and proof.scale > 0.1
    config, params = load.read(tmp_path / "hf")
    wanted = load.read(source)[0]
    assert config == models.replace(wanted, variant=models.find_variant(wanted))
    assert same(params, load.read(source)[1])


def test_a_pre_training_head_becomes_the_pooler(transformers, tmp_path):
    config, params = golden_model(representation_size="hidden", labels=())
    params["head/kernel"] = np.zeros_like(params["head/kernel"])
    params["head/bias"] = np.zeros_like(params["head/bias"])
    source = saved_model(tmp_path, config, params)
    proof = convert.convert(str(source), tmp_path / "hf", "huggingface", tolerance=5e-6)
    assert "transformers" in proof.runtime and proof.random_head and proof.scale > 0.1
    assert proof.features < 5e-6
    again, _ = load.read(tmp_path / "hf")
    assert again.representation_size == 64


def test_a_model_that_transformers_made_is_read(transformers, tmp_path):
    import torch

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        image_size=32, patch_size=8, num_labels=3, hidden_act="gelu",
    )  # fmt: skip
    peer = transformers.ViTForImageClassification(config).eval()
    peer.save_pretrained(tmp_path / "hf")
    ours, params = load.read(tmp_path / "hf")
    assert (ours.activation, ours.layer_norm_epsilon, ours.num_heads) == ("gelu", 1e-12, 4)
    images = peers.photographs(ours)
    with torch.no_grad():
        wanted = peer(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).logits.numpy()
    np.testing.assert_allclose(convert.run_ours(ours, params, images), wanted, atol=1e-5)
    base = transformers.ViTModel(config).eval()  # no classifier: a zero head, for features
    base.save_pretrained(tmp_path / "base")
    ours, params = load.read(tmp_path / "base")
    assert ours.representation_size == 48 and not params["head/kernel"].any()


@pytest.mark.parametrize("multilabel", [False, True])
def test_the_pipeline_agrees_with_predict_on_a_photo(transformers, tmp_path, capsys, multilabel):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)
    photo = tmp_path / "photo.png"
    PIL.Image.fromarray(small).resize((64, 64), PIL.Image.Resampling.BICUBIC).save(photo)
    config, params = golden_model()
    source = saved_model(tmp_path, models.replace(config, multilabel=multilabel), params)
    convert.convert(str(source), tmp_path / "hf", "huggingface")
    forward = forwards.of_model(*saved.load(source), sharding.make_mesh())
    (ours,) = predict.predict(forward, [photo], top_k=5)
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "hf"))
    theirs = pipe(str(photo), top_k=5)
    assert [row["class"] for row in ours["predictions"]] == [row["label"] for row in theirs]
    for a, b in zip(ours["predictions"], theirs, strict=True):
        assert a["probability"] == pytest.approx(b["score"], abs=1e-4)


# --- timm ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variant, settings",
    [
        ("B/16", {}),
        ("B/16", {"activation": "gelu"}),
        ("Ti/16", {"hidden_size": None, "num_heads": None, "mlp_dim": None, "num_layers": None,
                   "image_size": 96}),
        ("S/16", {"image_size": (64, 96)}),
    ],
)  # fmt: skip
def test_timm_gives_the_same_logits(timm, tmp_path, variant, settings):
    source = saved_model(tmp_path, *golden_model(variant, **settings))
    proof = convert.convert(str(source), tmp_path / "timm", "timm", tolerance=5e-6)
    assert proof.runtime.startswith("timm 1")
    config, params = load.read(tmp_path / "timm")
    wanted, source_params = load.read(source)
    wanted = models.replace(wanted, variant=models.find_variant(wanted))
    assert config == wanted and same(params, source_params)


def test_timm_runs_bit(timm, tmp_path):
    config = models.get_config(
        "R50x1", num_classes=7, image_size=64, labels=LABELS, pool_padding="zeros"
    )
    weights = golden_weights.weights(golden_weights.official_shapes(config))
    source = saved_model(tmp_path, config, npz.from_official(weights, config))
    proof = convert.convert(str(source), tmp_path / "timm", "timm", tolerance=1e-4)
    assert proof.runtime.startswith("timm 1")
    again, params = load.read(tmp_path / "timm")
    assert again.variant == "R50x1" and same(params, load.read(source)[1])
    lowest = models.replace(config, pool_padding="lowest")  # as the original implementation
    other = saved_model(tmp_path, lowest, npz.from_official(weights, lowest), name="other")
    with pytest.raises(UserError, match="refused: logits differ"):
        convert.convert(str(other), tmp_path / "no", "timm")


def test_a_hybrid_is_off_by_timms_epsilons_and_refused(timm, tmp_path):
    config = models.get_config("R26+S/32", num_classes=7, image_size=64, labels=LABELS)
    weights = golden_weights.weights(golden_weights.official_shapes(config))
    source = saved_model(tmp_path, config, npz.from_official(weights, config))
    with pytest.raises(UserError, match=r"refused: logits differ by .* run by timm") as error:
        convert.convert(str(source), tmp_path / "timm", "timm", tolerance=1e-6)
    assert not (tmp_path / "timm").exists() and "Nothing was written" in str(error.value)
    proof = convert.convert(str(source), tmp_path / "timm", "timm", tolerance=0.05)
    assert proof.difference > 0
    again, params = load.read(tmp_path / "timm")  # timm's numerics come back with it
    assert again.stem_group_norm_epsilon == 1e-5 and again.stem_standardisation == "var"
    images = peers.photographs(again)
    found = peers.run_timm(tmp_path / "timm", again, images, {}).logits
    ours = convert.run_ours(again, params, images)
    assert np.abs(found - ours).max() < 2e-5 * np.abs(ours).max()


def test_timm_reads_our_npz(timm, tmp_path):
    """The official layout that we write is the one that timm knows."""
    import torch

    config = models.get_config("Ti/16", num_classes=1000)
    weights = golden_weights.weights(golden_weights.official_shapes(config))
    params = npz.from_official(weights, config)
    npz.save(tmp_path / "ours.npz", config, params)
    peer = timm.create_model("vit_tiny_patch16_224", act_layer="gelu_tanh").eval()
    peer.load_pretrained(str(tmp_path / "ours.npz"))
    images = peers.photographs(config)
    with torch.no_grad():
        found = peer(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    np.testing.assert_allclose(found, convert.run_ours(config, params, images), atol=2e-5)


# --- round trips --------------------------------------------------------------------------------


def test_round_trip_through_every_format_is_lossless(transformers, timm, tmp_path):
    config, params = golden_model(labels=())
    npz.save(tmp_path / "0.npz", config, params)
    trips = [
        ("1", "native"), ("2", "huggingface"), ("3", "native"), ("4", "timm"), ("5.npz", "npz")
    ]  # fmt: skip
    source = "0.npz"
    for target, to in trips:
        convert.convert(str(tmp_path / source), tmp_path / target, to)
        source = target
    with np.load(tmp_path / "0.npz") as first, np.load(tmp_path / "5.npz") as last:
        assert same(dict(first), dict(last))


@pytest.mark.parametrize("to, place", [("npz", "w.npz"), ("native", "w")])
@pytest.mark.parametrize(
    "variant, settings",
    often(
        ("R50x1", {"depths": (1, 1), "image_size": 64}), weekly=[("R+Ti/16", {"image_size": 64})]
    ),
)
def test_hybrids_and_resnets_keep_every_bit(tmp_path, variant, settings, to, place):
    config = models.get_config(variant, num_classes=7, **settings)
    weights = golden_weights.weights(golden_weights.official_shapes(config))
    source = saved_model(tmp_path, config, npz.from_official(weights, config))
    proof = convert.convert(str(source), tmp_path / place, to)
    assert proof.difference == 0
    assert same(load.read(tmp_path / place)[1], load.read(source)[1])


# --- serving formats ----------------------------------------------------------------------------


SERVED = [
    ("B/16", {}),
    ("B/16", {"classifier": "gap"}),
    ("R+Ti/16", {"image_size": 64, "hidden_size": 64, "num_heads": 2, "mlp_dim": 64,
                 "num_layers": 1}),
]  # fmt: skip


@pytest.mark.parametrize("batch", [0, 3])
@pytest.mark.parametrize("variant, settings", SERVED)
def test_stablehlo(tmp_path, variant, settings, batch):
    config, params = golden_model(variant, **settings)
    source = saved_model(tmp_path, config, params)
    proof = export.export(str(source), tmp_path / "out", "stablehlo", batch_size=batch)
    assert proof.difference < 1e-5 * proof.scale
    answer, _ = export.open_stablehlo(tmp_path / "out")
    images = np.repeat(peers.photographs(config)[:1], 3, axis=0)
    np.testing.assert_allclose(
        answer.run(images).logits, convert.run_ours(config, params, images), atol=1e-5 * proof.scale
    )
    facts = json.loads((tmp_path / "out" / "facts.json").read_text())
    assert facts["labels"] == list(LABELS)


def test_stablehlo_needs_none_of_our_code(tmp_path):
    """A process that cannot import vit_jax runs it."""
    import subprocess

    config, params = golden_model()
    source = saved_model(tmp_path, config, params)
    export.export(str(source), tmp_path / "out", "stablehlo")
    np.save(tmp_path / "x.npy", peers.photographs(config))
    code = (
        "import sys; sys.modules['vit_jax'] = None\n"
        "import jax, numpy as np\n"
        "from jax import export\n"
        "from safetensors.numpy import load_file\n"
        "f = export.deserialize(bytearray(open('out/model.stablehlo', 'rb').read()))\n"
        "y = jax.jit(f.call)(load_file('out/weights.safetensors'), np.load('x.npy'))\n"
        "np.save('y.npy', y)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "y.npy"),
        convert.run_ours(config, params, peers.photographs(config)),
        atol=1e-5,
    )


def test_bench_of_exported_models(known_machine, tmp_path, capsys):
    """They are contenders of inference, with equal logits, and of nothing else."""
    pytest.importorskip("onnxruntime")
    file = tmp_path / "bench.json"
    arguments = [
        "bench", "--variant=debug", "--image_size=32", "--batch=2", "--rounds=1",
        "--seconds=0.01", "--peers=stablehlo,onnx",
    ]  # fmt: skip
    assert main([*arguments, "--dtypes=float32", "--tasks=inference", f"--json={file}"]) == 0
    rows = json.loads(file.read_text())
    assert [row["contender"] for row in rows] == ["vit_jax", "stablehlo", "onnx"]
    assert all(row["images_per_second"] > 0 for row in rows)
    for wrong in (["--dtypes=bfloat16", "--tasks=inference"], ["--tasks=train"]):
        assert main([*arguments, *wrong]) == 1
        assert "is a model for inference in float32" in capsys.readouterr().err


def test_savedmodel(tmp_path):
    pytest.importorskip("tensorflow")
    config, params = golden_model()
    source = saved_model(tmp_path, config, params)
    proof = export.export(str(source), tmp_path / "out", "savedmodel")
    assert proof.runtime.startswith("TensorFlow") and proof.difference < 1e-5 * proof.scale
    answer, _ = export.open_savedmodel(tmp_path / "out")
    images = np.zeros((5, 64, 64, 3), np.float32)
    assert answer.run(images).logits.shape == (5, 7)  # the batch is open


@jax.numpy_dtype_promotion("standard")  # qwix multiplies float32 by int32
def test_int8(tmp_path):
    pytest.importorskip("qwix")
    source = saved_model(tmp_path, *golden_model(hidden_size=128))
    with pytest.raises(UserError, match=r"--int8 is for"):
        export.export(str(source), tmp_path / "no", "savedmodel", int8=True)
    proof = export.export(str(source), tmp_path / "int8", "stablehlo", int8=True)
    assert 1e-4 * proof.scale < proof.difference < 0.1 * proof.scale
    stored = saved.read_safetensors(tmp_path / "int8" / "weights.safetensors")
    assert stored["blocks/0/mlp/dense1/kernel"].dtype == np.int8
    assert stored["head/kernel"].dtype == np.float32


# --- refusals and commands ----------------------------------------------------------------------


def test_models_that_a_format_cannot_represent_are_refused(tmp_path):
    cases = [
        ("gap", dict(classifier="gap"), "huggingface", "cannot represent this B/16"),
        ("map", dict(classifier="map"), "npz", "cannot represent this B/16"),
        ("wide", dict(image_size=(64, 96)), "huggingface", "square images"),
        ("hidden", dict(representation_size=64), "timm", "use --to=huggingface, npz or native"),
        ("axial", dict(), "timm", "timm cannot represent this Axial"),
    ]
    for name, settings, to, message in cases:
        variant = "Axial-B/32" if name == "axial" else "B/16"
        config = models.get_config(variant, **{**SMALL, **settings})
        params = {
            path: golden_weights.draw(path, leaf.shape)
            for path, leaf in models.abstract_params(config).items()
        }
        source = saved_model(tmp_path, config, params, name=name)
        target = tmp_path / f"{name}-out.npz" if to == "npz" else tmp_path / f"{name}-out"
        with pytest.raises(UserError, match=message):
            convert.convert(str(source), target, to)
        assert not target.exists()


def test_nothing_is_overwritten(tmp_path):
    source = saved_model(tmp_path, *golden_model())
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "precious").write_text("x")
    for call in (
        lambda: convert.convert(str(source), tmp_path / "there", "native"),
        lambda: export.export(str(source), tmp_path / "there", "stablehlo"),
    ):
        with pytest.raises(UserError, match="would be overwritten"):
            call()
    assert (tmp_path / "there" / "precious").read_text() == "x"
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "dangling.npz").symlink_to(tmp_path / "gone")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a directory"):
        convert.check_free(tmp_path / "file" / "x")
    for name in ("link", "dangling.npz"):
        with pytest.raises(UserError, match="would be overwritten"):
            convert.check_free(tmp_path / name)
    with pytest.raises(UserError, match="There is no checkpoint at"):
        convert.convert(str(tmp_path / "none"), tmp_path / "empty", to="native")
    assert (tmp_path / "empty").is_dir()  # it was there before
    convert.convert(str(source), tmp_path / "empty", to="native")
    assert saved.is_native(tmp_path / "empty")


def test_data_that_do_not_exist_are_refused_before_a_model_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(load, "read", lambda *_: pytest.fail("a model was read"))
    no, out = "folder:/no/where", tmp_path / "out"
    with pytest.raises(UserError, match="no folder /no/where"):
        convert.convert("m", out, "native", photos=no)
    with pytest.raises(UserError, match="no folder /no/where"):
        export.export("m", out, "stablehlo", photos=no)
    given = ["--checkpoint=m", "--format=stablehlo", f"--out={out}"]
    assert main(["export", *given, f"--data={no}"]) == 1
    assert "no folder /no/where" in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("channels", [1, 5])
def test_photographs_of_a_data_set_keep_their_channels(channels):
    config = models.get_config("debug", channels=channels, preprocessing=(
        ("name", "resize"), ("channels", channels)))  # fmt: skip
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels)).astype(np.uint8)
    images = peers.photographs(config, data.ArraySource(pixels, [0, 1]))
    np.testing.assert_allclose(images, pixels / 127.5 - 1, atol=1e-6)
    assert peers.photographs(config).shape == (8, 32, 32, channels)


def test_commands(tmp_path, capsys):
    source = saved_model(tmp_path, *golden_model())
    assert main(["convert", str(source), str(tmp_path / "w.npz"), "--to=npz"]) == 0
    text = capsys.readouterr().out
    assert "maximum logit difference 0 " in text and "top-1 equal on 100% of 8 photographs" in text
    out = tmp_path / "served"
    arguments = ["export", f"--checkpoint={source}", "--format=stablehlo", f"--out={out}"]
    assert main(arguments) == 0
    assert "run by jax.export" in capsys.readouterr().out
    assert main(arguments) == 1
    assert "would be overwritten" in capsys.readouterr().err
    assert main(["convert", str(source), "x", "--to=hugging"]) == 1
    assert "Did you mean 'huggingface'" in capsys.readouterr().err
    assert main(["convert", str(source), "--to=npz"]) == 2
    assert main(["convert", str(source), str(tmp_path / "x"), "--to=npz"]) == 1
    assert "must end in .npz" in capsys.readouterr().err


# --- speed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", often("inference", weekly=["train"]))
def test_bench_beside_timm_and_transformers(timm, transformers, known_machine, tmp_path, task):
    """Their logits equal ours before anything is timed; training changes nothing about that."""
    file = tmp_path / "bench.json"
    arguments = [
        "bench", "--variant=Ti/16", "--image_size=32", "--batch=2", "--rounds=1",
        "--seconds=0.01", f"--tasks={task}", "--dtypes=float32", "--peers=timm,transformers",
    ]  # fmt: skip
    assert main([*arguments, f"--json={file}"]) == 0
    rows = json.loads(file.read_text())
    assert [row["contender"] for row in rows] == ["vit_jax", "timm", "transformers"]
    assert all(row["images_per_second"] > 0 and row["mfu"] > 0 for row in rows)
