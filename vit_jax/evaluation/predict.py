"""The most likely classes of image files."""

from __future__ import annotations

import functools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax import data, models
from vit_jax.data.image_files import images_below, passed_over, shown
from vit_jax.data.photos import read_file
from vit_jax.data.web_images import Limits, is_address
from vit_jax.errors import UserError
from vit_jax.evaluation import per_image
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.multilabel import DEFAULT
from vit_jax.runtime import sharding

BATCH_SIZE = 32


#: A file, or an http(s) URL.
Place = Path | str


def find_images(paths: Iterable[str], say: Callable[[str], None] | None = None) -> list[Place]:
    """Files and URLs as given; folders are expanded to the images below them, sorted.

    Args:
      say: called with notes on skipped files; by default prints to standard error.

    Raises:
      UserError: a path does not exist, or a folder has no image.
    """
    files: list[Place] = []
    for name in paths:
        if not name:
            raise UserError("The name of an image is empty; '.' is the working directory.")
        if is_address(name):
            files.append(name)
            continue
        try:
            path = Path(name).expanduser()
            is_folder, is_there = path.is_dir(), path.exists()
            skipped: Counter = Counter()
            found = images_below(str(path), "", skipped) if is_folder else []
        except (OSError, RuntimeError) as error:  # too long, not permitted, ~ of an unknown user
            reason = getattr(error, "strerror", None) or error
            place = str(getattr(error, "filename", None) or name)
            raise UserError(f"{place[:200]!r} cannot be read ({reason}).") from error
        if is_folder:
            notes = passed_over(skipped)
            if not found:
                why = "".join(f" ({note})" for note in notes)
                raise UserError(f"The folder {shown(str(path))} has no images{why}.")
            for note in notes:
                (say or functools.partial(print, file=sys.stderr))(f"{shown(str(path))}: {note}")
            files += sorted(path / each for each in found)
        elif is_there:
            files.append(path)
        else:
            raise UserError(f"There is no image {name!r}.")
    return files


def predict(
    forward: Forward,
    files: Sequence[Place],
    *,
    top_k: int = 5,
    limits: Limits = Limits(),  # noqa: B008 (never changed)
) -> Iterator[dict]:
    """Classifies image files by a model or an export.

    Yields:
      {"image": path, "predictions": [{"label", "class", "probability"}, ...]}, best first, in the
      order of `files`. "class" is the label's name, or its index if names are unknown. For an
      unreadable file {"image": path, "error": the reason}. For multi-label models probabilities are
      sigmoids, independent per class, each with "threshold" and "chosen" (whether it is reached).

    Raises:
      UserError: the classifier is untrained.
    """
    forward.check_head()
    transform = data.evaluation_transform(forward.image_size, forward.preprocessing)
    size = sharding.fit_batch(BATCH_SIZE, forward.mesh, num_examples=len(files))
    where = sharding.batch_sharding(forward.mesh)
    for start in range(0, len(files), size):
        chunk = files[start : start + size]
        shape = (len(chunk), *forward.image_size, transform.channels)
        images, problems = np.zeros(shape, np.uint8), {}
        for i, file in enumerate(chunk):
            try:
                images[i] = read_file(transform, file, limits)
            except UserError as error:
                problems[i] = str(error)
        padding = [(0, size - len(chunk))] + [(0, 0)] * 3
        logits = forward(jax.device_put(np.pad(images, padding), where)).logits
        found = best(logits, forward, top_k)
        for i, file in enumerate(chunk):
            if i in problems:
                yield {"image": shown(str(file)), "error": problems[i]}
                continue
            yield {"image": shown(str(file)), "predictions": found[i]}


def table(results: Sequence[dict], top_k: int, several: bool) -> per_image.Columns:
    """The output of `predict` as columns: image, class_1, probability_1, ..., error.

    several: for multi-label models; "predicted" lists the chosen ones among the `top_k`.
    """
    rows = [result.get("predictions") for result in results]
    chosen = [row and [one["class"] for one in row if one.get("chosen")] for row in rows]
    return {
        "image": [result["image"] for result in results],
        **({"predicted": chosen} if several else {}),
        **per_image.best(
            [row and [(one["class"], one["probability"]) for one in row] for row in rows], top_k
        ),
        "error": [result.get("error") for result in results],
    }


def best(logits: jax.Array, model: Forward | models.ModelConfig, top_k: int) -> list[list[dict]]:
    """The predictions for each image from its logits (k,)."""
    chances = jax.nn.sigmoid if model.multilabel else jax.nn.softmax
    probabilities = np.asarray(chances(logits / (model.temperature or 1.0)))
    thresholds = np.broadcast_to(np.array(model.thresholds or (DEFAULT,)), model.num_classes)
    names = model.labels or tuple(map(str, range(model.num_classes)))

    def row(k: int, probability: float) -> dict:
        found = {"label": k, "class": names[k], "probability": probability}
        if model.multilabel:
            threshold = float(thresholds[k])
            found |= {"threshold": threshold, "chosen": probability >= threshold}
        return found

    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :top_k]
    return [
        [row(int(k), float(values[k])) for k in chosen]
        for values, chosen in zip(probabilities, order, strict=True)
    ]
