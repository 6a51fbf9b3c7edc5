"""Evaluating a checkpoint by named protocols: the table of suites, and what each writes."""

from __future__ import annotations

import csv
import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from vit_jax import data, files, models
from vit_jax.data.labels import one_class
from vit_jax.data.relabel import with_classes
from vit_jax.errors import UserError
from vit_jax.evaluation import (
    calibration,
    classification,
    features,
    fewshot,
    figures,
    knn,
    objectnet,
    probe,
    real,
    run,
)


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
    preprocessing: str = "protocol"  # of few-shot images; or "model", as the model says
    k: tuple[int, ...] = (1, 5, 10, 20)
    real_labels: str | None = None
    # What a protocol that trains needs:
    checkpoint: str = ""
    out: Path | None = None
    tasks: tuple[str, ...] = ()
    size: int = 384
    learning_rates: tuple[float, ...] = ()
    overrides: tuple[tuple[str, str], ...] = ()


class Result(NamedTuple):
    """record: for evaluation.json. table: lines to print. rows: for a CSV, if there is one.
    metrics: what a training run logs. pictures: name -> function that draws it.
    """

    record: dict[str, Any]
    table: list[str]
    rows: list[dict]
    metrics: dict[str, float]
    pictures: Mapping[str, Callable[[], Any]] = {}


def evaluation_source(request: Request, spec: str) -> Any:
    """The source of a spec; without a split, the evaluation split of the data set."""
    spec = data.evaluation_spec(spec, data_dir=request.data_dir)
    return data.open_source(spec, data_dir=request.data_dir, labelled=True)


def suite_classification(request: Request) -> Result:
    """Top-1 and top-5 of the classifier, every class, calibration, confusions and mistakes."""
    source = evaluation_source(request, one_spec(request))
    with request.progress(len(source), "evaluate") as on_batch:
        answers = classification.classify(
            request.config,
            request.params,
            source,
            batch_size=request.batch_size,
            mesh=request.mesh,
            on_batch=on_batch,
        )
    summary, results = answers.summary, answers.results
    remark = f"; {answers.remark}" if answers.remark else ""
    table = [f"{source.spec}: {summary['num_examples']} examples{remark}"]
    table += [f"  {note}" for note in source.notes]
    for key, text in (("accuracy", "top-1"), ("top5_accuracy", "top-5")):
        table.append(f"  {text}  {100 * summary[key]:.2f}%")
    table.append(f"  loss   {summary['loss']:.4f}")
    table.append(f"  calibration error  {100 * summary['calibration_error']:.2f}%")
    names = request.config.labels or source.class_names
    matrix = calibration.confusion_matrix(results["label"], results["prediction"], len(names))
    pictures = {
        "confusion": functools.partial(figures.confusion, matrix, names),
        "reliability": functools.partial(
            figures.reliability, results["confidence"], results["correct"]
        ),
        "mistakes": functools.partial(figures.mistakes, results, source, names),
    }
    record = {"data": source.spec, **summary}
    metrics = {key: float(summary[key]) for key in ("accuracy", "top5_accuracy", "loss")}
    return Result(record, table, answers.classes, metrics, pictures)


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


def features_of(
    request: Request, spec: str, transform: Callable[..., Any] | None = None
) -> Features:
    """Pre-logits of a data set's two default splits; images as the model says, or `transform`ed."""
    splits = data.default_splits(spec, data_dir=request.data_dir)
    arrays: list[np.ndarray] = []
    opened = [data.open_source(s, data_dir=request.data_dir, labelled=True) for s in splits]
    if opened[0].num_classes < 2:
        raise one_class(opened[0])
    opened[1] = with_classes(opened[1], opened[0].class_names, opened[0].spec)
    for source in opened:
        with request.progress(len(source), f"features of {source.spec}") as on_batch:
            parts = []
            for found, labels in features.batches_of_features(
                request.config,
                request.params,
                source,
                batch_size=request.batch_size,
                mesh=request.mesh,
                transform=transform,
            ):
                parts.append((found, labels))
                on_batch(sum(len(y) for _, y in parts))
        arrays += [np.concatenate([part[i] for part in parts]) for i in (0, 1)]
    x_train, y_train, x_test, y_test = arrays
    return Features(x_train, y_train, x_test, y_test, opened[0].num_classes)


def suite_fewshot(request: Request) -> Result:
    """Few-shot linear accuracy (section 4.1) on each data set, from features before any tanh.

    Images are resized to a square and cropped in the middle (256 to 224), as its protocol has it.
    With --l2=sweep, one l2 for each number of shots: that of the best mean rank over the data sets.
    """
    if request.preprocessing not in ("protocol", "model"):
        raise UserError(f"--preprocessing={request.preprocessing} must be protocol or model.")
    transform = None
    if request.preprocessing == "protocol":
        transform = data.make_transform(
            name="square_center_crop",
            size=request.config.image_size,
            train=False,
            orient=bool(dict(request.config.preprocessing).get("orient")),
        )
    l2s = fewshot.L2_SWEEP if request.l2 == "sweep" else (_number(request.l2),)
    results = {}
    for spec in request.specs:
        results[spec] = fewshot.accuracies(
            *features_of(request, spec, transform),
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
    metrics = {f"{row['data']}/{row['shots']}_shots": row["accuracy"] for row in rows}
    return Result({"results": rows}, table, rows, metrics)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(f"--l2={text} must be a number, or sweep.") from None


def suite_knn(request: Request) -> Result:
    """Accuracy of the nearest neighbours' vote on each data set."""
    rows: list[dict[str, Any]] = []
    table = ["nearest neighbours, cosine similarity"]
    for spec in request.specs:
        for k, accuracy in knn.accuracies(*features_of(request, spec), ks=request.k).items():
            rows.append({"data": spec, "k": k, "accuracy": accuracy})
            table.append(f"  {spec}  k={k:<3} {100 * accuracy:.2f}%")
    metrics = {f"{row['data']}/k_{row['k']}": row["accuracy"] for row in rows}
    return Result({"results": rows}, table, rows, metrics)


def suite_probe(request: Request) -> Result:
    """Accuracy of logistic regression on the features of each data set's training split."""
    rows: list[dict[str, Any]] = []
    table = ["linear probe"]
    for spec in request.specs:
        found = features_of(request, spec)
        accuracy, inverse_l2 = probe.probe(*found[:4])
        rows.append({"data": spec, "accuracy": accuracy, "inverse_l2": inverse_l2})
        table.append(f"  {spec}  {100 * accuracy:.2f}% (C = {inverse_l2:g})")
    return Result({"results": rows}, table, rows, {row["data"]: row["accuracy"] for row in rows})


def suite_real(request: Request) -> Result:
    """ImageNet ReaL: predictions against the reassessed labels, images without labels left out.

    The labels are those of `tfds:imagenet2012_real`, or real.json in the order of file names.
    """
    spec = one_spec(request)
    source: Any
    if spec.startswith("tfds:imagenet2012_real"):
        source, labels = real.open_tfds(spec, request.data_dir)
    else:
        if not request.real_labels:
            raise UserError(
                "--suite=real needs --real_labels=real.json, or --data=tfds:imagenet2012_real."
            )
        labels = real.read_labels(request.real_labels)
        source = real.in_file_order(evaluation_source(request, spec))
    with request.progress(len(source), "evaluate") as on_batch:
        found = run.run_model(
            request.config,
            request.params,
            source,
            classification.eval_step(request.config, request.mesh),
            batch_size=request.batch_size,
            mesh=request.mesh,
            on_batch=on_batch,
        )["prediction"]
    accuracy = real.real_accuracy(found, labels)
    scored = sum(1 for row in labels if len(row))
    table = [f"ReaL on {source.spec}: {100 * accuracy:.2f}% of {scored:,} images with labels"]
    record = {"data": source.spec, "accuracy": accuracy, "num_scored": scored}
    return Result(record, table, [], {"accuracy": accuracy})


def objectnet_root(spec: str) -> str:
    """The directory of objectnet-1.0: `--data` may name it as it is, or as folder:PATH."""
    return spec.removeprefix("folder:")


def suite_objectnet(request: Request) -> Result:
    """ObjectNet: a model of ImageNet's 1,000 classes on the objects that are among them.

    "known" ranks only the classes that some object has, "all" every class; the paper does not say
    which it is.
    """
    root = objectnet_root(one_spec(request))
    if request.config.num_classes != 1000:
        raise UserError(
            f"ObjectNet is for models of ImageNet's 1,000 classes; this one has "
            f"{request.config.num_classes}."
        )
    classes = objectnet.class_map(root)
    source = objectnet.open_objectnet(root, classes)
    right = [classes[folder] for folder in source.class_names]
    known = tuple(sorted({number for mine in right for number in mine}))
    with request.progress(len(source), "evaluate") as on_batch:
        found = run.run_model(
            request.config,
            request.params,
            source,
            objectnet.ranking_step(request.config, request.mesh, known),
            transform=data.make_transform(
                name="objectnet", size=request.config.image_size, train=False
            ),
            batch_size=request.batch_size,
            mesh=request.mesh,
            on_batch=on_batch,
        )
    record: dict[str, Any] = {
        "data": root,
        "num_examples": len(source),
        "num_objects": len(right),
        "num_classes": len(known),
    }
    table = [f"ObjectNet: {len(source):,} images of {len(right)} objects"]
    for ranking, text in (("known", f"among {len(known)} classes"), ("all", "among all 1,000")):
        top1, top5 = objectnet.accuracies(found[ranking], found["label"], right)
        record |= {f"accuracy_{ranking}": top1, f"top5_accuracy_{ranking}": top5}
        table.append(f"  {text}: top-1 {100 * top1:.2f}%, top-5 {100 * top5:.2f}%")
    return Result(record, table, [], {"accuracy": record["accuracy_known"]})


SUITES: dict[str, Callable[[Request], Result]] = {
    "classification": suite_classification,
    "fewshot": suite_fewshot,
    "knn": suite_knn,
    "probe": suite_probe,
    "real": suite_real,
    "objectnet": suite_objectnet,
}


def write(directory: Path, suite: str, record: dict[str, Any], result: Result) -> Path:
    """Adds a suite's record to `evaluation.json`; rows and pictures lie beside it."""
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "evaluation.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content[suite] = record
    files.write_json(file, content)
    for name, draw in result.pictures.items():
        figure = draw()
        target = directory / f"evaluation_{name}.png"
        if figure is None:
            target.unlink(missing_ok=True)
        else:
            figure.savefig(target, dpi=130)
    if result.rows:
        suffix = "classification_per_class" if suite == "classification" else suite
        with open(directory / f"evaluation_{suffix}.csv", "w", newline="") as out:
            writer = csv.DictWriter(out, fieldnames=list(result.rows[0]))
            writer.writeheader()
            writer.writerows(result.rows)
    return file
