"""The objective of a configuration, and its loss."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import config as configuration, models
from vit_jax.config import ConfigDict
from vit_jax.errors import UserError
from vit_jax.numerics import Numerics
from vit_jax.objectives import losses
from vit_jax.objectives.classification import classification
from vit_jax.objectives.labels import reads_labels
from vit_jax.objectives.masked_patches import masked_patches
from vit_jax.objectives.objective import Objective

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": classification,
    "masked_patches": masked_patches,
}


def needs_labels(config: ConfigDict) -> bool:
    """Whether the objective of a configuration needs labels.

    Raises:
      UserError: there is no such objective.
    """
    make = configuration.pick(OBJECTIVES, config.objective.name, "config.objective.name")
    return reads_labels(make)


def objective_of(
    config: ConfigDict,
    model: models.ModelConfig,
    numerics: Numerics,
    class_weights: np.ndarray | None = None,
) -> Objective:
    """The objective of a configuration.

    An objective is a function whose arguments are filled in by name: `model`, `num_classes`,
    `multilabel` and `apply` (`apply(params, x, method="encode")` is a part of the model), and from
    the configuration `loss`, `training_loss`, `mixup_alpha` and `cutmix_alpha`. Its other arguments
    are options, the keys of `config.objective`. The loss already includes the class weights (k,).

    Raises:
      UserError: an unknown objective or option, or a setting that it does not read.
    """
    loss = loss_function(config)
    if class_weights is not None:
        loss = functools.partial(loss, class_weights=class_weights)
    _, apply = models.as_functions(model, numerics)
    offered = {
        "apply": apply,
        "model": model,
        "numerics": numerics,
        "num_classes": model.num_classes,
        "loss": loss,
        "training_loss": None if is_plain(config, model.multilabel) else loss,
        "multilabel": model.multilabel,
        "mixup_alpha": config.mixup_alpha,
        "cutmix_alpha": config.cutmix_alpha,
    }
    name = config.objective.name
    takes = inspect.signature(
        configuration.pick(OBJECTIVES, name, "config.objective.name")
    ).parameters
    for setting, read, changed in (
        ("loss", "loss", config.loss.name != "softmax_cross_entropy" or is_smooth(config)),
        ("class_weights", "loss", config.class_weights != "none"),
        ("mixup_alpha", "mixup_alpha", bool(config.mixup_alpha)),
        ("cutmix_alpha", "cutmix_alpha", bool(config.cutmix_alpha)),
    ):
        if changed and read not in takes:
            raise UserError(
                f"the objective {name} does not read config.{setting}; leave it at its default."
            )
    given = {key: value for key, value in offered.items() if key in takes}
    return configuration.call(OBJECTIVES, "config.objective", config.objective, **given)


def loss_function(config: ConfigDict) -> Callable:
    """The configured loss, checked before it is traced."""
    options = config.loss.to_dict()
    empty = jnp.zeros((1, 2))
    jax.eval_shape(
        lambda: configuration.call(
            *(losses.LOSSES, "config.loss", options),
            logits=empty,
            targets=empty,
            class_weights=None,
        )
    )
    return functools.partial(losses.LOSSES[options.pop("name")], **options)


def is_plain(config: ConfigDict, multilabel: bool) -> bool:
    """Whether the configured loss equals the plain loss of evaluations."""
    plain = "sigmoid_cross_entropy" if multilabel else "softmax_cross_entropy"
    return (config.loss.name, config.class_weights) == (plain, "none") and not is_smooth(config)


def is_smooth(config: ConfigDict) -> bool:
    """Whether labels are smoothed."""
    return bool(config.loss.get("label_smoothing", 0))
