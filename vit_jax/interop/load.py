"""One door for weights: whatever a path holds, `read` finds the format, or says why it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from flax import nnx

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.interop import adapt, native, npz
from vit_jax.models import Params


def create_model(
    variant: str, *, num_classes: int | None = None, seed: int = 0, **overrides
) -> nnx.Module:
    """A randomly initialised model, e.g. `create_model("B/16", num_classes=10, image_size=384)`.

    Raises:
      UserError: no such variant or setting.
    """
    config = models.get_config(variant, num_classes=num_classes, **overrides)
    return models.build(config, seed=seed)


def load_model(
    source: str | Path,
    *,
    variant: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
) -> nnx.Module:
    """Loads a model from a run's workdir, an exported directory, or an official `.npz`.

    Args:
      variant: needed only where the weights do not tell; None finds it and says what it found.
      image_size: another resolution; position embeddings are interpolated.
      num_classes: another number of classes; the head starts from zero.
      channels: another number of input channels; the first kernel is resampled.

    Raises:
      UserError: no such path, none of the formats, or damaged weights.
    """
    config, params = read(source, variant=variant)
    target = adapt.retarget(
        config, image_size=image_size, num_classes=num_classes, channels=channels
    )
    if target != config:
        params, notes = adapt.adapt(config, params, target)
        for note in notes:
            print(f"adapted {note}")
    return models.set_params(models.abstract(target), jax.tree.map(jax.numpy.asarray, params))


def save_model(model: Any, directory: str | Path) -> None:
    """Writes `model.safetensors` and a self-describing `config.json` into `directory`."""
    native.save(directory, model.config, jax.device_get(models.get_params(model)))


def read(source: str | Path, *, variant: str | None = None) -> tuple[models.ModelConfig, Params]:
    """The configuration and the parameters (float32 NumPy arrays by path) of a checkpoint.

    Raises:
      UserError: see `load_model`.
    """
    path = Path(source).expanduser()
    if not path.exists():
        raise UserError(
            f"There is no checkpoint at {str(source)!r}. Give a workdir of `vit-jax train`, an "
            "exported directory, or an official .npz file."
        )
    if path.is_file():
        if path.suffix != ".npz":
            raise UserError(f"{path} is no checkpoint: files must be an official .npz.")
        config, params = npz.load(path, variant=variant)
    elif native.is_native(path):
        config, params = native.load(path)
    elif native.is_native(path / "model"):
        config, params = native.load(path / "model")
    elif (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is a run that has not finished: it has checkpoints/ and no model/. "
            "Run its train command again to finish it."
        )
    else:
        held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{path} is no checkpoint: neither a workdir (model/) nor an exported directory "
            f"(config.json of vit_jax with model.safetensors); it holds {held}."
        )
    if variant is not None and variant != config.variant:
        raise UserError(f"{path} holds a {config.variant}, not a {variant}.")
    return config, params
