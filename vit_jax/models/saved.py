"""The package's own format: `model.safetensors` beside a `config.json` that describes the model."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vit_jax import files, models
from vit_jax.errors import UserError, nearest
from vit_jax.files import read_json, replacing, write_json

FORMAT = "vit_jax"
FILES = ("model.safetensors", "config.json")
FAMILIES = {
    "vit": models.ViTConfig,
    "axial": models.AxialConfig,
    "resnet": models.ResNetConfig,
}


#: Settings written only if not the default, so that earlier versions can read all other models.
RARE = ("multilabel", "thresholds", "temperature")


def config_to_json(config: models.ModelConfig) -> dict[str, object]:
    """A model's configuration as plain JSON values, with the names of format and family."""
    family = next(name for name, kind in FAMILIES.items() if kind is type(config))
    values = {k: v for k, v in dataclasses.asdict(config).items() if v or k not in RARE}
    return {"format": FORMAT, "family": family, **values}


def config_from_json(values: Mapping[str, object], where: str) -> models.ModelConfig:
    """The inverse of `config_to_json`; unknown and missing settings are errors."""
    values = dict(values)
    values.pop("format", None)
    values.pop("run", None)
    family = values.pop("family", None)
    if family not in FAMILIES:
        raise UserError(f"{where}: family {family!r} is not one of {', '.join(FAMILIES)}.")
    kind = FAMILIES[str(family)]
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            raise UserError(f"{where}: unknown setting {key!r}.{nearest(key, fields)}")
    for key, field in fields.items():
        required = field.default is dataclasses.MISSING
        if required and key not in values:
            raise UserError(f"{where}: the setting {key!r} is missing.")
    try:
        make: Callable[..., models.ModelConfig] = kind
        return make(**{key: _frozen(value) for key, value in values.items()})
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _frozen(value: object) -> object:
    """JSON lists as tuples, at any depth."""
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def save(
    directory: str | Path,
    config: models.ModelConfig,
    params: models.Params,
    run: Mapping[str, object] | None = None,
) -> None:
    """Writes a model; each file is written atomically. Equal models give equal bytes.

    run: the provenance in its config.json: "step" of a run, its "last_step", ...
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot write to {directory}: {error.strerror}.") from error
    write_safetensors(directory / "model.safetensors", params)
    write_json(directory / "config.json", config_to_json(config) | ({"run": run} if run else {}))


def write_safetensors(
    file: Path, arrays: models.Params, metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays in the order of their names, atomically.

    The metadata key "sha256" is added: a JSON object {name: first 16 digits of its SHA-256}.
    """
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    sums = json.dumps({name: checksum(array) for name, array in ordered.items()})
    with replacing(file) as partial:
        partial.touch()
        mode = partial.stat().st_mode  # by the umask
        save_file(ordered, partial, {**(metadata or {}), CHECKSUMS: sums})
        partial.chmod(mode)  # safetensors creates it with mode 0600
        with open(partial, "r+b") as written:  # safetensors does not sort its metadata
            size = int.from_bytes(written.read(8), "little")
            header = json.loads(written.read(size))
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
            text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
            written.seek(8)
            written.write(text.ljust(size))


#: The metadata key of checksums in a safetensors file.
CHECKSUMS = "sha256"
Headers = dict[str, tuple[str, tuple[int, ...]]]


def checksum(array: np.ndarray) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of an array's bytes, little-endian."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return hashlib.sha256(flat.view(np.uint8).data).hexdigest()[:16]


def check_sums(arrays: models.Params, sums: object, where: str) -> None:
    """Raises UserError for the first array that does not match its checksum."""
    if not files.VERIFY.get():
        return
    if not isinstance(sums, dict) or sorted(sums) != sorted(arrays):
        raise UserError(f"{where} is damaged: its checksums are for other arrays.{COPY}")
    for name, array in arrays.items():
        if checksum(np.asarray(array)) != sums[name]:
            raise UserError(f"{where} is damaged: {name} does not match its checksum.{COPY}")


COPY = " Copy or export it again (--verify=false reads it as it is)."


def read_safetensors(
    file: Path, check: Callable[[Headers], None] = lambda headers: None
) -> dict[str, np.ndarray]:
    """All arrays of a file; its header is checked against its size before anything is read.

    Checksums in it are verified, unless `files.VERIFY` is off.

    Args:
      check: called with {name: (dtype, shape)} before the arrays are read.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        files.check_regular(file)
        headers, sums = read_header(file)
        check(headers)
        arrays = load_file(file)
        if sums is not None:
            check_sums(arrays, json.loads(sums), str(file))
        return arrays
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; the export did not finish.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}).") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        reason = str(error).split("\n")[0][:200]
        raise UserError(f"{file} is damaged ({reason}); copy or export it again.") from error


#: Safetensors dtypes that NumPy can hold: not floats of 8, 6 and 4 bits.
DTYPES = {
    "BOOL",
    "BF16",
    "F16",
    "F32",
    "F64",
    *(f"{kind}{2**n}" for kind in "IU" for n in range(3, 7)),
}
#: The format's limit on a header, in bytes.
MAX_HEADER = 100_000_000


def read_header(file: Path) -> tuple[Headers, str | None]:
    """{name: (dtype, shape)} of a file, and its checksums if it has any.

    Raises:
      UserError: an array has an unsupported dtype, or is larger than the file.
      ValueError, TypeError, KeyError: not a valid header.
    """
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > min(MAX_HEADER, os.fstat(opened.fileno()).st_size):
            raise ValueError(f"a header of {size:,} bytes")
        header = json.loads(opened.read(size) or "{}")
    sums = header.pop("__metadata__", {}).get(CHECKSUMS)
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise UserError(
                f"{file}: {name} has the dtype {entry['dtype']}, not supported; save the weights "
                "in float32, float16 or bfloat16 first."
            )
    return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}, sums


def is_native(directory: str | Path) -> bool:
    """Whether a directory is in this format (other formats also have a config.json)."""
    values = read_json(Path(directory) / "config.json")
    return isinstance(values, dict) and values.get("format") == FORMAT


def load(directory: str | Path) -> tuple[models.ModelConfig, dict[str, np.ndarray]]:
    """Reads a model: its configuration and its parameters by path.

    Raises:
      UserError: a file is missing or damaged, or its arrays are not those of the configuration.
    """
    directory = Path(directory)
    values = read_json(directory / "config.json")
    if not isinstance(values, dict):
        raise UserError(f"{directory} has no config.json written by vit_jax.")
    config = config_from_json(values, f"{directory}/config.json")
    file = directory / "model.safetensors"

    def check(headers: Headers) -> None:
        check_blocks(config, len(headers), str(file))
        check_shapes(config, {path: shape for path, (_, shape) in headers.items()}, str(file))
        for path, (dtype, _) in headers.items():
            if not dtype.startswith(("F", "BF")):
                raise UserError(
                    f"{file}: {path} has the dtype {dtype}; convert it to floats first."
                )

    return config, read_safetensors(file, check)


def check_params(config: models.ModelConfig, params: models.Params, where: str) -> None:
    """Raises UserError unless `params` has exactly the arrays of `config`, in name and shape."""
    check_shapes(config, {path: tuple(array.shape) for path, array in params.items()}, where)


def check_shapes(config: models.ModelConfig, found: Mapping[str, tuple], where: str) -> None:
    """As `check_params`, for {path: shape}."""
    wanted = models.abstract_params(config)
    missing = sorted(set(wanted) - set(found))
    extra = sorted(set(found) - set(wanted))
    check_names(missing, extra, where, config.variant)
    for path, leaf in wanted.items():
        if found[path] != leaf.shape:
            raise UserError(
                f"{where}: {path} has shape {found[path]} but {config.variant} needs {leaf.shape}."
            )


def check_blocks(config: models.ModelConfig, arrays: int, where: str) -> None:
    """Raises UserError for more blocks than arrays, before their names are listed."""
    depths = getattr(config, "depths", None) or getattr(config, "stem_depths", None) or ()
    blocks = getattr(config, "num_layers", 0) + sum(depths)
    if blocks > arrays:
        raise UserError(f"{where} is not a {config.variant}: {blocks:,} blocks, {arrays:,} arrays.")


def check_names(missing: list[str], extra: list[str], where: str, variant: str) -> None:
    """Raises UserError that lists missing and unexpected arrays, if there are any."""
    if missing or extra:
        hint = nearest(missing[0], extra) if missing and extra else ""
        parts = [
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for names, what in ((missing, "missing"), (extra, "unexpected"))
            if names
        ]
        raise UserError(f"{where} is not a {variant}: {' and '.join(parts)}.{hint}")
