"""Exports in a model server's repository: what Triton is told, and what is refused."""

import json

import jax
import numpy as np
import pytest

from vit_jax import models
from vit_jax.cli import main
from vit_jax.interop import export, serving
from vit_jax.models import saved

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

LABELS = ("cat", 'a "tabby"', "two\nlines", "café")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model with a classifier, called pets."""
    config = models.get_config("debug", num_classes=4, image_size=(16, 24), labels=LABELS)
    init, _ = models.as_functions(config)
    params = {path: np.asarray(value) for path, value in jax.jit(init)(jax.random.key(0)).items()}
    head = np.random.default_rng(0).normal(size=params["head/kernel"].shape)
    params["head/kernel"] = head.astype(np.float32)
    directory = tmp_path_factory.mktemp("runs") / "pets"
    saved.save(directory, config, params)
    return str(directory)


def serve(source, *flags):
    return main(["export", f"--checkpoint={source}", *flags])


def tree(directory):
    found = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix() for path in found}


def test_triton_is_told_what_the_file_takes_and_gives(source, tmp_path, capsys):
    repository = tmp_path / "models"
    flags = ["--layout=triton", f"--out={repository}", "--uint8", "--features"]
    assert serve(source, *flags) == 0
    file = repository / "pets" / "1" / "model.onnx"
    assert capsys.readouterr().out.startswith(f"{file}: maximum logit difference")
    assert tree(repository) == {"pets/1/model.onnx", "pets/config.pbtxt", "pets/labels.txt"}
    assert export.open_exported(file).labels == LABELS
    text = (repository / "pets" / "config.pbtxt").read_text(encoding="utf-8")
    assert text.splitlines()[:7] == [
        'name: "pets"',
        'backend: "onnxruntime"',
        "max_batch_size: 64",
        "dynamic_batching {}",
        'input { name: "images", data_type: TYPE_UINT8, dims: [16, 24, 3] }',
        'output { name: "logits", data_type: TYPE_FP32, dims: [4], label_filename: "labels.txt" }',
        'output { name: "pre_logits", data_type: TYPE_FP32, dims: [64] }',
    ]
    labels = (repository / "pets" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert labels == ["cat", 'a "tabby"', "two lines", "café"]  # one a line
    # A second model beside it, not over it.
    assert serve(source, *flags) == 1
    assert "models/pets exists and would be overwritten" in capsys.readouterr().err
    assert serve(source, *flags, "--name=pets-2") == 0
    assert {path.name for path in repository.iterdir()} == {"pets", "pets-2"}


def test_the_servers_own_parser_reads_it(source, tmp_path):
    pytest.importorskip("grpc")
    parsers = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    file, _ = serving.export_to(source, tmp_path, "triton", name="m")
    text = (file.parent.parent / "config.pbtxt").read_text(encoding="utf-8")
    config = text_format.Parse(text, parsers.ModelConfig())
    assert (config.name, config.max_batch_size) == ("m", serving.LARGEST_BATCH)
    assert config.HasField("dynamic_batching")
    assert json.loads(config.parameters["labels"].string_value) == list(LABELS)
    (given,), (logits,) = config.input, config.output
    assert (given.name, list(given.dims)) == ("images", [16, 24, 3])
    assert given.data_type == parsers.TYPE_FP32 and logits.label_filename == "labels.txt"


def test_openvino_model_server_has_its_own_format(source, tmp_path):
    flags = ["--layout=openvino", f"--out={tmp_path}", "--name=onnx", "--format=onnx"]
    assert serve(source, *flags) == 0
    assert tree(tmp_path) == {"onnx/1/model.onnx"}
    pytest.importorskip("openvino")
    assert serve(source, "--layout=openvino", f"--out={tmp_path}") == 0
    assert tree(tmp_path / "pets") == {"1/model.xml", "1/model.bin"}


@pytest.mark.parametrize(
    "flags, said",
    [
        (["--layout=tritn"], "Did you mean 'triton'?"),
        (["--layout=triton", "--format=stablehlo"], "is for --format=onnx, not stablehlo"),
        (["--layout=triton", "--name=a/b"], "--name=a/b may have letters, digits and -_. only"),
        (["--layout=triton", "--batch_size=8"], "leave out --batch_size"),
        (["--layout=triton", "--opset=9"], "--opset=9 must be from 17"),
        (["--format=onnx", "--name=pets"], "--name is for a model repository"),
    ],
)
def test_a_refusal_leaves_nothing(source, tmp_path, flags, said, capsys):
    assert serve(source, f"--out={tmp_path / 'models'}", *flags) in (1, 2)
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_file_is_no_repository(source, tmp_path, capsys):
    (tmp_path / "models").write_text("mine")
    assert serve(source, "--layout=triton", f"--out={tmp_path / 'models'}") == 1
    assert "models is a file; --out must be the folder" in capsys.readouterr().err
    assert (tmp_path / "models").read_text() == "mine"
