"""Layer-wise learning-rate decay and frozen blocks, for fine-tuning a ViT.

The paper fine-tunes all weights at one learning rate (section 4.1); both are off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import optax

from vit_jax import models
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.objectives.objective import Objective

#: Parameters before the first block.
EMBEDDING = ("patch_embedding", "class_token", "position_embedding", "stem")


def layer_of(path: str, num_layers: int) -> int:
    """0 for the embeddings and a hybrid's stem, 1 to L for the blocks, L + 1 for the rest."""
    first, *rest = path.split("/")
    if first == "blocks":
        return int(rest[0]) + 1
    return 0 if first in EMBEDDING else num_layers + 1


def rate_of(config: ConfigDict, model: models.ModelConfig) -> Callable[[str], float] | None:
    """The multiplier of a parameter's learning rate, by its path; None: 1 for all.

    It is `layer_decay` ** (L + 1 - layer) as in BEiT (arXiv 2106.08254), and 0 up to the last
    frozen block.

    Raises:
      UserError: a model without blocks, or with too few.
    """
    decay, frozen = config.layer_decay, config.freeze_blocks
    if decay == 1 and not frozen:
        return None
    if not isinstance(model, models.ViTConfig):
        setting = f"freeze_blocks={frozen}" if frozen else f"layer_decay={decay:g}"
        raise UserError(
            f"config.{setting} is for models with ViT blocks, and {model.variant} has "
            "none; leave it out."
        )
    last = model.num_layers
    if frozen > last:
        raise UserError(
            f"config.freeze_blocks={frozen} exceeds the {last} blocks of {model.variant}; "
            f"{last} trains only the head and the norm before it."
        )

    def rate(path: str) -> float:
        layer = layer_of(path, last)
        return 0.0 if frozen and layer <= frozen else decay ** (last + 1 - layer)

    return rate


def with_rates(
    optimizer: optax.GradientTransformation, rate: Callable[[str], float] | None
) -> optax.GradientTransformation:
    """The optimizer with updates multiplied by `rate(path)`, weight decay included.

    Its state is that of the wrapped optimizer.
    """
    if rate is None:
        return optimizer

    def update(updates, state, params=None):
        direction, state = optimizer.update(updates, state, params)
        return {path: rate(path) * value for path, value in direction.items()}, state

    return optax.GradientTransformation(optimizer.init, update)


def frozen(objective: Objective, rate: Callable[[str], float] | None) -> Objective:
    """The objective with stopped gradients for parameters whose rate is 0."""
    if rate is None:
        return objective

    def loss(params: Mapping[str, jax.Array], batch, key) -> jax.Array:
        params = {
            path: value if rate(path) else jax.lax.stop_gradient(value)
            for path, value in params.items()
        }
        return objective.loss(params, batch, key)

    return objective._replace(loss=loss)


def check(config: ConfigDict) -> None:
    """Raises UserError for frozen blocks without trained weights."""
    if config.freeze_blocks and not config.init_from:
        raise UserError(
            f"config.freeze_blocks={config.freeze_blocks} would freeze random weights; set "
            "config.init_from to trained ones, or leave it out."
        )
