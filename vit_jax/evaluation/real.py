"""ImageNet ReaL (arXiv 2006.07159): labels that were reassessed, of which an image may have any."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import data
from vit_jax.data.kinds.tfds import TfdsSplits
from vit_jax.data.source import Columns, TableSource
from vit_jax.data.specs import parse_spec
from vit_jax.errors import UserError


def real_accuracy(predictions: Sequence[int] | np.ndarray, real_labels: Sequence) -> float:
    """The share of images, among those with any label, whose prediction is one of their labels.

    Args:
      predictions: the most likely class of every image, in the order of their file names.
      real_labels: for every image its list of labels; images with none do not count.

    Raises:
      UserError: the two have different lengths, or no image has a label.
    """
    if len(predictions) != len(real_labels):
        raise UserError(
            f"ReaL labels are of {len(real_labels)} images and there are {len(predictions)} "
            "predictions; both must be in the order of the file names."
        )
    hits = [
        int(prediction) in labels
        for prediction, labels in zip(predictions, real_labels, strict=True)
        if len(labels)
    ]
    if not hits:
        raise UserError("No image has a ReaL label.")
    return float(np.mean(hits))


def read_labels(file: str | Path) -> list[list[int]]:
    """The published `real.json`: a list of labels for every validation image, by file name.

    Raises:
      UserError: no such file, or it is not that list.
    """
    try:
        labels = json.loads(Path(file).read_text())
    except OSError as error:
        raise UserError(
            f"Cannot read the ReaL labels {file} ({error.strerror}); they are real.json of "
            "github.com/google-research/reassessed-imagenet."
        ) from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}).") from error
    if not isinstance(labels, list) or not all(isinstance(row, list) for row in labels):
        raise UserError(f"{file} is not a list of lists of labels.")
    return labels


def in_file_order(source: Any) -> data.Subset:
    """`source` in the order of its file names, ..._val_00000001 first, as the labels are.

    Raises:
      UserError: its records have no file names.
    """
    names = source.names()
    if not all(Path(name).suffix for name in names[:1]):
        raise UserError(
            f"{source.spec} does not know the file names of its images, which ReaL labels are "
            "ordered by; use folder:PATH of the validation images, or tfds:imagenet2012_real."
        )
    order = np.argsort([Path(name).name for name in names], kind="stable")
    return data.Subset(source, order, source.spec)


def open_tfds(spec: str, data_dir: str | None) -> tuple[TableSource, list[list[int]]]:
    """The images of `tfds:imagenet2012_real`, and the ReaL labels of each."""
    _, name, split = parse_spec(spec)
    stored = TfdsSplits(name, data_dir)
    rows = stored.rows(split or "validation")
    names = stored.builder.info.features["original_label"].names
    source = TableSource(
        rows,
        Columns("image", "original_label"),
        names,
        spec=f"tfds:{name}[{split or 'validation'}]",
        version=str(stored.builder.info.version),
    )
    return source, [[int(label) for label in rows[i]["real_label"]] for i in range(len(rows))]
