"""Loading weights: `read` detects the format of a path, or says why it cannot."""

from __future__ import annotations

import functools
import math
import numbers
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from vit_jax import files, models
from vit_jax.data.transforms import evaluation_transform
from vit_jax.errors import UserError, nearest
from vit_jax.interop import fetch, huggingface, npz, published, timm, unfinished, weight_files
from vit_jax.models import adapt, saved
from vit_jax.models.layers import Model

#: Suffixes of exported files, which are run and not loaded.
EXPORTS = (".onnx", ".xml")
Weights = tuple[models.ModelConfig, dict[str, np.ndarray]]


def create_model(
    variant: str, *, num_classes: int | None = None, seed: int = 0, **overrides
) -> nnx.Module:
    """A randomly initialised model, e.g. `create_model("B/16", num_classes=10, image_size=384)`.

    Raises:
      UserError: no such variant or setting, or more parameters than this machine can hold.
    """
    if not isinstance(seed, numbers.Integral) or not -(2**63) <= seed < 2**63:
        raise UserError(f"seed={seed!r} must be a whole number of 64 bits.")
    config = models.get_config(variant, num_classes=num_classes, **overrides)
    check_fits(config)
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
    """Loads a model: a workdir (also of an unfinished run), one of its `checkpoints/STEP`, an
    exported directory, an official `.npz`, a Hugging Face or timm directory, `hf:ORG/NAME`,
    `gs://...`, `https://...`, or a published name ("B/16-imagenet21k").

    Args:
      variant: needed only if it cannot be inferred; None: infer and print it.
      image_size: another resolution; position embeddings are interpolated.
      num_classes: another number of classes; the new head is zero.
      channels: another number of input channels; the first kernel is adapted.
      verify: check the checksums in the file of weights, 0.6 s per GB, and for NaN.

    Raises:
      UserError: no such path, an unknown format, or damaged weights.
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
        check_fits(target)
        params, notes = adapt.adapt(config, params, target)
        for note in notes:
            print(f"adapted {note}")
    return models.set_params(models.abstract(target), jax.tree.map(jax.numpy.asarray, params))


def check_fits(config: models.ModelConfig) -> None:
    """Raises UserError for more parameters than this machine has memory: XLA would abort."""
    count = sum(math.prod(leaf.shape) for leaf in models.abstract_params(config).values())
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * count > memory:
        raise UserError(
            f"This {config.variant} would have {count:,} parameters, {4 * count / 2**30:,.0f} GiB, "
            f"and the machine has {memory / 2**30:,.0f} GiB of memory."
        )


def save_model(model: Model, directory: str | Path) -> None:
    """Writes `model.safetensors` and a self-describing `config.json` into `directory`.

    Raises:
      UserError: one of them is there, or cannot be written, or `model` is not one.
    """
    if not isinstance(model, Model):
        kind = type(model).__name__
        raise UserError(f"save_model takes a model from load_model, but got a {kind}.")
    if not directory or not isinstance(directory, (str, Path)):
        raise UserError(f"save_model needs a directory, but got {directory!r}.")
    directory = Path(directory).expanduser()
    for name in saved.FILES:
        files.check_new(directory / name)
    saved.save(directory, model.config, jax.device_get(models.get_params(model)))


def own_directory(source: str) -> Path:
    """The directory of a finished model in our own format.

    Raises:
      UserError: there is none, e.g. in an unfinished run.
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
    """Changes settings of a model in our own format, nothing else; returns the file."""
    file = own_directory(source) / "config.json"
    values = files.read_json(file)
    config = models.override(saved.config_from_json(values, str(file)), **changes)
    run = {"run": values["run"]} if "run" in values else {}
    files.write_json(file, saved.config_to_json(config) | run)
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
    if variant is None and path.is_file():  # it does not name its model
        size = "x".join(map(str, config.image_size))
        print(f"{path}: {config.variant} at {size}, {config.num_classes} classes")
    return config, params


def local_path(source: str) -> Path:
    """The path of a checkpoint on disk, downloading it if necessary; may be a published name.

    Raises:
      UserError: it does not exist; names the nearest published one.
    """
    check_named(source)
    if fetch.is_remote(source):
        return fetch.fetch(source)
    path = Path(source).expanduser()
    return path if is_on_disk(path) else fetched(source)


def is_on_disk(path: Path) -> bool:
    return path.exists() or bool(unfinished.steps_of(path))


def check_named(source: str) -> None:
    """Raises UserError if `source` is neither on disk, nor a URL, nor a published name."""
    path = Path(source).expanduser()
    here = bool(source) and is_on_disk(path)
    if not here and not fetch.is_remote(source) and source not in published.PUBLISHED:
        beside = [entry.name for entry in path.parent.glob("*")] if path.name else []
        hint = nearest(source, published.PUBLISHED) or nearest(path.name, beside)
        raise UserError(
            f"There is no checkpoint at {source!r}.{hint} Give a workdir, a directory of weights "
            "(exported, Hugging Face, timm), an official .npz, hf:ORG/NAME, a gs:// or https:// "
            "URL, or a published name such as B/16-imagenet21k."
        )


def fetched(name: str) -> Path:
    """The path of published weights, downloaded from the first working source if necessary.

    Raises:
      UserError: no source works; gives the reason for each.
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
    """The path of published weights on this machine, from any of their sources."""
    places = map(fetch.cached, published.PUBLISHED[name].sources)
    return next((place for place in places if place is not None), None)


def check_finite(params: Mapping[str, np.ndarray]) -> None:
    """Raises UserError for an array with NaN or infinite values, unless `files.VERIFY` is off."""
    for name, array in params.items() if files.VERIFY.get() else ():
        if array.size and not np.isfinite([array.min(), array.max()]).all():
            raise UserError(f"{name} has values that are not finite; get the weights again.")


def read_path(path: Path, variant: str | None = None) -> Weights:
    """Reads a path on disk in any format.

    Raises:
      UserError: any problem with it; names the path.
    """
    try:
        config, params = _read_path(path, variant)
        options = [(key, value) for key, value in config.preprocessing if key != "channels"]
        evaluation_transform(config.image_size, options)  # raises for invalid ones
        check_finite(params)
        return config, params
    except UserError as error:
        if str(path) in str(error):
            raise
        raise UserError(f"{path}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"{path} cannot be read: a value in it has an unexpected type "
            f"({type(error).__name__}: {reason})."
        ) from error


def _read_path(path: Path, variant: str | None) -> Weights:
    if path.suffix in EXPORTS or (path / "facts.json").exists():
        raise UserError(
            f"{path} is an export: evaluate, predict and features run it; give the checkpoint it "
            "was made from."
        )
    for served in (path / "1" / "model.onnx", path / "1" / "model.xml"):
        if served.exists():
            raise UserError(f"{path} is the model of a server; its file is {served}.")
    if path.is_file():
        if path.suffix == ".npz":
            return npz.load(path, variant=variant)
        if path.suffix == ".safetensors":
            return timm.load(path, variant=variant)
        raise UserError(
            f"{path} is not a checkpoint: files are an official .npz or a timm .safetensors, or "
            f"exports ({', '.join(EXPORTS)})."
        )
    if unfinished.is_unfinished(path):
        return unfinished.load(path)
    for directory in (path, path / "model"):
        if saved.is_native(directory):
            return saved.load(directory)
    if not any(path.glob("model.safetensors*")):
        check_has_checkpoint(path)
    for is_one, read_one in (
        (huggingface.is_huggingface, huggingface.load),
        (weight_files.has_weights, functools.partial(timm.load, variant=variant)),
    ):
        if is_one(path):
            return read_one(path)
    held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{path} is not a checkpoint: not a workdir (no model/), nor an exported, Hugging Face or "
        f"timm directory (no config.json with model.safetensors); it has {held}."
        + files.runs_in(path)
    )


def check_has_checkpoint(path: Path) -> None:
    """Raises UserError if `path` is the workdir of a run without a checkpoint so far."""
    if (path / "pretrain").is_dir():
        raise UserError(
            f"{path} has not started yet; only its first stage has: {path / 'pretrain'}."
        )
    if (path / "metrics.jsonl").exists() or (path / "checkpoints").is_dir():
        raise UserError(
            f"{path} is a run that has not saved a checkpoint yet; try again later, or run its "
            "train command again."
        )
