"""Evaluating a checkpoint by named protocols: the table of suites, and what each writes."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import data, features, losses, models, sharding, steps
from vit_jax.errors import UserError, nearest
from vit_jax.evaluation import calibration, classification, fewshot, knn, real
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
    results = run_model(
        config, params, source, mapping, batch_size=batch_size, mesh=mesh, on_batch=on_batch
    )
    names = config.labels or source.class_names
    summary = classification.summarise(results)
    summary["calibration_error"] = calibration.expected_calibration_error(
        results["confidence"], results["correct"]
    )
    return summary, classification.per_class(results, names), remark


def predicted(request: Request, source: Any, on_batch: Callable[[int], None]) -> np.ndarray:
    """The most likely of the model's classes for every record, (n,)."""
    results = run_model(
        request.config,
        request.params,
        source,
        np.arange(source.num_classes, dtype=np.int32),
        batch_size=request.batch_size,
        mesh=request.mesh,
        on_batch=on_batch,
    )
    return results["prediction"]


def run_model(
    config: models.ModelConfig,
    params: models.Params,
    source: Any,
    mapping: np.ndarray,
    *,
    batch_size: int,
    mesh: jax.sharding.Mesh,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, np.ndarray]:
    """Every example's results (see `classification.run`), with labels renumbered by `mapping`."""
    _, apply = models.as_functions(config)
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    batch_size = sharding.fit_batch(batch_size, mesh, num_examples=len(source))
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
    return classification.run(
        step, on_mesh, batches, mesh, num_examples=len(source), on_batch=on_batch
    )


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
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    _, open_ = export.FORMATS[form]
    run, _ = open_(Path(exported))
    correct = seen = 0
    for batch in data.eval_batches(source, transform, batch_size=batch_size):
        images = np.asarray(batch["image"], np.float32) / 127.5 - 1
        found = run(images)
        mask = batch["mask"]
        correct += int((found.argmax(-1) == mapping[batch["label"]])[mask].sum())
        seen += int(mask.sum())
    assert seen == len(source)
    return summary["accuracy"], correct / seen


class Request(NamedTuple):
    """What `vit-jax evaluate` was asked for; each suite reads what it needs."""

    config: models.ModelConfig
    params: models.Params
    specs: tuple[str, ...]
    data_dir: str | None
    batch_size: int
    mesh: jax.sharding.Mesh
    progress: Callable[[int, str], Any]  # (total, name) -> a context that takes counts
    shots: tuple[int, ...] = fewshot.SHOTS
    seeds: int = 3
    l2: str = "1024"
    ks: tuple[int, ...] = (1, 5, 10, 20)
    real_labels: str | None = None


class Result(NamedTuple):
    """record: for evaluation.json. table: lines to print. rows: for a CSV, if there is one."""

    record: dict[str, Any]
    table: list[str]
    rows: list[dict]


def evaluation_source(request: Request, spec: str) -> Any:
    """The source of a spec; without a split, the evaluation split of the data set."""
    if not spec.endswith("]"):
        spec = data.default_splits(spec, data_dir=request.data_dir)[1]
    return data.open_source(spec, data_dir=request.data_dir)


def suite_classification(request: Request) -> Result:
    """Top-1 and top-5 of the classifier, with the accuracy of every class and calibration."""
    source = evaluation_source(request, one_spec(request))
    with request.progress(len(source), "evaluate") as on_batch:
        summary, rows, remark = run_classification(
            request.config,
            request.params,
            source,
            batch_size=request.batch_size,
            mesh=request.mesh,
            on_batch=on_batch,
        )
    table = [
        f"{source.spec}: {summary['num_examples']} examples" + (f"; {remark}" if remark else "")
    ]
    for key, text in (("accuracy", "top-1"), ("top5_accuracy", "top-5")):
        table.append(f"  {text}  {100 * summary[key]:.2f}%")
    table.append(f"  loss   {summary['loss']:.4f}")
    table.append(f"  calibration error  {100 * summary['calibration_error']:.2f}%")
    return Result({"data": source.spec, **summary}, table, rows)


def one_spec(request: Request) -> str:
    """The single data set of a suite that takes one."""
    if len(request.specs) != 1:
        raise UserError("This suite takes one data set; name one with --data.")
    return request.specs[0]


class Features(NamedTuple):
    """Features (n, d) and labels (n,) of a data set's training and evaluation split."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int


def features_of(request: Request, spec: str) -> Features:
    """Pre-logits of a data set's two default splits."""
    splits = data.default_splits(spec, data_dir=request.data_dir)
    arrays: list[np.ndarray] = []
    opened = [data.open_source(split, data_dir=request.data_dir) for split in splits]
    for source in opened:
        with request.progress(len(source), f"features of {source.spec}") as on_batch:
            parts = []
            for found, labels in features.batches_of_features(
                request.config,
                request.params,
                source,
                batch_size=request.batch_size,
                mesh=request.mesh,
            ):
                parts.append((found, labels))
                on_batch(sum(len(y) for _, y in parts))
        arrays += [np.concatenate([part[i] for part in parts]) for i in (0, 1)]
    x_train, y_train, x_test, y_test = arrays
    return Features(x_train, y_train, x_test, y_test, opened[0].num_classes)


def suite_fewshot(request: Request) -> Result:
    """Few-shot linear accuracy (section 4.1) on each data set, from features before any tanh.

    With --l2=sweep, one l2 for each number of shots: that of the best mean rank over the data sets.
    """
    l2s = fewshot.L2_SWEEP if request.l2 == "sweep" else (_number(request.l2),)
    results = {}
    for spec in request.specs:
        results[spec] = fewshot.accuracies(
            *features_of(request, spec),
            shots=request.shots,
            seeds=range(request.seeds),
            l2s=l2s,
        )
    chosen = {k: fewshot.best_l2(results, k) for k in request.shots}
    rows: list[dict[str, Any]] = []
    for spec, found in results.items():
        for k in request.shots:
            values = found[k][chosen[k]]
            rows.append(
                {
                    "data": spec,
                    "shots": k,
                    "accuracy": float(np.mean(values)),
                    "std": float(np.std(values)),
                    "seeds": len(values),
                    "l2": chosen[k],
                }
            )
    table = ["few-shot linear accuracy"]
    for row in rows:
        table.append(
            f"  {row['data']}  {row['shots']:>2} shots  {100 * row['accuracy']:.2f}% "
            f"± {100 * row['std']:.2f} ({row['seeds']} draws, l2 {row['l2']:g})"
        )
    return Result({"results": rows}, table, rows)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--l2={text} must be a number, or sweep.") from None


def suite_knn(request: Request) -> Result:
    """Accuracy of the nearest neighbours' vote on each data set."""
    rows, table = [], ["nearest neighbours, cosine similarity"]
    for spec in request.specs:
        for k, accuracy in knn.accuracies(*features_of(request, spec), ks=request.ks).items():
            rows.append({"data": spec, "k": k, "accuracy": accuracy})
            table.append(f"  {spec}  k={k:<3} {100 * accuracy:.2f}%")
    return Result({"results": rows}, table, rows)


def suite_real(request: Request) -> Result:
    """ImageNet ReaL: predictions in the order of the file names against `real.json`."""
    if not request.real_labels:
        raise UserError("--suite=real needs --real_labels=real.json.")
    labels = real.read_labels(request.real_labels)
    source = evaluation_source(request, one_spec(request))
    names = data.record_names(source)
    if not all(Path(name).suffix for name in names[:1]):
        raise UserError(
            f"{source.spec} does not know the file names of its images, which ReaL labels are "
            "ordered by; use folder:PATH of the validation images."
        )
    with request.progress(len(source), "evaluate") as on_batch:
        predictions = predicted(request, source, on_batch)
    order = real.file_order(names)
    accuracy = real.real_accuracy(predictions[order], labels)
    scored = sum(1 for row in labels if row)
    table = [f"ReaL on {source.spec}: {100 * accuracy:.2f}% of {scored} images with labels"]
    return Result({"data": source.spec, "accuracy": accuracy, "num_scored": scored}, table, [])


SUITES: dict[str, Callable[[Request], Result]] = {
    "classification": suite_classification,
    "fewshot": suite_fewshot,
    "knn": suite_knn,
    "real": suite_real,
}


def write(directory: Path, suite: str, record: dict, rows: list[dict]) -> Path:
    """Adds a suite's record to `evaluation.json` and writes its rows as CSV beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "evaluation.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content[suite] = record
    partial = file.with_suffix(".json.partial")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    os.replace(partial, file)
    if not rows:
        return file
    name = (
        "evaluation_classification_per_class"
        if suite == "classification"
        else f"evaluation_{suite}"
    )
    with open(directory / f"{name}.csv", "w", newline="") as out:
        writer = csv.DictWriter(out, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file
