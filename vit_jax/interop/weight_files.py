"""The arrays of a foreign directory: safetensors or torch's `.bin`, whole or in shards."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.models import saved

Arrays = dict[str, np.ndarray]

#: Weights in formats that are not read.
UNREAD = ("*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack")
PIP = "pip install torch"


def has_weights(directory: Path) -> bool:
    """Whether a directory looks like a foreign model's, perhaps one that cannot be read."""
    names = ("model.safetensors*", "config.json", *UNREAD)
    return any(next(directory.glob(name), None) is not None for name in names)


def read_weights(directory: Path) -> Arrays:
    """All arrays of a foreign directory.

    The first is taken of `model.safetensors`, the shards of `model.safetensors.index.json`,
    `pytorch_model.bin`, the shards of `pytorch_model.bin.index.json`.

    Raises:
      UserError: there are none, a shard is missing or lacks an array, a file is damaged, or it
        takes torch, which is not installed.
    """
    for name, read in (
        ("model.safetensors", saved.read_safetensors),
        ("pytorch_model.bin", read_bin),
    ):
        if (directory / name).is_file():
            return read(directory / name)
        if (directory / f"{name}.index.json").is_file():
            return read_shards(directory / f"{name}.index.json", read)
    other = next((file.name for name in UNREAD for file in sorted(directory.glob(name))), None)
    raise UserError(
        f"{directory} has its weights in {other}, which is not read: only model.safetensors, "
        "pytorch_model.bin, and shards with their index are. Save the model with save_pretrained."
        if other
        else f"{directory} holds no model.safetensors and no index of shards; copy it again."
    )


def read_shards(index: Path, read: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of all shards that an index names.

    Raises:
      UserError: it names a file elsewhere, a shard is missing or lacks an array that the index
        says is there, or two shards hold the same one.
    """
    values = files.read_json(index)
    table = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index} has no weight_map; copy it again.")
    shards = sorted(set(map(str, table.values())))
    for shard in shards:  # before the first gigabyte is read
        if Path(shard).name != shard or "\\" in shard:
            raise UserError(f"{index} names {shard!r}, which is no file beside it.")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index.parent / shard} is missing, and {index.name} names it.")
    weights: Arrays = {}
    holder: dict[str, str] = {}
    for shard in shards:
        found = read(index.parent / shard)
        lacking = sorted(name for name, of in table.items() if of == shard and name not in found)
        if lacking:
            raise UserError(f"{index.parent / shard} lacks {lacking[0]}, which {index.name} names.")
        if twice := sorted(found.keys() & weights.keys()):
            raise UserError(
                f"{index.parent} holds {twice[0]} twice, in {holder[twice[0]]} and in {shard}; "
                "copy it again."
            )
        holder |= dict.fromkeys(found, shard)
        weights |= found
    return weights


def has_torch() -> bool:
    """Whether torch is installed; it is not imported."""
    return importlib.util.find_spec("torch") is not None


def read_bin(file: Path) -> Arrays:
    """The tensors of a file of `torch.save`; nothing that it says is run.

    Raises:
      UserError: torch is not installed, the file is damaged, or it holds more than tensors.
    """
    if not has_torch():
        raise UserError(
            f"{file} is read by torch, which is not installed: {PIP}; or save the model as "
            "safetensors."
        )
    import pickle

    import torch

    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file} holds more than tensors, or is damaged, and is not read: other objects could "
            "run code. Save the model's state_dict() alone."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"{file} is damaged ({reason}); copy it again.") from error
    other = [name for name, value in _items(found, file) if not isinstance(value, torch.Tensor)]
    if other:
        raise UserError(
            f"{file} holds {other[0]!r}, which is no tensor; save the model's state_dict() alone."
        )
    arrays = {}
    for name, tensor in found.items():
        try:
            arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as error:  # sparse or quantised
            raise UserError(
                f"{file}: {name} is of type {tensor.dtype} ({tensor.layout}), which is not read; "
                "save the weights in float32, float16 or bfloat16 first."
            ) from error
    return arrays


def _items(found: object, file: Path) -> list[tuple[str, object]]:
    """The entries of what was unpickled, which must be a table by name."""
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{file} is no table of tensors by name; save the model's state_dict().")
    return list(found.items())
