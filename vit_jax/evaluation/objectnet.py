"""ObjectNet (Appendix D.9): 113 of its 313 classes are classes of ImageNet, often several of them.

The class map is in the data set's own files; nothing of it is here. A prediction is right if it is
any of the object's ImageNet classes.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import models
from vit_jax.data.image_files import images_below
from vit_jax.data.kinds.folder import file_source
from vit_jax.data.source import FileSource
from vit_jax.errors import UserError
from vit_jax.evaluation import run

MAPPINGS = ("objectnet_to_imagenet_1k.json", "folder_to_objectnet_label.json",
            "pytorch_to_imagenet_2012_id.json", "imagenet_to_label_2012_v2")  # fmt: skip


def class_map(root: str | Path) -> dict[str, list[int]]:
    """{image folder: its ImageNet classes, 0 to 999 in the order of WordNet ids}.

    Args:
      root: the unpacked objectnet-1.0, with images/ and mappings/.

    Raises:
      UserError: a mapping is missing, or names a class that the others do not know.
    """
    files = [Path(root) / "mappings" / name for name in MAPPINGS]
    for file in files:
        if not file.exists():
            raise UserError(f"{file} is missing; --data is objectnet-1.0 with images and mappings.")
    to_imagenet, to_object, to_line = (json.loads(file.read_text()) for file in files[:3])
    lines = [line.strip() for line in files[3].read_text().splitlines()]
    number = {lines[line]: int(position) for position, line in to_line.items()}
    found = {}
    for folder, name in to_object.items():
        if name in to_imagenet:
            try:
                found[folder] = [number[label] for label in to_imagenet[name].split("; ")]
            except KeyError as error:
                raise UserError(
                    f"{files[0]}: {name} is mapped to {error}, which is no class."
                ) from None
    return found


def open_objectnet(root: str, classes: dict[str, list[int]]) -> FileSource:
    """The images of the mapped classes; labels number the folders of `classes` in their order.

    Raises:
      UserError: a class has no images.
    """
    position = {folder: i for i, folder in enumerate(sorted(classes))}
    records = []
    for folder, label in position.items():
        where = Path(root) / "images" / folder
        files = images_below(root, f"images/{folder}") if where.is_dir() else []
        if not files:
            raise UserError(f"{where} holds no images; is ObjectNet unpacked completely?")
        records += [(file, label) for file in files]
    return file_source(root, records, list(position), f"objectnet:{root}")


@functools.lru_cache(maxsize=2)
def ranking_step(
    config: models.ModelConfig, mesh: jax.sharding.Mesh, known: tuple[int, ...]
) -> Callable:
    """The jitted (params, batch) -> the five likeliest of all classes, and of the known ones."""
    _, apply = models.as_functions(config)
    mask = np.full(config.num_classes, -np.inf, np.float32)
    mask[list(known)] = 0.0

    def step(params, batch) -> dict[str, Any]:
        logits = apply(params, models.normalise(batch["image"]))
        return {
            "all": jax.lax.top_k(logits, 5)[1],
            "known": jax.lax.top_k(logits + jnp.asarray(mask), 5)[1],
        }

    return run.jit_eval_step(step, mesh)


def accuracies(
    ranked: np.ndarray, labels: np.ndarray, classes: list[list[int]]
) -> tuple[float, float]:
    """Top-1 and top-5 in [0, 1].

    Args:
      ranked: (n, 5) classes, likeliest first.
      labels: (n,) positions in `classes`, which holds the right classes of each.
    """
    right = np.zeros((len(classes), int(ranked.max()) + 1 + max(map(max, classes))), bool)
    for i, mine in enumerate(classes):
        right[i, mine] = True
    hits = right[labels[:, None], ranked]
    return float(hits[:, 0].mean()), float(hits.any(axis=1).mean())
