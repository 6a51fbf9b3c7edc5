"""Model repositories for servers: REPOSITORY/NAME/1/model.onnx."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vit_jax.errors import UserError, nearest
from vit_jax.files import staging
from vit_jax.interop import convert, export
from vit_jax.interop.onnx_graph import import_onnx

LARGEST_BATCH = 64  # formed by the server from single requests
FILES = {"onnx": "model.onnx", "openvino": "model.xml"}


class Layout(NamedTuple):
    """formats: that the server runs, the default first.

    files: name and model file -> {name: text} of files beside the versions.
    """

    formats: tuple[str, ...]
    files: Callable[[str, Path], dict[str, str]]


def triton(name: str, file: Path) -> dict[str, str]:
    """The configuration of Triton's ONNX Runtime backend, from the file itself, and the labels.

    Its metadata, such as the preprocessing, become parameters that clients can query.
    """
    onnx = import_onnx()
    model = onnx.load(str(file), load_external_data=False)
    known = {entry.key: entry.value for entry in model.metadata_props}
    labels = [" ".join(label.split()) for label in json.loads(known["labels"])]  # one per line
    types = {onnx.TensorProto.FLOAT: "TYPE_FP32", onnx.TensorProto.UINT8: "TYPE_UINT8"}

    def tensor(kind: str, value) -> str:
        given = value.type.tensor_type
        sides = [size.dim_value for size in given.shape.dim[1:]]  # without the batch
        named = ', label_filename: "labels.txt"' if labels and value.name == "logits" else ""
        return (
            f'{kind} {{ name: "{value.name}", data_type: {types[given.elem_type]}, '
            f"dims: {sides}{named} }}"
        )

    lines = [
        f'name: "{name}"',
        'backend: "onnxruntime"',
        f"max_batch_size: {LARGEST_BATCH}",
        "dynamic_batching {}",
        *(tensor("input", value) for value in model.graph.input),
        *(tensor("output", value) for value in model.graph.output),
    ]
    for key, value in known.items():
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f'parameters {{ key: "{key}", value: {{ string_value: {text} }} }}')
    found = {"config.pbtxt": "\n".join(lines) + "\n"}
    return found | ({"labels.txt": "\n".join(labels) + "\n"} if labels else {})


LAYOUTS = {
    "triton": Layout(("onnx",), triton),
    "openvino": Layout(("openvino", "onnx"), lambda name, file: {}),
}


def export_to(
    source: str,
    repository: str | Path,
    layout: str,
    *,
    name: str = "",
    form: str = "",
    **options,
) -> tuple[Path, convert.Proof]:
    """Exports a model to repository/name, atomically; returns its file and the comparison.

    Args:
      layout: "triton" or "openvino" (OpenVINO Model Server).
      name: of the model for clients; "": the last part of `source`, without a suffix.
      form: as in `export.export`; "": the server's default.
      options: of `export.export`.

    Raises:
      UserError: as `export.export`, or the server does not run it, or the model exists.
    """
    if layout not in LAYOUTS:
        raise UserError(
            f"There is no layout {layout!r}; there are {', '.join(LAYOUTS)}."
            f"{nearest(layout, LAYOUTS)}"
        )
    forms, files = LAYOUTS[layout]
    form = form or forms[0]
    if form not in forms:
        raise UserError(f"--layout={layout} is for --format={' and '.join(forms)}, not {form}.")
    if options.get("batch_size"):
        raise UserError(
            f"--layout={layout} leaves the batch to the server; leave out --batch_size."
        )
    name = name or Path(source).stem
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name, re.ASCII):
        raise UserError(f"--name={name} may have letters, digits and -_. only.")
    repository = Path(repository)
    if repository.exists() and not repository.is_dir():
        raise UserError(f"{repository} is a file; --out must be the folder of the server's models.")
    target = repository / name
    convert.check_free(target)
    is_new = not repository.exists()
    repository.mkdir(parents=True, exist_ok=True)
    try:
        with staging(target) as scratch:
            made = scratch / name
            file = made / "1" / FILES[form]
            proof = export.export(source, file, form, **options)
            for other, text in files(name, file).items():
                (made / other).write_text(text, encoding="utf-8")
            convert.put(made, target)
    except BaseException:
        if is_new:
            with contextlib.suppress(OSError):
                repository.rmdir()
        raise
    return target / "1" / FILES[form], proof
