"""The package's own format: `model.safetensors` beside a `config.json` that describes the model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from vit_jax import models
from vit_jax.errors import UserError, nearest
from vit_jax.files import read_json, replacing, write_json

FORMAT = "vit_jax"
FAMILIES = {
    "vit": models.ViTConfig,
    "axial": models.AxialConfig,
    "resnet": models.ResNetConfig,
}


#: Settings that are written where they say something: earlier versions read all other models.
RARE = ("multilabel", "thresholds")


def config_to_json(config: models.ModelConfig) -> dict[str, object]:
    """A model's configuration as plain JSON values, with the format's and the family's name."""
    family = next(name for name, kind in FAMILIES.items() if kind is type(config))
    values = {k: v for k, v in dataclasses.asdict(config).items() if v or k not in RARE}
    return {"format": FORMAT, "family": family, **values}


def config_from_json(values: Mapping[str, object], where: str) -> models.ModelConfig:
    """The inverse of `config_to_json`; unknown and missing settings are errors that name them."""
    values = dict(values)
    values.pop("format", None)
    values.pop("run", None)
    family = values.pop("family", None)
    if family not in FAMILIES:
        raise UserError(f"{where}: family {family!r} is none of {', '.join(FAMILIES)}.")
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
    """Writes a model; each file appears whole or not at all. Equal models give equal bytes.

    run: what its config.json says of where it comes from: "step" of a run, its "last_step", ...
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_safetensors(directory / "model.safetensors", params)
    write_json(directory / "config.json", config_to_json(config) | ({"run": run} if run else {}))


def write_safetensors(
    file: Path, arrays: models.Params, metadata: dict[str, str] | None = None
) -> None:
    """Writes arrays in the order of their names; the file appears whole or not at all."""
    ordered = {name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)}
    with replacing(file) as partial:
        save_file(ordered, partial, metadata)
        partial.chmod(0o644)  # safetensors makes it private


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """All arrays of a file; its header is checked against its size before anything is read.

    Raises:
      UserError: there is no such file, or it is damaged.
    """
    try:
        check_dtypes(file)
        return load_file(file)
    except FileNotFoundError:
        raise UserError(f"{file} does not exist; the export did not finish.") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file} is damaged ({error}); copy or export it again.") from error


#: What a safetensors file may hold that NumPy can: floats of 8, 6 and 4 bits are not among it.
DTYPES = {
    "BOOL",
    "BF16",
    "F16",
    "F32",
    "F64",
    *(f"{kind}{2**n}" for kind in "IU" for n in range(3, 7)),
}


def check_dtypes(file: Path) -> None:
    """Raises UserError that names the first array of a type that is not read."""
    with open(file, "rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > 100_000_000:  # the format's own limit; load_file says what is wrong
            return
        header = json.loads(opened.read(size) or "{}")
    for name, entry in header.items():
        dtype = entry.get("dtype") if isinstance(entry, dict) and name != "__metadata__" else "F32"
        if dtype not in DTYPES:
            raise UserError(
                f"{file}: {name} is of type {dtype}, which is not read; save the weights in "
                "float32, float16 or bfloat16 first."
            )


def is_native(directory: str | Path) -> bool:
    """Whether a directory holds this format (other formats also have a config.json)."""
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
        raise UserError(f"{directory} has no config.json of vit_jax.")
    config = config_from_json(values, f"{directory}/config.json")
    file = directory / "model.safetensors"
    params = read_safetensors(file)
    check_params(config, params, str(file))
    return config, params


def check_params(config: models.ModelConfig, params: models.Params, where: str) -> None:
    """Raises UserError unless `params` has exactly the arrays of `config`, in name and shape."""
    wanted = models.abstract_params(config)
    missing = sorted(set(wanted) - set(params))
    extra = sorted(set(params) - set(wanted))
    check_names(missing, extra, where, config.variant)
    for path, leaf in wanted.items():
        if tuple(params[path].shape) != leaf.shape:
            raise UserError(
                f"{where}: {path} has shape {tuple(params[path].shape)} "
                f"but {config.variant} needs {leaf.shape}."
            )


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
