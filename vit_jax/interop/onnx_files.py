"""ONNX files: written directly (onnx_models.py), run by ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from vit_jax import models
from vit_jax.errors import UserError, first_line, need
from vit_jax.interop import checksums, onnx_models
from vit_jax.interop.onnx_graph import OLDEST_OPSET, Graph, Tensor, import_onnx
from vit_jax.interop.peers import Answer, Outputs

Array = np.ndarray
DTYPES = ("float32", "float16")
#: A protocol buffer has at most 2 GiB; beyond this, weights go to a separate file.
LARGEST = 1_900_000_000


def save(
    file: Path,
    config: models.ModelConfig,
    params: models.Params,
    facts: Mapping[str, object],
    *,
    batch_size: int = 0,
    opset: int = OLDEST_OPSET,
    dtype: str = "float32",
    features: bool = False,
    uint8: bool = False,
    int8: bool = False,
    calibration: Array | None = None,
) -> str:
    """Writes images -> logits, with the weights inside, and returns a line about the graph.

    Args:
      facts: written as metadata.
      opset: of ONNX, 17 or newer.
      dtype: of weights and products, "float32" or "float16"; logits are float32.
      features: also return pre_logits (b, d), before any tanh.
      uint8: the input is pixels, 0 to 255, instead of floats in [-1, 1].
      int8: dense layers of the encoder in 8 bits, calibrated on `calibration`.
      calibration: (b, h, w, c) in [-1, 1].

    Raises:
      UserError: ONNX is not installed, an unsupported opset, or weights beyond float16.
    """
    check(opset, dtype)
    onnx = import_onnx()
    g = Graph(params, dtype=dtype, opset=opset)
    logits, pre_logits = onnx_models.write(g, config, pixels(g, uint8))
    types, batch = onnx.TensorProto, batch_size or "batch"
    shape = (batch, *config.image_size, config.channels)
    wanted = {logits: ("logits", (batch, config.num_classes))}
    if features:
        width = np.shape(params["head/kernel"])[0]
        wanted[pre_logits] = ("pre_logits", (batch, width))
    images = (types.UINT8 if uint8 else types.FLOAT, shape)
    model = g.model(images, wanted, f"vit_jax {config.variant}")
    for key, value in {**facts, checksums.NAME: checksums.OPEN}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    write(onnx, model, file)
    if int8:
        from vit_jax.interop import quantize

        assert calibration is not None
        given = calibration if not uint8 else to_pixels(calibration)
        quantize.onnx_int8(file, given)
    onnx.checker.check_model(str(file), full_check=True)  # with shape inference
    check_or_seal(file, checksums.seal)
    size = sum(part.stat().st_size for part in parts(file) if part.exists())
    return f"{len(g.nodes)} operations of opset {opset}, {size / 1e6:.1f} MB"


def check(opset: int, dtype: str) -> None:
    """Raises UserError if ONNX is not installed, or does not have an opset or a dtype."""
    onnx = import_onnx()
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(
            f"--opset={opset} must be from {OLDEST_OPSET}, which brought LayerNormalization, to "
            f"{newest}, the newest that onnx {onnx.__version__} writes."
        )
    if dtype not in DTYPES:
        raise UserError(f"--dtype={dtype} does not exist in ONNX; there are {', '.join(DTYPES)}.")


def pixels(g: Graph, uint8: bool) -> Tensor:
    """The input as floats in [-1, 1], in the dtype of the graph."""
    kind = g.onnx.helper.np_dtype_to_tensor_dtype(g.dtype)
    images = "images"
    if uint8 or g.dtype != np.float32:
        images = g("Cast", images, name="images/float", to=kind)
    if uint8:
        images = g("Mul", images, g.number(1 / 127.5), name="images/scaled")
        images = g("Sub", images, g.number(1.0), name="images/normalised")
    return images


def to_pixels(images: Array) -> Array:
    """Floats in [-1, 1] back to uint8."""
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def write(onnx, model, file: Path) -> None:
    """Writes the model as one file, or with NAME.data beside it if too large."""
    large = model.ByteSize() > LARGEST
    beside = dict(save_as_external_data=True, location=f"{file.name}.data") if large else {}
    onnx.save_model(model, str(file), **beside)


def parts(file: Path) -> list[Path]:
    """The file, and the separate file of weights if there is one."""
    return [file, file.with_name(f"{file.name}.data")]


def check_or_seal(file: Path, what: Callable[[Path, list[Path]], object]) -> None:
    """Applies `checksums.check` or `checksums.seal` to the file and its separate weights.

    Raises:
      UserError: the weights that it names are not there.
    """
    weights = parts(file)[1]
    if not weights.exists() and checksums.find(file, weights.name.encode()):
        raise UserError(f"{weights}, with the weights of {file.name}, is missing; copy both.")
    what(file, [weights] if weights.exists() else [])


def open_file(file: str | Path) -> tuple[Answer, str]:
    """A function of images (b, h, w, c) in [-1, 1], by ONNX Runtime on the CPU, and its version.

    Raises:
      UserError: the runtime is not installed, or cannot run the model.
    """
    session, version = start(file)
    given = session.get_inputs()[0]
    names = [output.name for output in session.get_outputs()]

    def run(images: Array) -> Outputs:
        images = to_pixels(images) if given.type == "tensor(uint8)" else np.asarray(images)
        found = dict(zip(names, session.run(names, {given.name: images}), strict=True))
        return Outputs(found[names[0]], found.get("pre_logits"))

    return Answer(run, given.shape[0]), version


def start(file: str | Path):
    """An ONNX Runtime session of a file, after a trial run on zeros, and the runtime's version."""
    need("An .onnx file", "onnxruntime")
    import onnxruntime

    check_or_seal(Path(file), checksums.check)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        # Read here, since names that are not UTF-8 raise when read.
        given, _ = session.get_inputs()[0], session.get_outputs()
        _ = session.get_modelmeta().custom_metadata_map
        shape = [size if isinstance(size, int) else 1 for size in given.shape]
        kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
        session.run(None, {given.name: np.zeros(shape, kind)})
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(f"ONNX Runtime cannot run {Path(file).name} ({reason}).") from error
    return session, f"onnxruntime {onnxruntime.__version__}"


def read_facts(file: Path) -> dict:
    """The facts in the metadata of an ONNX file; entries that are not JSON are text."""
    session, _ = start(file)
    return facts_in(session.get_modelmeta().custom_metadata_map)


def facts_without_a_runtime(file: Path) -> dict:
    """The same, read by the package `onnx`; a checksum in the file is verified.

    Raises:
      UserError: it is not installed, or the file is damaged.
    """
    onnx = import_onnx()
    check_or_seal(file, checksums.check)
    try:
        model = onnx.load_model(str(file), load_external_data=False)
        return facts_in({entry.key: entry.value for entry in model.metadata_props})
    except Exception as error:  # protobuf's, which depend on its version
        raise UserError(f"{file} is no ONNX file ({first_line(error)[:160]}).") from error


def facts_in(metadata: Mapping[str, str]) -> dict:
    found = {}
    for key, value in metadata.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found
