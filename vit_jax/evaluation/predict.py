"""The most likely classes of image files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from vit_jax import data, models
from vit_jax.errors import UserError
from vit_jax.models import adapt

BATCH_SIZE = 32


def find_images(paths: Iterable[str]) -> list[Path]:
    """Files as they are given; folders give the images below them, sorted.

    Raises:
      UserError: a path does not exist, or a folder holds no image.
    """
    files: list[Path] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in data.IMAGE_SUFFIXES)
            if not found:
                raise UserError(f"The folder {path} holds no images.")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise UserError(f"There is no image {name!r}.")
    return files


def predict(
    config: models.ModelConfig,
    params: models.Params,
    files: Sequence[Path],
    *,
    top_k: int = 5,
) -> Iterator[dict]:
    """Classifies image files.

    Yields:
      {"image": path, "predictions": [{"label", "class", "probability"}, ...]}, best first, in the
      order of `files`. "class" is the label's name, or its number where names are unknown.

    Raises:
      UserError: an unreadable image, or a classifier that was never trained.
    """
    adapt.check_head(params)
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    _, apply = models.as_functions(config)
    k = min(top_k, config.num_classes)

    @jax.jit
    def top(params, images):
        probabilities = jax.nn.softmax(apply(params, models.normalise(images)))
        return jax.lax.top_k(probabilities, k)

    params = jax.tree.map(jnp.asarray, params)
    size = min(BATCH_SIZE, len(files))
    names = config.labels or tuple(map(str, range(config.num_classes)))
    for start in range(0, len(files), size):
        chunk = files[start : start + size]
        images = np.stack([transform.read(p.read_bytes(), str(p)) for p in chunk])
        padding = [(0, size - len(chunk))] + [(0, 0)] * 3
        probabilities, labels = jax.device_get(top(params, np.pad(images, padding)))
        for file, values, indices in zip(chunk, probabilities, labels, strict=False):
            yield {
                "image": str(file),
                "predictions": [
                    {"label": int(i), "class": names[i], "probability": float(p)}
                    for p, i in zip(values, indices, strict=True)
                ],
            }
