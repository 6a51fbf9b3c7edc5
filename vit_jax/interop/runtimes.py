"""The runtimes of exported files: ONNX Runtime, and OpenVINO, which also reads ONNX."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.errors import UsageError
from vit_jax.interop import onnx_files, openvino_files
from vit_jax.interop.peers import Answer


class Runtime(NamedTuple):
    """open: a file -> the function of images, and its version. facts: a file -> its metadata."""

    suffixes: tuple[str, ...]
    open: Callable[[Path], tuple[Answer, str]]
    facts: Callable[[Path], dict]


IR = (".xml", ".onnx")
#: By name, those that are a suffix's own first.
RUNTIMES = {
    "onnxruntime": Runtime((".onnx",), onnx_files.open_file, onnx_files.read_facts),
    "openvino": Runtime(IR, openvino_files.open_file, openvino_files.read_facts),
    "openvino-bfloat16": Runtime(
        IR,
        functools.partial(openvino_files.open_file, dtype="bfloat16"),
        openvino_files.read_facts,
    ),
}

SUFFIXES = frozenset(suffix for runtime in RUNTIMES.values() for suffix in runtime.suffixes)


def choose(path: Path, name: str | None = None) -> Runtime:
    """The runtime for a file of one of SUFFIXES; without a name, the file's own.

    Raises:
      UsageError: it does not run such files.
      UserError: it is not a file.
    """
    own = (runtime for runtime in RUNTIMES.values() if path.suffix in runtime.suffixes)
    found = RUNTIMES[name] if name else next(own)
    if path.suffix not in found.suffixes:
        kinds = " and ".join(sorted(found.suffixes))
        raise UsageError(f"--runtime={name} is for {kinds} files of `vit-jax export`, not {path}.")
    files.check_regular(path)
    return found
