"""OpenVINO's IR (NAME.xml, with the weights in NAME.bin), and ONNX files run by OpenVINO."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_jax.errors import UserError, first_line, need
from vit_jax.interop import checksums, onnx_files
from vit_jax.interop.peers import Answer, Outputs

Array = np.ndarray
TELEMETRY = "openvino_telemetry"
FACTS = ["vit_jax", "facts"]  # path of the metadata in an IR
#: By default OpenVINO uses 16-bit products if the CPU supports them.
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


def import_openvino():
    """The package, or a UserError that says how to install it; without its telemetry.

    Importing it would report to Google Analytics from a forked process, in which the threads of JAX
    may deadlock. So the package `openvino_telemetry` is hidden during the import.
    """
    need("OpenVINO's format", "openvino")
    before = sys.modules.setdefault(TELEMETRY, None)  # type: ignore[arg-type]  # importing it fails
    try:
        import openvino
    finally:
        if before is None:
            del sys.modules[TELEMETRY]
    return openvino


def save(file: Path, onnx_file: Path, facts: Mapping[str, object]) -> None:
    """Converts an ONNX file to NAME.xml and NAME.bin, with the facts.

    Raises:
      UserError: OpenVINO is not installed.
    """
    openvino = import_openvino()
    model = openvino.Core().read_model(str(onnx_file))
    known = {**facts, checksums.NAME: checksums.OPEN}
    model.set_rt_info(json.dumps(known), FACTS)
    try:
        openvino.save_model(model, str(file), compress_to_fp16=False)
    except RuntimeError as error:  # a full disk is "basic_ios::clear: iostream error"
        raise OSError(errno.EIO, f"OpenVINO could not: {first_line(error)}", str(file)) from error
    checksums.seal(file, parts(file)[1:])


def parts(file: Path) -> list[Path]:
    """The files of an IR."""
    return [file, file.with_suffix(".bin")]


FOREIGN = "{} has no preprocessing; only exports by `vit-jax export` can be evaluated."


def check(file: Path) -> None:
    """Raises UserError for an IR without a checksum, or with one that does not match."""
    if file.suffix == ".xml" and not checksums.check(file, parts(file)[1:]):
        raise UserError(FOREIGN.format(file))


def open_file(file: str | Path, dtype: str = "float32") -> tuple[Answer, str]:
    """A function of images (b, h, w, c) in [-1, 1], by OpenVINO on the CPU, and its version.

    Args:
      file: an IR or an ONNX file.
      dtype: of products, "float32" or "bfloat16"; 8-bit layers stay as they are.

    Raises:
      UserError: OpenVINO is not installed, or cannot run the file.
    """
    openvino = import_openvino()
    check(Path(file))
    hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype], "PERFORMANCE_HINT": "LATENCY"}
    try:
        model = openvino.Core().compile_model(str(file), "CPU", hints)
    except Exception as error:
        reason = str(error).strip().split("\n")[-1][:160]
        raise UserError(f"OpenVINO cannot run {Path(file).name} ({reason}).") from error
    given = model.inputs[0]
    features = [i for i, output in enumerate(model.outputs) if "pre_logits" in output.names]
    uint8 = given.element_type.to_dtype() == np.uint8

    def run(images: Array) -> Outputs:
        found = model([onnx_files.to_pixels(images) if uint8 else np.ascontiguousarray(images)])
        return Outputs(found[0], found[features[0]] if features else None)

    size = given.partial_shape[0]
    answer = Answer(run, size.get_length() if size.is_static else None)
    return answer, f"openvino {openvino.__version__.split('-')[0]}"


def read_facts(file: Path) -> dict:
    """The facts of an IR, or of an ONNX file.

    Raises:
      UserError: there are none, since another program wrote it, or the file is damaged.
    """
    if file.suffix == ".onnx":
        return onnx_files.facts_without_a_runtime(file)
    check(file)
    try:
        model = import_openvino().Core().read_model(str(file))
        return json.loads(model.get_rt_info(FACTS).astype(str))
    except (RuntimeError, ValueError) as error:
        raise UserError(FOREIGN.format(file)) from error
