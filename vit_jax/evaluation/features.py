"""Features of a whole data set: any intermediate of a model, streamed to a file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import data, files, models
from vit_jax.data.labels import NO_LABEL
from vit_jax.data.source import Source
from vit_jax.errors import UserError, nearest, need
from vit_jax.evaluation import run
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward
from vit_jax.runtime import sharding

POOLS = ("none", "mean", "token")


class Features(NamedTuple):
    """Features (n, d) and labels (n,) of a data set's training and evaluation split."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    num_classes: int


def frozen(
    forward: Forward, data_sets: DataSets, spec: str, transform: Callable | None = None
) -> Features:
    """Pre-logits of a data set's two splits, by the model's preprocessing or `transform`.

    Raises:
      UserError: the model gives no pre-logits, or the data have a single class.
    """

    def step(batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        pre_logits = forward(batch["image"]).pre_logits
        assert pre_logits is not None, f"{forward.name} returned no features"
        return {"features": pre_logits}

    if not forward.has_features:
        raise UserError(
            f"{forward.name} returns logits only, and this protocol needs features (pre_logits); "
            "evaluate the checkpoint that it was exported from."
        )
    transform = transform or data.evaluation_transform(forward.image_size, forward.preprocessing)
    found: list[np.ndarray] = []
    train, test = data_sets.training_and_evaluation(spec)
    for source in (train, test):
        with data_sets.progress(len(source), f"features of {source.spec}") as on_batch:
            results = run.over_source(
                step,
                source,
                transform,
                batch_size=forward.batch_size,
                mesh=forward.mesh,
                on_batch=on_batch,
            )
        found += [results["features"].astype(np.float32), results["label"]]
    x_train, y_train, x_test, y_test = found
    return Features(x_train, y_train, x_test, y_test, train.num_classes)


def batches_of_features(
    config: models.ModelConfig,
    params: models.Params,
    source: Source,
    *,
    layer: str = "pre_logits",
    pool: str = "none",
    batch_size: int = 64,
    mesh: jax.sharding.Mesh | None = None,
    transform: Callable | None = None,
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (features (b, ...), labels (b,)) for each batch of `source`, in order.

    Args:
      layer: an intermediate of the model ("pre_logits", "pooled", "encoded", "block_3", ...), or
        "logits".
      pool: of token sequences (b, n, d) or feature maps (b, h, w, d): "mean" averages all (patch)
        tokens, "token" takes the class token, "none" keeps everything.
      transform: None: the model's preprocessing.
      on_bad: called for unreadable images, whose features are NaN and label -1; None: raise.
        Multi-label data have labels (b, k) of 0 and 1.

    Raises:
      UserError: no such layer (names the nearest), or it cannot be pooled that way.
    """
    mesh = mesh or sharding.make_mesh()
    run = feature_step(config, layer, pool, mesh)
    transform = transform or data.evaluation_transform(config.image_size, config.preprocessing)
    on_mesh = sharding.params_to_devices(params, mesh)
    step = functools.partial(run, on_mesh)
    return _batches(step, source, transform, mesh, batch_size, on_bad)


def of_forward(
    forward: Forward,
    source: Source,
    *,
    layer: str = "pre_logits",
    on_bad: Callable[[str], None] | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """As `batches_of_features`, for a model with only logits and perhaps pre_logits (an export).

    Raises:
      UserError: it does not return that layer.
    """
    given = ("logits", "pre_logits") if forward.has_features else ("logits",)
    if layer not in given:
        advice = "" if forward.has_features else "; `vit-jax export --features` adds pre_logits"
        raise UserError(f"{forward.name} returns {' and '.join(given)}, not {layer!r}{advice}.")

    def step(batch: Mapping[str, jax.Array]) -> tuple[jax.Array, ...]:
        return getattr(forward(batch["image"]), layer), batch["label"], batch["mask"]

    transform = data.evaluation_transform(forward.image_size, forward.preprocessing)
    return _batches(step, source, transform, forward.mesh, forward.batch_size, on_bad)


def _batches(
    step: Callable,
    source: Source,
    transform: Callable,
    mesh: jax.sharding.Mesh,
    batch_size: int,
    on_bad: Callable[[str], None] | None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (features, labels) for every batch, without padding rows.

    step: batch -> (features, labels, mask of the readable images).
    """
    batch_size = sharding.fit_batch(batch_size, mesh, num_examples=len(source))
    batches = data.eval_batches(
        source,
        transform,
        batch_size=batch_size,
        rows=sharding.host_rows(mesh, batch_size),
        on_bad=on_bad,
        labelled=False,
    )
    seen = 0
    with contextlib.closing(batches):
        for batch in batches:
            mask = batch["mask"] if batch["label"].ndim == 1 else batch["mask"][:, None]
            label = np.where(mask, batch["label"], batch["label"].dtype.type(NO_LABEL))
            given = {"image": batch["image"], "label": label, "mask": batch["mask"]}
            found, labels, can_be_read = jax.device_get(step(sharding.to_devices(given, mesh)))
            count = min(batch_size, len(source) - seen)
            found = found[:count].astype(np.float32)
            found[~can_be_read[:count]] = np.nan
            yield found, labels[:count]
            seen += count


@functools.lru_cache(maxsize=4)
def feature_step(
    config: models.ModelConfig, layer: str, pool: str, mesh: jax.sharding.Mesh
) -> Callable:
    """The jitted (params, batch) -> (features, labels, mask), cached so that it compiles once."""
    function = feature_function(config, layer, pool)

    def step(params, batch):
        return function(params, batch["image"]), batch["label"], batch["mask"]

    return run.jit_eval_step(step, mesh)


def feature_function(config: models.ModelConfig, layer: str, pool: str) -> Callable[..., jax.Array]:
    """(params, images uint8) -> features; checked by shape before any image is read."""
    if pool not in POOLS:
        raise UserError(f"--pool={pool} does not exist; there are {', '.join(POOLS)}.")
    _, apply = models.as_functions(config)

    def function(params, images):
        logits, out = apply(params, models.normalise(images), return_intermediates=True)
        out = {"logits": logits, **out}
        if layer not in out:
            raise UserError(
                f"{config.variant} has no layer {layer!r}; there are {', '.join(out)}."
                f"{nearest(layer, out)}"
            )
        found = out[layer]
        if pool == "none" or found.ndim == 2:
            return found
        if found.ndim == 4:
            if pool == "token":
                raise UserError(f"{config.variant} has no class token to pool {layer} with.")
            return found.mean(axis=(1, 2))
        has_token = getattr(config, "classifier", "") == "token"
        if pool == "token":
            if not has_token:
                raise UserError(f"{config.variant} has no class token to pool {layer} with.")
            return found[:, 0]
        return found[:, int(has_token) :].mean(axis=1)

    shape = (1, *config.image_size, config.channels)
    jax.eval_shape(function, models.abstract_params(config), jax.ShapeDtypeStruct(shape, np.uint8))
    return function


def check(file: str | Path) -> tuple[Path, Path]:
    """The file to write, and that of the labels of an .npy.

    Raises:
      UserError: another suffix, the file exists, or a package is missing.
    """
    file = Path(file)
    if file.suffix not in (".npy", ".parquet"):
        raise UserError(f"{file} must end in .npy or .parquet.")
    beside = file.with_name(file.stem + ".labels.npy")
    for new in (file, beside) if file.suffix == ".npy" else (file,):
        files.check_new(new)
    if file.suffix == ".parquet":
        need("Parquet", "pyarrow", otherwise=", or use .npy")
    return file, beside


def write(
    file: str | Path,
    features: Iterator[tuple[np.ndarray, np.ndarray]],
    names: list[str],
    *,
    on_batch: Callable[[int], None] = lambda count: None,
) -> tuple[int, ...]:
    """Streams features to `.npy` (labels beside it, as NAME.labels.npy) or `.parquet`.

    Returns:
      The shape of what was written, (n, ...).

    Raises:
      UserError: see `check`.
    """
    file, beside = check(file)
    writers = {".npy": _write_npy, ".parquet": _write_parquet}
    file.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(file) as partial:
        labels, shape = writers[file.suffix](partial, features, names, on_batch)
        if file.suffix == ".npy":
            with files.replacing(beside) as other, open(other, "wb") as out:
                np.save(out, labels)
    return shape


def _write_npy(partial: Path, features, names: list[str], on_batch):
    """Returns the labels, and the shape of the features."""
    array, labels, seen = None, np.zeros(0), 0
    for found, wanted in features:
        if array is None:
            labels = np.zeros((len(names), *wanted.shape[1:]), wanted.dtype)
            shape = (len(names), *found.shape[1:])
            array = np.lib.format.open_memmap(partial, "w+", np.float32, shape)
            files.reserve(partial)
        array[seen : seen + len(found)], labels[seen : seen + len(found)] = found, wanted
        seen += len(found)
        on_batch(seen)
    assert array is not None and seen == len(names), (seen, len(names))
    array.flush()
    return labels, array.shape


def _write_parquet(partial: Path, features, names: list[str], on_batch):
    """Returns nothing for the labels, which are a column, and the shape of the features."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer, seen, shape = None, 0, ()
    for found, labels in features:
        flat = found.reshape(len(found), -1)
        column = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), flat.shape[1])
        table = pa.table(
            {
                "name": names[seen : seen + len(found)],
                "label": pa.array(labels, pa.int32())
                if labels.ndim == 1
                else pa.array(list(labels), pa.list_(pa.int8())),
                "features": column,
            }
        )
        shape = found.shape[1:]
        if writer is None:
            writer = pq.ParquetWriter(partial, table.schema)
        writer.write_table(table)
        seen += len(found)
        on_batch(seen)
    assert writer is not None and seen == len(names), (seen, len(names))
    writer.close()
    return None, (seen, *shape)
