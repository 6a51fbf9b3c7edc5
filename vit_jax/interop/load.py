"""One door for weights: whatever a path holds, `read` finds the format, or says why it cannot."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vit_jax import files, models
from vit_jax.errors import UserError, nearest
from vit_jax.interop import fetch, huggingface, npz, published, timm, unfinished, weight_files
from vit_jax.models import adapt, saved
from vit_jax.models.layers import Model

Weights = tuple[models.ModelConfig, dict[str, np.ndarray]]


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
    verify: bool = True,
) -> nnx.Module:
    """Loads a model: a workdir (also of a run that still trains), one of its `checkpoints/STEP`, an
    exported directory, an official `.npz`, a Hugging Face or timm directory, `hf:ORG/NAME`,
    `gs://...`, `https://...`, or a published name ("B/16-imagenet21k").

    Args:
      variant: needed only where the weights do not tell; None finds it and says what it found.
      image_size: another resolution; position embeddings are interpolated.
      num_classes: another number of classes; the head starts from zero.
      channels: another number of input channels; the first kernel is resampled.
      verify: the checksums that the file of weights holds are compared, 0.6 s for a GB.

    Raises:
      UserError: no such path, none of the formats, or damaged weights.
    """
    before = files.VERIFY.set(verify)
    try:
        config, params = read(source, variant=variant)
    finally:
        files.VERIFY.reset(before)
    target = adapt.retarget(
        config, image_size=image_size, num_classes=num_classes, channels=channels
    )
    if target != config:
        params, notes = adapt.adapt(config, params, target)
        for note in notes:
            print(f"adapted {note}")
    return models.set_params(models.abstract(target), jax.tree.map(jax.numpy.asarray, params))


def save_model(model: Model, directory: str | Path) -> None:
    """Writes `model.safetensors` and a self-describing `config.json` into `directory`."""
    saved.save(directory, model.config, jax.device_get(models.get_params(model)))


def own_directory(source: str) -> Path:
    """Where a finished model of our own format lies on disk.

    Raises:
      UserError: it is none, e.g. of a run that is not finished.
    """
    path = Path(source).expanduser()
    found = [directory for directory in (path, path / "model") if saved.is_native(directory)]
    if not found or unfinished.is_unfinished(path):
        raise UserError(
            f"Nothing can be saved into {source}: only into a finished run, or a directory that "
            "vit_jax wrote; convert it first (vit-jax convert --to=native)."
        )
    return found[0]


def replace_settings(source: str, changes: Mapping[str, object]) -> Path:
    """Changes settings of a model of our own, and none of its weights; returns the file."""
    directory = own_directory(source)
    config, _ = saved.load(directory)
    file = directory / "config.json"
    files.write_json(file, saved.config_to_json(models.override(config, **changes)))
    return file


def read(source: str | Path, *, variant: str | None = None) -> Weights:
    """The configuration and the parameters (float32 NumPy arrays by path) of a checkpoint.

    Raises:
      UserError: see `load_model`.
    """
    path = local_path(str(source))
    config, params = read_path(path, variant)
    if variant is not None and variant != config.variant:
        raise UserError(f"{source} holds a {config.variant}, not a {variant}.")
    if variant is None and path.is_file():  # it does not say itself which model it is
        size = "x".join(map(str, config.image_size))
        print(f"{path}: {config.variant} at {size}, {config.num_classes} classes")
    return config, params


def local_path(source: str) -> Path:
    """Where a checkpoint is on disk: itself, or after downloading it or a published one by name.

    Raises:
      UserError: it is nowhere; names the nearest published one.
    """
    check_named(source)
    if fetch.is_remote(source):
        return fetch.fetch(source)
    path = Path(source).expanduser()
    return path if is_on_disk(path) else fetched(source)


def is_on_disk(path: Path) -> bool:
    return path.exists() or bool(unfinished.steps_of(path))


def check_named(source: str) -> None:
    """Raises UserError if `source` is neither on disk, nor an address, nor a published name."""
    here = is_on_disk(Path(source).expanduser())
    if not here and not fetch.is_remote(source) and source not in published.PUBLISHED:
        raise UserError(
            f"There is no checkpoint at {source!r}.{nearest(source, published.PUBLISHED)} Give a "
            "workdir of `vit-jax train`, an exported directory, an official .npz, a Hugging Face "
            "or timm directory, hf:ORG/NAME, a gs:// or https:// address, or a published name such "
            "as B/16-imagenet21k."
        )


def fetched(name: str) -> Path:
    """Where published weights are, downloaded from the first source that has them if need be.

    Raises:
      UserError: none of the sources can be used; says why of each.
    """
    problems = []
    if (found := at_hand(name)) is not None:
        return found
    for remote in published.PUBLISHED[name].sources:
        try:
            return fetch.fetch(remote)
        except UserError as error:
            problems.append(str(error))
    raise UserError(f"{name} could not be fetched: {' '.join(problems)}")


def at_hand(name: str) -> Path | None:
    """Where published weights are on this machine, from any of their sources."""
    places = map(fetch.cached, published.PUBLISHED[name].sources)
    return next((place for place in places if place is not None), None)


def read_path(path: Path, variant: str | None = None) -> Weights:
    """What is at a path on disk, in whatever format it is.

    Raises:
      UserError: whatever is wrong with it; names the path.
    """
    try:
        return _read_path(path, variant)
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read: a value in it is of another kind than expected "
            f"({type(error).__name__}: {reason})."
        ) from error


def _read_path(path: Path, variant: str | None) -> Weights:
    if path.is_file():
        if path.suffix == ".npz":
            return npz.load(path, variant=variant)
        if path.suffix == ".safetensors":
            return timm.load(path, variant=variant)
        raise UserError(
            f"{path} is no checkpoint: files must be an official .npz or a timm .safetensors."
        )
    if unfinished.is_unfinished(path):
        return unfinished.load(path)
    for directory in (path, path / "model"):
        if saved.is_native(directory):
            return saved.load(directory)
    if not any(path.glob("model.safetensors*")):
        say_what_has_begun(path)
    for is_one, read_one in (
        (huggingface.is_huggingface, huggingface.load),
        (weight_files.has_weights, functools.partial(timm.load, variant=variant)),
    ):
        if is_one(path):
            return read_one(path)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{path} is no checkpoint: no workdir (it has no model/), no exported, Hugging Face or "
        f"timm directory (no config.json with model.safetensors); it holds {held}."
    )


def say_what_has_begun(path: Path) -> None:
    """Raises UserError if `path` is the workdir of a run that has nothing to read yet."""
    if (path / "pretrain").is_dir():
        raise UserError(f"{path} has not begun: only its first stage has, {path / 'pretrain'}.")
    if (path / "metrics.jsonl").exists() or (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is a run that has not saved a checkpoint yet; look again later, or run its "
            "train command again."
        )
