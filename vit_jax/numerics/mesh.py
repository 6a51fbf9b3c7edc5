"""What a layer knows of the mesh of its arrays, if there is one.

The mesh is read from the types of arrays, so that models are built without one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array
#: Axes of a mesh that images and heads are split over (vit_jax/runtime/sharding.py).
IMAGES, HEADS = ("data", "fsdp"), "tensor"


def of(array: Array):
    """The mesh of the jitted function's argument that `array` comes from; it may be empty."""
    return jax.typeof(array).sharding.mesh


def on_the_mesh(
    run: Callable, *arrays: Array, inputs: Sequence[str], outputs: object, heads: int = 0
):
    """`run(*arrays)` under `shard_map` over images and heads, if the first array is on a mesh.

    XLA cannot partition a kernel by itself. An axis that does not divide evenly is not sharded.

    Args:
      inputs, outputs: the axes of each array: "b" images, "h" heads, "." neither.
    """
    mesh = of(arrays[0])
    if mesh.empty or mesh.size == 1:
        return run(*arrays)
    images = tuple(axis for axis in IMAGES if axis in mesh.axis_names)
    share = math.prod(mesh.shape[axis] for axis in images)
    split = {"b": images if arrays[0].shape[0] % share == 0 else None, ".": None}
    split["h"] = HEADS if heads and heads % mesh.shape.get(HEADS, 1) == 0 else None  # type: ignore
    spec = lambda axes: PartitionSpec(*(split[axis] for axis in axes))  # noqa: E731
    return jax.shard_map(
        run,
        mesh=mesh,
        in_specs=tuple(map(spec, inputs)),
        out_specs=jax.tree.map(spec, outputs),
        check_vma=False,
    )(*arrays)


def split_by_image(x: Array) -> Array:
    """x (b, ...) constrained to be sharded over the images, and so its gradient.

    Weights sharded over the same axes are then gathered for a product. Otherwise XLA's partitioner
    may gather the activations of all images instead (docs/performance.md).
    """
    mesh = of(x)
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1:  # weights are whole
        return x
    images = tuple(axis for axis in IMAGES if axis in mesh.axis_names)
    if x.shape[0] % math.prod(mesh.shape[axis] for axis in images):
        return x
    spec = PartitionSpec(images, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1))
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))


def whole(kernel: Array) -> Array:
    """The whole kernel on every device, where weights are sharded over `fsdp` only.

    A product with it then stays one product: XLA would otherwise split it into one per shard,
    each too small to fill the matrix unit.
    """
    mesh = of(kernel)
    if mesh.empty or mesh.shape.get("fsdp", 1) == 1 or mesh.shape.get(HEADS, 1) > 1:
        return kernel
    return jax.lax.with_sharding_constraint(kernel, NamedSharding(mesh, PartitionSpec()))


def gradient_of_kernel(product: Callable[[Array, Array], Array], x: Array, dy: Array) -> Array:
    """`product(x, dy)` summed over all devices (reduce-scatter): each keeps its own shard of the
    kernel (i, o), on meshes as in `whole`, along the shorter axis (runtime/sharding.py).

    XLA would again make many products of it, or sum the whole on every device.
    """
    mesh = of(x)
    parts = 1 if mesh.empty or mesh.shape.get(HEADS, 1) > 1 else mesh.shape.get("fsdp", 1)
    axis = int(dy.shape[-1] <= x.shape[-1])
    share = parts * mesh.shape.get("data", 1)
    if parts == 1 or x.shape[0] % share or (x, dy)[axis].shape[-1] % parts:
        return product(x, dy)

    def own(x: Array, dy: Array) -> Array:
        partial = jax.lax.psum(product(x, dy), "data")
        return jax.lax.psum_scatter(partial, "fsdp", scatter_dimension=axis, tiled=True)

    images = PartitionSpec(IMAGES)
    out = PartitionSpec(*("fsdp" if i == axis else None for i in (0, 1)))
    return jax.shard_map(own, mesh=mesh, in_specs=(images, images), out_specs=out, check_vma=False)(
        x, dy
    )


def heads_are_split(array: Array) -> bool:
    """Whether an array is on a mesh that shards the heads."""
    mesh = of(array)
    return not mesh.empty and mesh.shape.get(HEADS, 1) > 1
