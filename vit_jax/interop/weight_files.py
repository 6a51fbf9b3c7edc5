"""The arrays of a foreign directory: safetensors or torch's `.bin`, single or sharded."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vit_jax import files
from vit_jax.errors import UserError
from vit_jax.models import saved

Arrays = dict[str, np.ndarray]

#: Weights in unsupported formats.
UNREAD = ("*.bin", "*.pth", "*.pt", "*.h5", "*.msgpack")
PIP = "pip install torch"


def has_weights(directory: Path) -> bool:
    """Whether a directory looks like a foreign model, supported or not."""
    names = ("model.safetensors*", "config.json", *UNREAD)
    return any(next(directory.glob(name), None) is not None for name in names)


def read_weights(directory: Path) -> Arrays:
    """All arrays of a foreign directory.

    Reads the first of `model.safetensors`, the shards of `model.safetensors.index.json`,
    `pytorch_model.bin`, the shards of `pytorch_model.bin.index.json`.

    Raises:
      UserError: there are none, a shard is missing or lacks an array, a file is damaged, or torch
        is needed and not installed.
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
        f"{directory} has its weights in {other}, which is not supported. Save the model with "
        "save_pretrained as model.safetensors or pytorch_model.bin, single or sharded."
        if other
        else f"{directory} has no model.safetensors and no index of shards; copy it again."
    )


#: Beginnings of all names in files of wrapped models: DataParallel, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.")


def unwrapped(weights: Arrays, where: str) -> Arrays:
    """The arrays without the names of wrappers that all of theirs begin with, which is printed."""
    for wrapper in [*WRAPPERS, *WRAPPERS] if weights else ():
        if all(name.startswith(wrapper) for name in weights):
            print(f"{where}: all names begin with {wrapper}, which is left out")
            weights = {name.removeprefix(wrapper): array for name, array in weights.items()}
    return weights


def read_shards(index: Path, read: Callable[[Path], Arrays]) -> Arrays:
    """The arrays of all shards that an index names.

    Raises:
      UserError: it names a file elsewhere, a shard is missing or lacks an array in the index, or
        two shards have the same one.
    """
    values = files.read_json(index)
    table = values.get("weight_map") if isinstance(values, dict) else None
    if not isinstance(table, dict) or not table:
        raise UserError(f"{index} has no weight_map; copy it again.")
    shards = sorted(set(map(str, table.values())))
    for shard in shards:  # before reading gigabytes
        if Path(shard).name != shard or "\\" in shard:
            raise UserError(f"{index} names {shard!r}, which is not a file beside it.")
        if not (index.parent / shard).is_file():
            raise UserError(f"{index.parent / shard} is missing, but {index.name} names it.")
    weights: Arrays = {}
    holder: dict[str, str] = {}
    for shard in shards:
        found = read(index.parent / shard)
        lacking = sorted(name for name, of in table.items() if of == shard and name not in found)
        if lacking:
            raise UserError(f"{index.parent / shard} lacks {lacking[0]}, which {index.name} names.")
        if twice := sorted(found.keys() & weights.keys()):
            raise UserError(
                f"{index.parent} has {twice[0]} twice, in {holder[twice[0]]} and in {shard}; "
                "copy it again."
            )
        holder |= dict.fromkeys(found, shard)
        weights |= found
    return weights


def has_torch() -> bool:
    """Whether torch is installed, without importing it."""
    return importlib.util.find_spec("torch") is not None


def read_bin(file: Path) -> Arrays:
    """The tensors of a file of `torch.save`; no code in it is run.

    Raises:
      UserError: torch is not installed, the file is damaged, or it has more than tensors.
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
            f"{file} has more than tensors, or is damaged; it is not read, as other objects could "
            "run code. Save only the model's state_dict()."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        raise UserError(f"{file} is damaged ({reason}); copy it again.") from error
    other = [name for name, value in _items(found, file) if not isinstance(value, torch.Tensor)]
    if other:
        raise UserError(
            f"{file} has {other[0]!r}, which is not a tensor; save only the model's state_dict()."
        )
    arrays = {}
    for name, tensor in found.items():
        try:
            arrays[name] = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        except (RuntimeError, TypeError) as error:  # sparse or quantised
            raise UserError(
                f"{file}: {name} has the dtype {tensor.dtype} ({tensor.layout}), not supported; "
                "save the weights in float32, float16 or bfloat16 first."
            ) from error
    return arrays


def _items(found: object, file: Path) -> list[tuple[str, object]]:
    """The entries of the unpickled object, which must be a dict by name."""
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise UserError(f"{file} is not a dict of tensors; save the model's state_dict().")
    return list(found.items())
