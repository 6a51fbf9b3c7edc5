"""The same step of other implementations, from their checkouts, to compile beside ours.

Their own models, with the loss, Adam and clipping of optax that they use. Parameters and moments
are float32. `big_vision` has a compute dtype (`dtype_mm`); `vision_transformer` has none and leaves
the rounding of products to the compiler.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import ml_collections
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import vit_jax
from vit_jax import models
from vit_jax.bench.jobs import CLIP, LEARNING_RATE, WEIGHT_DECAY
from vit_jax.errors import UserError


def big_vision(checkout: Path, config: models.ViTConfig) -> tuple[Any, Callable[[Any], Any]]:
    """The module of big_vision/models/vit.py, and how to get logits from its output."""
    sys.path.insert(0, str(checkout))
    # A module for checkpoints that needs TensorFlow; the model does not use it.
    sys.modules["big_vision.utils"] = types.ModuleType("big_vision.utils")
    library = importlib.import_module("big_vision.models.vit")
    module = library.Model(
        config.num_classes,
        patch_size=config.patch_size,
        width=config.hidden_size,
        depth=config.num_layers,
        mlp_dim=config.mlp_dim,
        num_heads=config.num_heads,
        pool_type="tok",
        dropout=config.dropout_rate,
        dtype_mm=config.dtype,
    )
    return module, lambda found: found[0]


def vision_transformer(checkout: Path, config: models.ViTConfig) -> tuple[Any, Callable]:
    """The module of their vit_jax/models_vit.py; their package has our name."""
    for name in ("models_resnet", "models_vit"):
        file = checkout / "vit_jax" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"vit_jax.{name}", file)
        assert spec is not None and spec.loader is not None
        library = importlib.util.module_from_spec(spec)
        setattr(vit_jax, name, library)  # one of them imports the other from `vit_jax`
        spec.loader.exec_module(library)
    module = library.VisionTransformer(
        num_classes=config.num_classes,
        patches=ml_collections.ConfigDict({"size": config.patch_size}),
        hidden_size=config.hidden_size,
        transformer={
            "mlp_dim": config.mlp_dim,
            "num_heads": config.num_heads,
            "num_layers": config.num_layers,
            "attention_dropout_rate": 0.0,
            "dropout_rate": config.dropout_rate,
        },
    )
    return module, lambda found: found


PEERS = {"big_vision": big_vision, "vision_transformer": vision_transformer}


def module_of(name: str, checkout: str, config: models.ModelConfig) -> tuple[Any, Callable]:
    """A peer's module for the architecture of `config`.

    Raises:
      UserError: not a checkout, missing imports, or no such model.
    """
    if type(config) is not models.ViTConfig or (
        config.classifier,
        config.representation_size,
        config.position_embedding,
        config.stem_depths,
    ) != ("token", None, "1d", None):
        raise UserError(f"--peers={name} has no {config.variant} with these settings.")
    try:
        return PEERS[name](Path(checkout), config)
    except (ImportError, OSError, AttributeError) as error:
        raise UserError(f"--peers={name}={checkout} cannot be used: {error}.") from error


def step_of(
    name: str, checkout: str, config: models.ModelConfig, mesh: Mesh, batch: int, *, train: bool
) -> tuple[Any, tuple[Any, ...]]:
    """As `vit_jax.bench.steps.step_of`, for a peer, on one chip."""
    module, logits_of = module_of(name, checkout, config)
    where = NamedSharding(mesh, PartitionSpec())
    optimizer = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    )

    def logits(params, images, **more):
        found = module.apply({"params": params}, models.normalise(images), **more)
        return logits_of(found)

    def step(state, batch):
        params, moments, count = state
        rngs = {"dropout": jax.random.fold_in(jax.random.key(0), count)}

        def loss(params):
            found = logits(params, batch["image"], train=True, rngs=rngs)
            return optax.softmax_cross_entropy_with_integer_labels(found, batch["label"]).mean()

        value, gradients = jax.value_and_grad(loss)(params)
        changes, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, changes), moments, count + 1), value

    def start(key):
        images = jax.numpy.zeros((1, *config.image_size, 3), np.float32)
        params = module.init(key, images, train=False)["params"]
        return params, optimizer.init(params), jax.numpy.zeros((), np.int32)

    state = jax.eval_shape(start, jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *config.image_size, 3), np.uint8)
    shapes: tuple[Any, ...] = state[0], images
    if train:
        shapes = state, {"image": images, "label": jax.ShapeDtypeStruct((batch,), np.int32)}
    arguments = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), shapes
    )
    if train:
        return jax.jit(step, donate_argnums=0, out_shardings=where), arguments
    infer = lambda params, images: logits(params, images, train=False)  # noqa: E731
    return jax.jit(infer, out_shardings=where), arguments
