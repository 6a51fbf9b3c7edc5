"""Notes on the data for the plan, one line each."""

from __future__ import annotations

import numpy as np

from vit_jax.data import multilabel
from vit_jax.data.decode import image_size
from vit_jax.data.labels import NO_LABEL
from vit_jax.data.source import Source
from vit_jax.errors import UserError

#: Number of images sampled for their size; and BiT-HyperRule's limit, in pixels.
FEW, SMALL, SMALL_IMAGE_SIZE = 8, 96 * 96, 128


def untrained_classes(train_source: Source, eval_source: Source) -> list[str]:
    """A note if some evaluated classes have no training image, where labels are known."""
    trained, evaluated = train_source.labels, eval_source.labels
    if trained is None or evaluated is None:
        return []
    if train_source.multilabel:
        return _unseen(train_source, trained, evaluated)
    alone = ~np.isin(evaluated, trained)
    if not alone.any():
        return []
    classes = np.unique(evaluated[alone])
    return [
        f"{len(classes):,} classes have no training image (e.g. "
        f"{train_source.class_names[classes[0]]!r}): {int(alone.sum()):,} of the "
        f"{len(evaluated):,} evaluation records cannot be right"
    ]


def _unseen(train_source: Source, trained: np.ndarray, evaluated: np.ndarray) -> list[str]:
    """The same for several labels; also classes that every training image has."""
    names = train_source.class_names
    has, wanted = (multilabel.counts(labels, len(names)) for labels in (trained, evaluated))
    notes = []
    for which, text in (
        ((has == 0) & (wanted > 0), "have no training image and are evaluated"),
        (has == len(trained), "are in every training image and cannot be learnt"),
    ):
        if count := int(which.sum()):
            notes.append(f"{count:,} classes {text} (e.g. {names[int(np.argmax(which))]!r})")
    return notes


def small_images(source: Source, size: tuple[int, int]) -> list[str]:
    """A note if images below 96x96 pixels are enlarged to more than 128 (BiT-HyperRule)."""
    if min(size) <= SMALL_IMAGE_SIZE:
        return []
    sizes = []
    for number in np.unique(np.linspace(0, len(source) - 1, FEW).astype(int)):
        try:
            record = source[int(number)]
            sizes.append(image_size(record["image"], record["name"]))
        except (UserError, TypeError):  # reported when it is read for training
            continue
    height, width = np.median(np.array(sizes), axis=0) if sizes else (SMALL, SMALL)
    if height * width >= SMALL:
        return []
    return [
        f"the images are small, about {width:.0f}x{height:.0f}, and enlarged to "
        f"{size[1]}x{size[0]}; for originals under 96x96 pixels BiT-HyperRule's size is "
        f"{SMALL_IMAGE_SIZE} (resized to 160)"
    ]


def unlabelled(source: Source) -> int | None:
    """The index of a record without a label; None if all have one, as far as is cheap to check.

    Where labels are stored in records only, three are read.
    """
    labels = source.labels
    if labels is not None:
        found = np.flatnonzero(multilabel.withheld(labels))
        return int(found[0]) if len(found) else None
    few = sorted({0, len(source) // 2, len(source) - 1}) if len(source) else []
    return next((number for number in few if np.any(np.less(source[number]["label"], 0))), None)


def withheld(source: Source) -> bool:
    """Whether the labels of a source are withheld, as in test splits of competitions."""
    if source.labels is not None:
        return len(source) > 0 and bool(multilabel.withheld(source.labels).all())
    return unlabelled(source) is not None


def check_labelled(source: Source) -> None:
    """Raises UserError if a record has no label; names it."""
    if (number := unlabelled(source)) is not None:
        name = source.name(number)
        raise UserError(
            f"{source.spec}: the record {name} has no label ({NO_LABEL} or none); choose another "
            "split, with config.data.train_split and config.data.eval_split, or leave it out."
        )


def one_class(source: Source) -> UserError:
    """The message on training data with a single class."""
    return UserError(
        f"{source.spec} has only one class, {', '.join(map(repr, source.class_names))}; "
        f"classification needs two.{''.join(f' Note: {note}.' for note in source.notes)}"
    )
