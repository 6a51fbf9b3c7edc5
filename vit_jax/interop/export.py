"""Models for serving: StableHLO, ONNX and SavedModel, each run again before it is called done."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import data, files, models, numerics
from vit_jax.errors import UserError, nearest
from vit_jax.interop import convert, load, onnx_layers, peers
from vit_jax.models import saved

PLATFORMS = ("cpu", "cuda", "tpu")
Array = np.ndarray
Function = Callable[[Array], Array]


def export(
    source: str,
    target: str | Path,
    form: str,
    *,
    batch_size: int = 0,
    int8: bool = False,
    tolerance: float = 1e-4,
    photos: str = "",
) -> convert.Proof:
    """Writes a function images (b, h, w, c) in [-1, 1] -> logits (b, num_classes) to `target`.

    Args:
      form: "stablehlo" (a directory), "onnx" (a file) or "savedmodel" (a directory).
      batch_size: a fixed one; 0 leaves it open.
      int8: the encoder's products in 8 bits (StableHLO only); the tolerance is then 0.2.
      photos: a data set whose images are compared on; "" takes scikit-learn's photographs.

    Raises:
      UserError: an unknown format, a missing package, or answers beyond the tolerance.
    """
    if form not in FORMATS:
        raise UserError(
            f"There is no format {form!r}; there are {', '.join(FORMATS)}.{nearest(form, FORMATS)}"
        )
    if int8 and form != "stablehlo":
        raise UserError("--int8 is for --format=stablehlo.")
    target = Path(target)
    convert.check_free(target)
    config, params = load.read(source)
    config = models.at_rest(config)
    if isinstance(config, models.ViTConfig):
        config = models.replace(config, scan=False)
    images = peers.photographs(config, photos)
    head = convert.head_for_proof(config, params)
    wanted = peers.outputs(config, params | head, images)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".exporting-") as scratch:
        made = Path(scratch) / target.name
        save, open_ = FORMATS[form]
        options = {"int8": True} if int8 else {}
        save(made, config, params, batch_size, **options)
        if head:  # what is proved is the same with a classifier that tells photographs apart
            proved = Path(scratch) / f"proof{target.suffix}"
            save(proved, config, params | head, batch_size, **options)
            open_(made)
        run, runtime = open_(proved if head else made)
        found = run(images)
        proof = convert.compare(wanted, peers.Outputs(found), runtime, bool(head))
        convert.check(proof, max(tolerance, 0.2) if int8 else tolerance, str(source), form)
        shutil.move(made, target)
    return proof


def of_any_number(run: Function, size: object) -> Function:
    """`run` for any number of images; `size` is the batch that was exported, if it is a number."""
    if not isinstance(size, int):
        return run

    def run_all(images: Array) -> Array:
        if len(images) == size:
            return run(images)
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % size, axis=0)])
        found = [run(padded[start : start + size]) for start in range(0, len(padded), size)]
        return np.concatenate(found)[: len(images)]

    return run_all


class Exported(NamedTuple):
    """run: images (b, h, w, c) float32 in [-1, 1] -> logits (b, k); and what a server knows."""

    run: Function
    image_size: tuple[int, int]
    channels: int
    preprocessing: models.Preprocessing
    labels: tuple[str, ...]
    multilabel: bool
    thresholds: tuple[float, ...]


def is_exported(path: str | Path) -> bool:
    """Whether `path` looks like what `export` writes."""
    path = Path(path).expanduser()
    return path.suffix == ".onnx" or (path / "facts.json").exists()


def open_exported(path: str | Path) -> Exported:
    """An exported model of any format, with its facts.

    Raises:
      UserError: it is damaged, its runtime is not installed, or it was not written by `export`.
    """
    path = Path(path).expanduser()
    form = "onnx" if path.suffix == ".onnx" else "savedmodel"
    form = "stablehlo" if (path / "model.stablehlo").exists() else form
    if not path.exists():
        raise UserError(f"There is no exported model {path}.")
    run, _ = FORMATS[form][1](path)
    known = onnx_facts(path) if form == "onnx" else files.read_json(path / "facts.json")
    try:
        return Exported(
            run,
            image_size=models.pair(tuple(known["image_size"])),
            channels=int(known["channels"]),
            preprocessing=tuple(
                (key, tuple(value) if isinstance(value, list) else value)
                for key, value in known["preprocessing"].items()
            ),
            labels=tuple(known["labels"]),
            multilabel=bool(known.get("multilabel", False)),
            thresholds=tuple(map(float, known.get("thresholds", ()))),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} does not say how images are prepared for it ({type(error).__name__}: {error});"
            " only what `vit-jax export` wrote can be evaluated."
        ) from error


def facts(config: models.ModelConfig) -> dict[str, object]:
    """What a server must know besides the function."""
    several = {"multilabel": True, "probabilities": "sigmoid", "thresholds": config.thresholds}
    return {
        "input": "float32 (batch, height, width, channels), pixels / 127.5 - 1",
        "image_size": list(config.image_size),
        "channels": config.channels,
        "preprocessing": dict(config.preprocessing) or data.DEFAULT_EVALUATION,
        "labels": list(config.labels),
        "variant": config.variant,
        **(several if config.multilabel else {}),
    }


# --- StableHLO ----------------------------------------------------------------------------------


def save_stablehlo(
    directory: Path,
    config: models.ModelConfig,
    params: models.Params,
    batch_size: int,
    *,
    int8: bool = False,
) -> None:
    """`model.stablehlo` (function of the weights and the images), the weights, and the facts."""
    from jax import export as jax_export

    _, apply = models.as_functions(config, numerics.PLAIN)  # it may run on any machine
    if int8:
        from vit_jax.interop import quantize

        apply, params = quantize.int8(config, params)
    batch = batch_size or jax_export.symbolic_shape("b")[0]
    images = jax.ShapeDtypeStruct((batch, *config.image_size, config.channels), np.float32)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in params.items()}
    exported = jax_export.export(
        jax.jit(lambda params, images: apply(params, images)), platforms=PLATFORMS
    )(shapes, images)
    directory.mkdir()
    function = exported.serialize()
    (directory / "model.stablehlo").write_bytes(function)
    saved.write_safetensors(directory / "weights.safetensors", params)
    known = facts(config) | {"sha256": hashlib.sha256(function).hexdigest()[:16]}
    files.write_json(directory / "facts.json", known)


def open_stablehlo(directory: str | Path) -> tuple[Function, str]:
    """images -> logits, from the files alone: nothing of the model's code is used."""
    from jax import export as jax_export

    directory = Path(directory)
    function = (directory / "model.stablehlo").read_bytes()
    written = (files.read_json(directory / "facts.json") or {}).get("sha256")
    if files.VERIFY.get() and written not in (None, hashlib.sha256(function).hexdigest()[:16]):
        raise UserError(f"{directory}/model.stablehlo is damaged.{saved.COPY}")
    exported = jax_export.deserialize(bytearray(function))
    weights = saved.read_safetensors(directory / "weights.safetensors")
    on_device = jax.tree.map(jax.numpy.asarray, weights)
    call = jax.jit(exported.call)
    run = of_any_number(
        lambda images: np.asarray(call(on_device, images)), exported.in_avals[-1].shape[0]
    )
    return run, f"jax.export {jax.__version__}"


# --- ONNX ---------------------------------------------------------------------------------------


def save_onnx(
    file: Path, config: models.ModelConfig, params: models.Params, batch_size: int
) -> None:
    """An ONNX file with the weights inside, and the facts as its metadata."""
    if file.suffix != ".onnx":
        raise UserError(f"{file.name} must end in .onnx for --format=onnx.")
    logging.disable(logging.CRITICAL)  # the translator reports what it tries, at every level
    try:
        import onnx
        from jax2onnx import to_onnx
    except ImportError:
        raise UserError("ONNX needs the extra packages: pip install 'vit_jax[onnx]'.") from None
    finally:
        logging.disable(logging.NOTSET)
    on_device = jax.tree.map(jax.numpy.asarray, dict(params))
    shape = (batch_size or "B", *config.image_size, config.channels)
    name = re.sub(r"\W", "_", f"vit_jax_{config.variant}")
    logging.disable(logging.CRITICAL)
    try:
        _, apply = models.as_functions(config, onnx_layers.ONNX)
        model = to_onnx(lambda images: apply(on_device, images), [shape], model_name=name)
    finally:
        logging.disable(logging.NOTSET)
    for key, value in facts(config).items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.save_model(model, str(file))
    onnx.checker.check_model(str(file))


def open_onnx(file: str | Path) -> tuple[Function, str]:
    """images -> logits by ONNX Runtime, on the CPU.

    Raises:
      UserError: the runtime is not installed, or cannot run the model.
    """
    session, version = _session(file)
    given = session.get_inputs()[0]
    run = of_any_number(
        lambda images: session.run(None, {given.name: np.asarray(images)})[0], given.shape[0]
    )
    return run, version


def _session(file: str | Path):
    """What ONNX Runtime makes of a file, tried once, and the runtime's version."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError(
            "An .onnx file is run by ONNX Runtime: pip install 'vit_jax[onnx]'."
        ) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            str(file), options, providers=["CPUExecutionProvider"]
        )
        given = session.get_inputs()[0]
        session.run(None, {given.name: _zeros(given.shape)})
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:160]
        raise UserError(f"ONNX Runtime cannot run {Path(file).name} ({reason}).") from error
    return session, f"onnxruntime {onnxruntime.__version__}"


def onnx_facts(file: Path) -> dict:
    """The facts in the metadata of an ONNX file; entries that are no JSON are text."""
    session, _ = _session(file)
    found = {}
    for key, value in session.get_modelmeta().custom_metadata_map.items():
        try:
            found[key] = json.loads(value)
        except ValueError:
            found[key] = value
    return found


def _zeros(shape: list[int | str]) -> Array:
    """One image (or the fixed batch) of zeros."""
    return np.zeros([size if isinstance(size, int) else 1 for size in shape], np.float32)


# --- SavedModel ---------------------------------------------------------------------------------


def save_savedmodel(
    directory: Path, config: models.ModelConfig, params: models.Params, batch_size: int
) -> None:
    """A TensorFlow SavedModel with the signature "serving_default"."""
    try:
        import tensorflow as tf
        from jax.experimental import jax2tf
    except ImportError:
        raise UserError(
            "SavedModel needs TensorFlow and a JAX that has jax2tf: pip install 'vit_jax[prepare]'."
        ) from None
    _, apply = models.as_functions(config, numerics.PLAIN)  # it may run on any machine
    size = f"{batch_size or 'b'}, {config.image_size[0]}, {config.image_size[1]}, {config.channels}"
    function = jax2tf.convert(
        apply,
        polymorphic_shapes=[None, f"({size})"],
        native_serialization_platforms=("cpu", "cuda"),
        with_gradient=False,
    )
    module = tf.Module()
    module.weights = {name.replace("/", "."): tf.Variable(v) for name, v in params.items()}

    def call(images):
        weights = {name.replace(".", "/"): v for name, v in module.weights.items()}
        return {"logits": function(weights, images)}

    shape = (batch_size or None, *config.image_size, config.channels)
    module.call = tf.function(call, input_signature=[tf.TensorSpec(shape, tf.float32, "images")])
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.call})
    files.write_json(directory / "facts.json", facts(config))


def open_savedmodel(directory: str | Path) -> tuple[Function, str]:
    """images -> logits by TensorFlow."""
    import tensorflow as tf

    serve = tf.saved_model.load(str(directory)).signatures["serving_default"]
    run = of_any_number(
        lambda images: serve(images=tf.constant(images))["logits"].numpy(),
        serve.structured_input_signature[1]["images"].shape[0],
    )
    return run, f"TensorFlow {tf.__version__}"


FORMATS: dict[str, tuple[Callable[..., None], Callable[[Path], tuple[Function, str]]]] = {
    "stablehlo": (save_stablehlo, open_stablehlo),
    "onnx": (save_onnx, open_onnx),
    "savedmodel": (save_savedmodel, open_savedmodel),
}
