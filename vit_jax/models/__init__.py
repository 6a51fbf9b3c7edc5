"""Models as Flax NNX modules, and as pure functions over a flat tree of parameters.

May import numerics, files and errors: models define what is computed, numerics how.
"""

from dataclasses import replace

from vit_jax.models.axial import AxialConfig, AxialTransformer
from vit_jax.models.functions import (
    Params,
    abstract,
    abstract_params,
    as_functions,
    at_rest,
    build,
    get_params,
    logits,
    normalise,
    numerics_of,
    set_params,
)
from vit_jax.models.resnet import ResNet, ResNetConfig
from vit_jax.models.variants import VARIANTS, ModelConfig, find_variant, get_config, override, pair
from vit_jax.models.vit import VisionTransformer
from vit_jax.models.vit_config import Preprocessing, ViTConfig

__all__ = [
    "VARIANTS",
    "AxialConfig",
    "AxialTransformer",
    "ModelConfig",
    "Params",
    "Preprocessing",
    "ResNet",
    "ResNetConfig",
    "ViTConfig",
    "VisionTransformer",
    "abstract",
    "abstract_params",
    "as_functions",
    "at_rest",
    "build",
    "find_variant",
    "get_config",
    "get_params",
    "logits",
    "normalise",
    "numerics_of",
    "override",
    "pair",
    "replace",
    "set_params",
]
