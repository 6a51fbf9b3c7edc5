"""Class imbalance: weights of the loss, and balanced sampling."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vit_jax import files
from vit_jax.config import ConfigDict
from vit_jax.data.labels import normal
from vit_jax.data.multilabel import counts
from vit_jax.data.source import Source
from vit_jax.errors import UserError, nearest


def check(config: ConfigDict, train: Source) -> None:
    """Raises UserError for settings that conflict with each other or with the data."""
    balanced = config.data.sampling == "balanced"
    name, loss = config.objective.name, config.loss.name
    if train.multilabel and name == "classification" and loss == "softmax_cross_entropy":
        raise UserError(
            f"{train.spec} has several labels per image, and config.loss.name={loss} is for one; "
            "set config.loss.name=sigmoid_cross_entropy."
        )
    if balanced and config.class_weights == "balanced":
        raise UserError(
            "config.data.sampling=balanced and config.class_weights=balanced both correct for rare "
            "classes; leave one of them out."
        )
    if balanced and train.multilabel:
        raise UserError(
            f"config.data.sampling=balanced is for data with one label per image, and {train.spec} "
            "has several; set config.class_weights=balanced instead."
        )
    if balanced and train.labels is None:
        raise UserError(
            f"config.data.sampling=balanced needs all labels of {train.spec}, which are stored "
            "in the records only; give config.class_weights a file instead."
        )


def class_weights(
    config: ConfigDict, train: Source, num_classes: int
) -> tuple[np.ndarray | None, list[str]]:
    """The weights (num_classes,) float32 of `config.class_weights`, and notes on them.

    "balanced" is n / (k n_c) for a class with n_c of n images, where k classes have images. With
    several labels per image it is (n - n_c) / n_c, so that positives and negatives weigh the same.
    A class in no image, or in every image of multi-label data, has the weight 1.

    Raises:
      UserError: unknown labels, or an invalid file of weights.
    """
    setting = config.class_weights
    if setting == "none":
        return None, []
    weights = np.ones(num_classes, np.float32)
    names = train.class_names
    if setting != "balanced":
        weights[: len(names)] = read(setting, names)
        return weights, []
    if train.labels is None:
        raise UserError(
            f"config.class_weights=balanced needs all labels of {train.spec}, which are stored "
            "in the records only; give it a JSON file of {class: weight} instead."
        )
    there = counts(train.labels, num_classes)
    total = len(train)
    known = (there > 0) & (there < total) if train.multilabel else there > 0
    if train.multilabel:
        weights[known] = (total - there[known]) / there[known]
    else:
        weights[known] = total / (known.sum() * there[known])
    weights[len(names) :] = 1
    notes = []
    if known.any():
        low, high = (
            int(np.flatnonzero(known)[at(weights[known])]) for at in (np.argmin, np.argmax)
        )
        notes.append(
            f"class_weights: from {weights[low]:.3g} ({names[low]!r}) to {weights[high]:.3g} "
            f"({names[high]!r})"
        )
    if unknown := [name for name, has in zip(names, known, strict=False) if not has]:
        which = "no training image, or every one" if train.multilabel else "no training image"
        notes.append(
            f"class_weights: {len(unknown):,} classes have {which} (e.g. {unknown[0]!r}); their "
            "weight is 1"
        )
    return weights, notes


def read(file: str, names: tuple[str, ...]) -> np.ndarray:
    """Weights (k,) in the order of the classes, from a JSON file of {class: weight}.

    Raises:
      UserError: no such file, a missing or unknown class, or an invalid weight.
    """
    where = f"config.class_weights={file}"
    try:
        found = files.read_json(Path(file).expanduser())
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if found is None:
        hint = nearest(file, ("none", "balanced"))
        raise UserError(f"{where} does not exist; use none, balanced or a JSON file.{hint}")
    if not isinstance(found, Mapping):
        raise UserError(f"{where} is not a JSON object of {{class: weight}}.")
    given = {normal(str(name)): value for name, value in found.items()}
    if unknown := [name for name in given if name not in names]:
        raise UserError(
            f"{where} has the class {unknown[0]!r}, which the data do not have."
            f"{nearest(unknown[0], names)}"
        )
    if missing := [name for name in names if name not in given]:
        raise UserError(
            f"{where} has no weight for the class {missing[0]!r}; all classes need one."
        )
    for name, value in given.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value <= 0:
            raise UserError(f"{where}: the weight of {name!r} is {value!r}; it must be above 0.")
    return np.array([given[name] for name in names], np.float32)


def sampling_notes(train: Source) -> list[str]:
    """Notes on balanced sampling: the effect on an epoch, and classes without examples."""
    assert train.labels is not None
    there = counts(train.labels, train.num_classes)
    known = np.flatnonzero(there)
    order = known[np.argsort(there[known], kind="stable")]
    few, many = order[0], order[-1]
    share = len(train) / len(known)
    notes = [
        f"balanced sampling: an epoch is {len(train):,} draws, {share:,.4g} for each of "
        f"{len(known):,} classes: an image of {train.class_names[few]!r} is drawn "
        f"{share / there[few]:.3g} times, of {train.class_names[many]!r} "
        f"{share / there[many]:.3g} times"
    ]
    if gone := np.flatnonzero(there == 0).tolist():
        notes.append(
            f"balanced sampling: {len(gone):,} classes have no training image and are never drawn "
            f"(e.g. {train.class_names[gone[0]]!r})"
        )
    return notes
