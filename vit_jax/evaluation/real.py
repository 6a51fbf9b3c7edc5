"""ImageNet ReaL (arXiv 2006.07159): reassessed labels, any number per image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax.data.columns import Columns
from vit_jax.data.kinds.tfds import TfdsSplits
from vit_jax.data.source import Source, Subset, TableSource
from vit_jax.data.specs import parse_spec
from vit_jax.errors import UserError
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward, left_out, measured
from vit_jax.evaluation.result import Result


def real(
    forward: Forward, data: DataSets, *, real_labels: str = "", max_bad_images: int = 0
) -> Result:
    """ImageNet ReaL: accuracy on the reassessed labels; images without labels do not count.

    Args:
      real_labels: real.json, in the order of file names; not needed for tfds:imagenet2012_real,
        which has its own.
      max_bad_images: how many unreadable images may be skipped.
    """
    forward.check_head()
    source, labels = open_real(data, real_labels)
    if source.num_classes not in (1, forward.num_classes):  # 1: a folder without class folders
        raise UserError(
            f"ReaL is for models of ImageNet's classes: {source.spec} has {source.num_classes} and "
            f"the model {forward.num_classes}."
        )
    results = measured(forward, predictions, source, data, max_bad_images=max_bad_images)
    wanted = [labels[i] for i in results["index"]] if len(labels) == len(source) else labels
    accuracy = real_accuracy(results["prediction"], wanted)
    scored = sum(1 for row in wanted if len(row))
    said, lines = left_out(len(results["prediction"]), source)
    return Result(
        {"data": source.spec, "accuracy": accuracy, "num_scored": scored, **said},
        [f"ReaL on {source.spec}: {100 * accuracy:.2f}% of {scored:,} images with labels", *lines],
        {"accuracy": accuracy},
    )


def open_real(data: DataSets, real_labels: str) -> tuple[Source, list[list[int]]]:
    """The images, and the ReaL labels of each.

    Raises:
      UserError: there are no labels, or they belong to other images.
    """
    spec = data.one_spec()
    if spec.startswith("tfds:imagenet2012_real"):
        return open_tfds(spec, data.data_dir)
    if not real_labels:
        raise UserError("ReaL needs --real_labels=real.json, or --data=tfds:imagenet2012_real.")
    labels = read_labels(real_labels)
    return in_file_order(data.open(spec)), labels


def predictions(logits: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    """The most likely class of each example, (b,)."""
    return {"prediction": jnp.argmax(logits, axis=-1)}


def real_accuracy(predictions: Sequence[int] | np.ndarray, real_labels: Sequence) -> float:
    """The fraction of images with labels whose prediction is one of them.

    Args:
      predictions: the most likely class of every image, in the order of their file names.
      real_labels: the list of labels of every image; images without labels do not count.

    Raises:
      UserError: the two have different lengths, or no image has a label.
    """
    if len(predictions) != len(real_labels):
        raise UserError(
            f"There are ReaL labels for {len(real_labels)} images but {len(predictions)} "
            "predictions; both must be in the order of file names."
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


def in_file_order(source: Source) -> Subset:
    """`source` in the order of its file names, ..._val_00000001 first, as the labels are.

    Raises:
      UserError: its records have no file names.
    """
    names = source.names()
    if not all(Path(name).suffix for name in names[:1]):
        raise UserError(
            f"{source.spec} has no file names of its images, by which ReaL labels are ordered; "
            "use folder:PATH of the validation images, or tfds:imagenet2012_real."
        )
    order = np.argsort([Path(name).name for name in names], kind="stable")
    return Subset(source, order, source.spec)


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
