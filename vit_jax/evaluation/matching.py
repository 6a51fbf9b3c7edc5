"""Matching classes of data to classes of a model."""

from __future__ import annotations

import numpy as np

from vit_jax import models
from vit_jax.data.labels import match_classes
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation.forward import Forward

IMAGENET21K = (
    "Published ImageNet-21k weights have 21,843 outputs, two of them for classes without images; "
    "the fall 2011 release has images of 21,841 classes, numbered differently."
)


def match_labels(model: Forward | models.ModelConfig, source: Source) -> tuple[np.ndarray, str]:
    """The model's class for each class of the data, and a remark (may be "").

    Classes are matched by name if both sides have names, otherwise by number.

    Raises:
      UserError: the data have classes that the model lacks.
    """
    theirs = tuple(source.class_names)
    if not model.labels:
        if source.num_classes != model.num_classes:
            both = {source.num_classes, model.num_classes}
            why = " " + IMAGENET21K if both == {21_841, 21_843} else ""
            raise UserError(
                f"{source.spec} has {source.num_classes} classes and the model "
                f"{model.num_classes}; fine-tune the model on this data first.{why}"
            )
        return np.arange(source.num_classes, dtype=np.int32), ""
    try:
        numbers, by = match_classes(model.labels, theirs, there=source.spec)
    except UserError as error:
        base = source.spec.partition("[")[0]
        how = f" To match them by number: {base}?match=number"
        same = len(theirs) == model.num_classes and "match=number" not in str(error)
        raise UserError(
            f"{error} Fine-tune the model on this data first.{how if same else ''}"
        ) from None
    of = f" ({len(theirs)} of the model's {model.num_classes})"
    return numbers, "" if by == "same" else f"classes matched by {by}{of}"
