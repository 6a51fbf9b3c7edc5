"""Evaluating a checkpoint by named protocols: the table of suites, and what each writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vit_jax import data, losses, models, sharding, steps
from vit_jax.errors import UserError, nearest
from vit_jax.evaluation import classification
from vit_jax.interop import adapt, export, load


def match_labels(config: models.ModelConfig, source: Any) -> tuple[np.ndarray, str]:
    """Which of the model's classes each class of the data is, and a remark ("" if none is due).

    Classes are matched by name where both sides know the names, otherwise by number.

    Raises:
      UserError: the data has classes that the model does not have.
    """
    identity = np.arange(source.num_classes, dtype=np.int32)
    ours, theirs = tuple(config.labels), tuple(source.class_names)
    if ours == theirs or not ours:
        if source.num_classes != config.num_classes:
            raise UserError(
                f"{source.spec} has {source.num_classes} classes and the model "
                f"{config.num_classes}; fine-tune the model on this data first."
            )
        return identity, ""
    position = {name: i for i, name in enumerate(ours)}
    if all(name in position for name in theirs):
        mapping = np.array([position[name] for name in theirs], np.int32)
        return mapping, f"classes matched by name ({len(theirs)} of the model's {len(ours)})"
    if len(ours) == len(theirs):
        return identity, (
            f"the class names differ (e.g. {ours[0]!r} and {theirs[0]!r}); matched by number"
        )
    unknown = next(name for name in theirs if name not in position)
    raise UserError(
        f"{source.spec} has the class {unknown!r}, which the model does not know."
        f"{nearest(unknown, ours)} Fine-tune the model on this data first."
    )


def run_classification(
    config: models.ModelConfig,
    params: models.Params,
    source: Any,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[int], None] | None = None,
) -> tuple[dict[str, float], list[dict], str]:
    """Accuracy over all of `source`: (summary, per-class rows, remark)."""
    if adapt.is_zero_head(params):
        raise UserError(
            "The classifier of this checkpoint is all zeros (published ImageNet-21k weights come "
            "so); fine-tune it first, or use its features."
        )
    mapping, remark = match_labels(config, source)
    _, apply = models.as_functions(config)
    options = dict(config.preprocessing) or {"name": "resize"}
    transform = data.make_transform(size=config.image_size, train=False, **options)
    divisor = sharding.batch_divisor(mesh)
    batch_size = -(-min(batch_size, len(source)) // divisor) * divisor
    batches = data.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    batches = ({**batch, "label": mapping[batch["label"]]} for batch in batches)
    step = classification.jit_eval_step(
        steps.make_eval_step(
            apply, loss=losses.softmax_cross_entropy, num_classes=config.num_classes
        ),
        mesh,
    )
    on_mesh = sharding.params_to_devices(params, mesh)
    results = classification.run(
        step, on_mesh, batches, mesh, num_examples=len(source), on_batch=on_batch
    )
    names = config.labels or source.class_names
    return classification.summarise(results), classification.per_class(results, names), remark


def accuracy_of_export(
    checkpoint: str, exported: str, form: str, spec: str, *, batch_size: int
) -> tuple[float, float]:
    """Top-1 of a checkpoint, and of what was exported from it, on a data set."""
    config, params = load.read(checkpoint)
    source = data.open_source(spec)
    mapping, _ = match_labels(config, source)
    summary, _, _ = run_classification(
        config, params, source, batch_size=batch_size, mesh=sharding.make_mesh()
    )
    options = dict(config.preprocessing) or {"name": "resize"}
    transform = data.make_transform(size=config.image_size, train=False, **options)
    _, open_ = export.FORMATS[form]
    run, _ = open_(Path(exported))
    correct = seen = 0
    for batch in data.eval_batches(source, transform, batch_size=batch_size):
        images = np.asarray(batch["image"], np.float32) / 127.5 - 1
        found = run(images)
        real = batch["mask"]
        correct += int((found.argmax(-1) == mapping[batch["label"]])[real].sum())
        seen += int(real.sum())
    assert seen == len(source)
    return summary["accuracy"], correct / seen


def write(directory: Path, suite: str, record: dict, rows: list[dict]) -> Path:
    """Adds a suite's record to `evaluation.json` and writes its per-class CSV beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "evaluation.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content[suite] = record
    partial = file.with_suffix(".json.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, file)
    with open(directory / f"evaluation_{suite}_per_class.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file
