"""Sharding: one mesh with axes data, fsdp and tensor, and a table of rules for parameters."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vit_jax.errors import UserError, counted

Tree = TypeVar("Tree")
AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))

# Parameter path -> mesh axis of each array axis. The first match applies; parameters without a
# match (norms, biases, position embeddings) are small and replicated.
RULES: tuple[tuple[str, tuple[str | None, ...]], ...] = (
    (r"attention/qkv/kernel", ("fsdp", None, "tensor", None)),
    (r"attention/qkv/bias", (None, "tensor", None)),
    (r"attention/out/kernel", ("tensor", "fsdp")),
    (r"mlp/dense1/kernel", ("fsdp", "tensor")),
    (r"mlp/dense1/bias", ("tensor",)),
    (r"mlp/dense2/kernel", ("tensor", "fsdp")),
    (r"patch_embedding/kernel", (None, None, None, "fsdp")),
    (r"pre_logits/kernel", (None, "fsdp")),
    (r"head/kernel", ("fsdp", "tensor")),
    (r"conv\w*/kernel", (None, None, "fsdp", None)),
)


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices=None) -> Mesh:
    """A mesh over all devices; one axis may be -1, which takes the remaining devices.

    Raises:
      UserError: the sizes do not multiply to the number of devices.
    """
    devices = np.asarray(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    known = int(np.prod([size for size in sizes if size > 0]))
    if sizes.count(-1) == 1:
        sizes[sizes.index(-1)] = devices.size // known
    if min(sizes) < 1 or int(np.prod(sizes)) != devices.size:
        axes = dict(data=data, fsdp=fsdp, tensor=tensor)
        for name, size in axes.items():
            if size < 1 and size != -1:
                raise UserError(f"config.mesh.{name}={size} must be positive, or -1 for the rest.")
        free = [name for name, size in axes.items() if size == -1]
        product = " x ".join(str(size) for size in axes.values() if size != -1)
        if len(free) == 1:
            advice = f"choose sizes whose product divides {devices.size}"
        elif free:
            advice = f"only one of them can be -1, and {' and '.join(free)} are"
        else:
            advice = "set config.mesh.data=-1 to use the rest"
        text = ", ".join(f"{name}={size}" for name, size in axes.items())
        raise UserError(
            f"config.mesh is {text}, which does not cover "
            f"{counted(devices.size, 'device')} ({product} are configured); {advice}."
        )
    return Mesh(devices.reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def param_spec(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
    """The sharding of a parameter. An axis that does not divide evenly is not sharded."""
    for pattern, axes in RULES:
        if re.search(rf"(^|/){pattern}$", path) and len(axes) == len(shape):
            return PartitionSpec(
                *(
                    axis if axis and mesh.shape[axis] > 1 and size % mesh.shape[axis] == 0 else None
                    for axis, size in zip(axes, shape, strict=True)
                )
            )
    return PartitionSpec()


def tree_shardings(tree: Tree, params: Mapping[str, jax.Array], mesh: Mesh) -> Tree:
    """Shardings of a training state: per-parameter values are sharded like the parameter."""

    def leaf_sharding(path, leaf):
        name = getattr(path[-1], "key", None) if path else None
        spec = PartitionSpec()
        if name is not None and name in params and leaf.shape == params[name].shape:
            spec = param_spec(name, leaf.shape, mesh)
        return NamedSharding(mesh, spec)

    return jax.tree_util.tree_map_with_path(leaf_sharding, tree)


def params_to_devices(
    params: Mapping[str, jax.Array | np.ndarray], mesh: Mesh
) -> dict[str, jax.Array]:
    """Host arrays, the same on every process, sharded by the table of rules.

    Arrays already on the mesh stay as they are.
    """

    def put(path: str, value: jax.Array | np.ndarray) -> jax.Array:
        where = NamedSharding(mesh, param_spec(path, value.shape, mesh))
        if isinstance(value, jax.Array) and value.sharding == where:
            return value
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, where, lambda index: value[index])

    return {path: put(path, value) for path, value in params.items()}


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Examples are sharded over the data and fsdp axes."""
    return NamedSharding(mesh, BATCH)


def host_rows(mesh: Mesh, batch_size: int, process: int | None = None) -> np.ndarray:
    """The rows of a global batch on the devices of a process, (b,), sorted.

    Processes that share a model replica have the same rows.

    Args:
      process: None: this one.
    """
    process = jax.process_index() if process is None else process
    parts = mesh.devices.reshape(batch_divisor(mesh), -1)  # data and fsdp, tensor
    size = batch_size // len(parts)
    mine = [i for i, part in enumerate(parts) if any(d.process_index == process for d in part)]
    return np.concatenate([np.arange(i * size, (i + 1) * size) for i in mine])


def to_devices(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global arrays, sharded over the mesh, from this process's rows of a batch (`host_rows`)."""
    sharding = batch_sharding(mesh)
    held = host_rows(mesh, batch_divisor(mesh))  # the shards of the batch, as if of one row each

    def put(value: np.ndarray) -> jax.Array:
        size = len(value) // len(held)
        shape = (size * batch_divisor(mesh), *value.shape[1:])

        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            assert index is not None  # as JAX requires for a sharded array
            start, stop, _ = index[0].indices(shape[0])
            first = int(np.searchsorted(held, start // size)) * size
            return np.ascontiguousarray(value[first : first + stop - start])

        return jax.make_array_from_callback(shape, sharding, part)

    return {key: put(np.asarray(value)) for key, value in batch.items()}


def fit_batch(batch_size: int, mesh: Mesh, *, num_examples: int) -> int:
    """An evaluation batch size that the mesh divides: no larger than needed, rounded up."""
    divisor = batch_divisor(mesh)
    return -(-min(batch_size, num_examples) // divisor) * divisor


def batch_divisor(mesh: Mesh) -> int:
    """The number that must divide the global batch."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def gathered(number: int) -> list[int]:
    """All-gather of a number of each process, below 2^31."""
    if jax.process_count() == 1:
        return [number]
    return np.ravel(multihost_utils.process_allgather(np.int32(number))).tolist()
