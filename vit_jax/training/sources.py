"""The data of a run: training and evaluation sources, and notes on them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vit_jax import models
from vit_jax.config import ConfigDict
from vit_jax.data import specs, transforms
from vit_jax.data.relabel import with_classes
from vit_jax.data.remarks import one_class, untrained_classes
from vit_jax.data.source import Source, Without, shared_records
from vit_jax.errors import UserError
from vit_jax.training import imbalance


class Data(NamedTuple):
    """Training and evaluation sources, and their transforms.

    class_weights: (k,) float32 for the loss; None: all are 1.
    """

    train: Source
    evaluation: Source
    train_transform: transforms.Transform
    eval_transform: transforms.Transform
    notes: list[str]
    class_weights: np.ndarray | None = None


def open_sources(config: ConfigDict, *, labelled: bool = True) -> tuple[Source, Source, list[str]]:
    """The training and the evaluation source of `config.data`, and notes on the choice.

    Their classes are those of the training source, matched by name, in any order.

    Args:
      labelled: False: labels are not read; none, or one class, are accepted.

    Raises:
      UserError: training or evaluation is impossible: one class, other classes, no labels.
    """
    spec, options = config.data.dataset, {"data_dir": config.data.data_dir}
    train_split, eval_split = config.data.train_split, config.data.eval_split
    notes: list[str] = []
    if train_split and not eval_split:
        raise UserError(
            "config.data.train_split and .eval_split belong together: train_split alone does not "
            "say what to evaluate on; set both."
        )
    if train_split and eval_split:
        train_spec, eval_spec = f"{spec}[{train_split}]", f"{spec}[{eval_split}]"
    else:
        train_spec, eval_spec, notes = specs.choose_splits(
            spec, **options, watch=True, labelled=labelled
        )
        if eval_split:
            eval_spec, notes = f"{spec}[{eval_split}]", []
    exclude = config.data.exclude or None
    train_source = specs.open_source(train_spec, exclude=exclude, labelled=labelled, **options)
    eval_source = specs.open_source(eval_spec, labelled=labelled, **options)
    if not labelled:
        return train_source, eval_source, notes
    if train_source.num_classes < (1 if train_source.multilabel else 2):
        raise one_class(train_source)
    eval_source = with_classes(eval_source, train_source.class_names, train_source.spec)
    return train_source, eval_source, notes


def data_notes(train_source: Source, eval_source: Source) -> list[str]:
    """Notes on training and evaluation data for the plan."""
    notes = list(dict.fromkeys((*train_source.notes, *eval_source.notes)))
    if shared := shared_records(train_source, eval_source):
        notes.append(
            f"{shared:,} of the {len(eval_source):,} evaluation records are also in training: "
            f"{eval_source.spec} overlaps {train_source.spec}"
        )
    if isinstance(train_source, Without):
        named = len(train_source.removed) + train_source.missing
        notes.append(
            f"data.exclude: {len(train_source.removed):,} of {named:,} names found and removed"
        )
    return notes + untrained_classes(train_source, eval_source)


def data_of(
    config: ConfigDict, model: models.ModelConfig, train: Source, evaluation: Source, notes: list
) -> Data:
    """The data of a run of `model`, from its open sources.

    Raises:
      UserError: settings that conflict with the data.
    """
    imbalance.check(config, train)
    given = ("size", "train", "orient", "max_pixels", "channels")
    transforms.check_free(config.augment, given, "augment")
    train_transform = transforms.make_transform(
        size=model.image_size,
        train=True,
        orient=config.data.orient,
        max_pixels=config.data.max_image_pixels,
        channels=model.channels,
        **config.augment.to_dict(),
    )
    eval_transform = transforms.evaluation_transform(
        model.image_size, model.preprocessing, max_pixels=config.data.max_image_pixels
    )
    weights, of_weights = imbalance.class_weights(config, train, model.num_classes)
    notes = [*notes, *data_notes(train, evaluation), *of_weights]
    if config.data.sampling == "balanced":
        notes += imbalance.sampling_notes(train)
    return Data(train, evaluation, train_transform, eval_transform, notes, weights)
