"""Models as pure functions over a flat tree of parameters.

The rest of the package sees a model as `apply(params, images, ...)`, where `params` maps a path
such as "blocks/0/attention/qkv/kernel" to an array: the canonical names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax.models.axial import AxialConfig, AxialTransformer
from vit_jax.models.layers import Keys
from vit_jax.models.resnet import ResNet, ResNetConfig
from vit_jax.models.variants import ModelConfig
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import Machine, Numerics, of

Config = TypeVar("Config", bound=ModelConfig)
Leaf = TypeVar("Leaf")
Module = TypeVar("Module", bound=nnx.Module)
#: {path: array}, on the host or on devices.
Params = Mapping[str, jax.Array | np.ndarray]
CLASSES = {
    ViTConfig: VisionTransformer,
    AxialConfig: AxialTransformer,
    ResNetConfig: ResNet,
}


def numerics_of(config: ModelConfig, machine: Machine | None = None) -> Numerics:
    """How a model computes on a machine; by default this one.

    Raises:
      UserError: `config.attention` is not supported there.
    """
    if not isinstance(config, ViTConfig):
        return of(config.dtype, machine, remat_policy=config.remat)
    return of(
        config.dtype,
        machine,
        remat_policy=config.remat,
        attention=config.attention,
        heads=config.num_heads,
        head_size=config.hidden_size // config.num_heads,
        tokens=0 if isinstance(config, AxialConfig) else config.num_tokens,
        relative=config.position_embedding == "relative",
    )


def construct(
    config: ModelConfig, key: jax.Array | None, numerics: Numerics | None = None
) -> nnx.Module:
    """The randomly initialised module, built eagerly. numerics: None: `numerics_of(config)`."""
    numerics = numerics or numerics_of(config)
    return CLASSES[type(config)](config, numerics, keys=Keys(key))


def abstract(config: ModelConfig, numerics: Numerics | None = None) -> nnx.Module:
    """The module with shapes instead of arrays: no memory, no arithmetic."""
    return nnx.eval_shape(lambda: construct(config, None, numerics))


def get_params(module: nnx.Module) -> dict[str, jax.Array]:
    """The parameters of a module, by path."""
    flat = nnx.to_flat_state(nnx.state(module, nnx.Param))
    return {"/".join(map(str, path)): leaf.get_value() for path, leaf in sorted_paths(flat)}


def sorted_paths(flat: Iterable[tuple[tuple, Leaf]]) -> list[tuple[tuple, Leaf]]:
    """(path, leaf) pairs sorted by name, numbers compared as text."""
    return sorted(flat, key=lambda item: tuple(map(str, item[0])))


def set_params(module: Module, params: Params) -> Module:
    """Sets `params` (all of them, same shapes) in `module` and returns it."""
    state = nnx.state(module, nnx.Param)
    for path, leaf in nnx.to_flat_state(state):
        leaf.set_value(params["/".join(map(str, path))])
    nnx.update(module, state)
    return module


def abstract_params(config: ModelConfig) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of the parameters of a model, by path; nothing is allocated."""
    shapes: dict = get_params(abstract(config))
    return shapes


def as_functions(
    config: ModelConfig, numerics: Numerics | None = None
) -> tuple[Callable[[jax.Array], dict[str, jax.Array]], Callable[..., Any]]:
    """A model as pure functions.

    Args:
      numerics: how it computes; None: `numerics_of(config)`, the best for this machine.

    Returns:
      `init(key) -> params`, and `apply(params, images, *, key=None, return_intermediates=False)`,
      both to be jitted by the caller. The module's structure is built once, by shape only.
      `apply(params, x, method="encode")` calls another method of the module.
    """
    module = abstract(config, numerics)

    def init(key: jax.Array) -> dict[str, jax.Array]:
        return get_params(construct(config, key))

    graphdef, state = nnx.split(module)
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]
    treedef = jax.tree.structure(state)

    def apply(params: Params, x: jax.Array, *, method: str = "__call__", **kwargs: object) -> Any:
        leaves = [params[path] for path in paths]
        merged = nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))
        return getattr(merged, method)(x, **kwargs)

    return init, apply


def at_rest(config: Config) -> Config:
    """The configuration to store with weights, without settings of how to compute."""
    config = replace(config, dtype="float32", remat=False)
    return replace(config, attention="auto") if isinstance(config, ViTConfig) else config


def build(config: ModelConfig, *, seed: int = 0) -> nnx.Module:
    """A randomly initialised model as an NNX module, ready to call."""
    init, _ = as_functions(config)
    return set_params(abstract(config), jax.jit(init)(jax.random.key(seed)))


#: (module, images (b, h, w, c)) -> logits (b, k), compiled for each shape.
logits = nnx.jit(lambda module, images: module(images))


def normalise(images: jax.Array) -> jax.Array:
    """uint8 0..255 to float32 in [-1, 1]; done on the device, so that uint8 is transferred."""
    return images.astype(jnp.float32) / 127.5 - 1.0
