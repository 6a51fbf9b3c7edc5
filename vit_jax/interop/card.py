"""The model card for the Hugging Face hub: model, training data, and results."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from vit_jax import __version__, files
from vit_jax.data.specs import parse_name, parse_spec
from vit_jax.errors import UserError
from vit_jax.models import ViTConfig

#: Names of metrics in evaluation.json, and on the hub.
METRICS = {"accuracy": "accuracy", "mAP": "mean average precision"}


class Score(NamedTuple):
    """value: in [0, 1]. suite: the protocol, such as "classification"."""

    suite: str
    metric: str
    data: str
    value: float


class Origin(NamedTuple):
    """The origin of weights. data: what they were trained on; step: of their run."""

    data: str = ""
    step: int | None = None
    scores: tuple[Score, ...] = ()


UNKNOWN = Origin()


def public_name(spec: object) -> str:
    """A data spec without details of this machine: parent folders and options.

    "folder:/home/me/pets?separator=;[test]" is "pets[test]".
    """
    try:
        kind, name, split = parse_spec(str(spec))
        name, _ = parse_name(kind, name)
    except UserError:
        return "a private data set"
    split = f"[{split}]" if split else ""
    if kind == "folder" or kind.endswith(".py") or os.path.exists(os.path.expanduser(name)):
        return Path(name).name + split
    return (f"{kind}:{name}" if name else kind) + split


def origin_of(source: str) -> Origin:
    """The origin of weights in a run or an export; empty for other sources."""
    path = Path(source).expanduser()
    if not path.is_dir():
        return UNKNOWN
    workdir = path.parent if path.name == "model" else path
    model = files.read_json(workdir / "model" / "config.json") or files.read_json(
        path / "config.json"
    )
    run = model.get("run") if isinstance(model, dict) else None
    step = run.get("step") if isinstance(run, dict) else None
    trained = ""
    config = files.read_json(workdir / "config.json") if step is not None else None
    if isinstance(config, dict) and isinstance(config.get("data"), dict):
        trained = public_name(config["data"].get("dataset"))
    places = {path.resolve(), workdir.resolve(), (workdir / "model").resolve()}
    found = files.read_json(workdir / "evaluation.json")
    scores = []
    for suite, record in found.items() if isinstance(found, dict) else ():
        if not isinstance(record, dict):
            continue
        of = record.get("checkpoint")
        other = of is not None and Path(str(of)).expanduser().resolve() not in places
        if other or (step is not None and record.get("step", step) != step):
            print(f"{workdir}/evaluation.json: {suite} is for other weights; not in the card")
            continue
        scores += [
            Score(suite, name, public_name(record.get("data")), float(record[name]))
            for name in METRICS
            if isinstance(record.get(name), int | float) and 0 <= record[name] <= 1
        ]
    return Origin(trained, step, tuple(scores))


def model_card(
    config: ViTConfig, origin: Origin = UNKNOWN, name: str = "this directory", licence: str = ""
) -> str:
    """A model card for the hub: the model, its use, and its results.

    Args:
      origin: see `origin_of`.
      name: by which pipelines load it.
      licence: one of the hub's short names; "" for none.
    """
    size = "x".join(map(str, config.image_size))
    pooled = config.representation_size is not None
    task = "image-feature-extraction" if pooled else "image-classification"
    head = ["library_name: transformers", f"pipeline_tag: {task}", "tags: [vision, vit_jax]"]
    head += [f"license: {json.dumps(licence)}"] if licence else []
    if origin.scores:  # JSON is YAML
        results = [result(score, task) for score in origin.scores]
        index = [{"name": f"ViT-{config.variant}", "results": results}]
        head.append(f"model-index: {json.dumps(index)}")
    classes = "" if pooled else f", {config.num_classes} classes"
    lines = [f"# ViT-{config.variant}, {size} pixels{classes}", ""]
    lines += ["A Vision Transformer (arXiv 2010.11929), written by vit_jax " + __version__ + "."]
    if origin.data:
        steps = f" for {origin.step:,} steps" if origin.step is not None else ""
        lines += ["", f"Trained on {_cell(origin.data)}{steps}."]
    if origin.scores:
        lines += ["", "| protocol | data | metric | % |", "|-|-|-|-|"]
        lines += [
            f"| {score.suite} | {_cell(score.data)} | {METRICS[score.metric]} "
            f"| {100 * score.value:.2f} |"
            for score in origin.scores
        ]
    lines += ["", f"Licence: {licence or 'not stated'}.", ""]
    lines += ["```python", "from transformers import pipeline", ""]
    lines += [f'pipeline("{task}", model="{name}")("photo.jpg")', "```", ""]
    preprocessing = dict(config.preprocessing) or "resize"
    lines += [f"Pixels are scaled to [-1, 1]; evaluation: {preprocessing}.", ""]
    return "\n".join(["---", *head, "---", "", *lines])


def result(score: Score, task: str) -> dict[str, object]:
    """A score as an entry of the hub's model-index."""
    kind = re.sub(r"[^a-z0-9]+", "_", score.data.lower()).strip("_") or "own"
    return {
        "task": {"type": task},
        "dataset": {"name": score.data, "type": kind},
        "metrics": [
            {"type": METRICS[score.metric], "value": round(score.value, 6), "name": score.suite}
        ],
    }


def _cell(text: str) -> str:
    """A name in a table of Markdown."""
    return text.replace("|", "\\|").replace("\n", " ")
