"""Models for serving: StableHLO, ONNX, OpenVINO, SavedModel, each verified by running it."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import data, files, models, numerics
from vit_jax.errors import UserError, first_line, nearest, need
from vit_jax.interop import checksums, convert, load, onnx_files, openvino_files, peers, runtimes
from vit_jax.interop.peers import Answer, Outputs, of_any_number
from vit_jax.models import adapt, saved

PLATFORMS = ("cpu", "cuda", "tpu")
Array = np.ndarray
#: Tolerances for products in fewer bits, relative to the largest logit.
TOLERANCES = {"float32": 0.0, "float16": 0.02, "int8": 0.2}
CALIBRATION = 64  # images


class Options(NamedTuple):
    """Options of an export, named like the flags.

    batch_size: fixed; 0: dynamic.
    int8: dense layers of the encoder in 8 bits.
    features: also return pre_logits (b, d), before any tanh.
    opset: of ONNX; 0: the oldest that is sufficient.
    dtype: of weights and products.
    uint8: takes pixels, 0 to 255, instead of floats in [-1, 1].
    calibration: a data set to measure the range of activations, for int8 in ONNX; "":
      scikit-learn's photographs.
    """

    batch_size: int = 0
    int8: bool = False
    features: bool = False
    opset: int = 0
    dtype: str = "float32"
    uint8: bool = False
    calibration: str = ""


def export(
    source: str,
    target: str | Path,
    form: str,
    *,
    tolerance: float = 1e-4,
    photos: str = "",
    **options,
) -> convert.Proof:
    """Writes a function images (b, h, w, c) -> logits (b, num_classes) to `target`.

    Args:
      form: "stablehlo" (a directory), "onnx" (a file), "openvino" (an .xml and a .bin file) or
        "savedmodel" (a directory).
      tolerance: maximum difference of logits, relative to the largest; at least 0.02 for float16,
        0.2 for int8.
      photos: a data set for the comparison; "": scikit-learn's photographs.
      options: see `Options`.

    Raises:
      UserError: an unknown format or option, a missing package, or differences beyond the
        tolerance.
    """
    if form not in FORMATS:
        raise UserError(
            f"There is no format {form!r}; there are {', '.join(FORMATS)}.{nearest(form, FORMATS)}"
        )
    target = Path(target)
    asked = check_options(form, Options(**options), target)
    for part in parts(target):
        convert.check_free(part)
    probes, _ = peers.opened(photos), peers.opened(asked.calibration)
    config, params = load.read(source)
    config, params, folded = adapt.fold_temperature(models.at_rest(config), params)
    if isinstance(config, models.ViTConfig):
        config = models.replace(config, scan=False)
    images = peers.photographs(config, probes)
    head = convert.head_for_proof(config, params)
    wanted = peers.outputs(config, params | head, images)
    with files.staging(target) as scratch:
        made = scratch / target.name
        save, open_, _ = FORMATS[form]
        note = save(made, config, params, asked)
        if head:  # a zero classifier would make the comparison meaningless
            proved = scratch / f"proof{target.suffix}"
            save(proved, config, params | head, asked)
            open_(made)
        answer, runtime = open_(proved if head else made)
        found = of_any_number(answer)(images)
        if found.pre_logits is not None and getattr(config, "representation_size", None):
            found = found._replace(pre_logits=np.tanh(found.pre_logits))
        proof = convert.compare(wanted, found, runtime, bool(head))
        allowed = max(tolerance, TOLERANCES[asked.dtype], TOLERANCES["int8"] * asked.int8)
        convert.check(proof, allowed, str(source), form)
        for part in reversed(parts(made)):
            if part.exists():
                convert.put(part, target.with_name(part.name))
    return proof._replace(notes=tuple(filter(None, [*folded, note])))


def parts(path: Path) -> list[Path]:
    """The possible files of an export, the main one first."""
    beside = {".onnx": onnx_files.parts, ".xml": openvino_files.parts}
    return beside.get(path.suffix, lambda path: [path])(path)


def check_options(form: str, asked: Options, target: Path) -> Options:
    """Raises UserError for missing packages, and for options that `form` does not have."""
    for name, value, default in zip(Options._fields, asked, Options(), strict=True):
        has = [other for other, (_, _, names) in FORMATS.items() if name in names]
        if value != default and form not in has:
            raise UserError(f"--{name} is for --format={' or '.join(has)}.")
    if asked.calibration and not asked.int8:
        raise UserError("--calibration is for --int8.")
    if asked.int8 and asked.dtype != "float32":
        raise UserError(f"--int8 and --dtype={asked.dtype} exclude each other.")
    suffix = {of: end for end, of in BY_SUFFIX.items()}.get(form, target.suffix)
    if target.suffix != suffix:
        raise UserError(f"{target} must end in {suffix} for --format={form}.")
    need(f"--format={form}", *PACKAGES[form])
    if form == "savedmodel" and not importlib.util.find_spec("jax.experimental.jax2tf"):
        raise UserError("--format=savedmodel needs a JAX that has jax2tf; give --format=stablehlo.")
    if asked.int8:
        need("--int8", "qwix" if form == "stablehlo" else "onnxruntime")
    if "onnx" in PACKAGES[form]:
        onnx_files.check(asked.opset or onnx_files.OLDEST_OPSET, asked.dtype)
    return asked


class Exported(NamedTuple):
    """run: images (b, h, w, c) float32 in [-1, 1] -> Outputs; and the stored facts."""

    run: Callable[[Array], Outputs]
    image_size: tuple[int, int]
    channels: int
    preprocessing: models.Preprocessing
    labels: tuple[str, ...]
    multilabel: bool
    thresholds: tuple[float, ...]
    variant: str


def is_exported(path: str | Path) -> bool:
    """Whether `path` looks like what `export` writes."""
    path = Path(path).expanduser()
    return path.suffix in runtimes.SUFFIXES or (path / "facts.json").exists()


def open_exported(path: str | Path, runtime: str | None = None) -> Exported:
    """An exported model of any format, with its facts; for `runtime`, see `runtimes.RUNTIMES`.

    Raises:
      UserError: it is damaged, its runtime is not installed, or it was not written by `export`.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise UserError(f"There is no exported model {path}.")
    if runtime or path.suffix in runtimes.SUFFIXES:
        _, open_, read_facts = runtimes.choose(path, runtime)
        known, (answer, _) = read_facts(path), open_(path)  # the first verifies the checksum
    else:
        form = "stablehlo" if (path / "model.stablehlo").exists() else "savedmodel"
        (answer, _), known = FORMATS[form][1](path), files.read_json(path / "facts.json")
    try:
        found = Exported(
            of_any_number(answer),
            image_size=models.pair(known["image_size"]),
            channels=int(known["channels"]),
            preprocessing=tuple(
                (key, tuple(value) if isinstance(value, list) else value)
                for key, value in known["preprocessing"].items()
            ),
            labels=tuple(known["labels"]),
            multilabel=bool(known.get("multilabel", False)),
            thresholds=tuple(map(float, known.get("thresholds", ()))),
            variant=str(known.get("variant", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path} has no preprocessing ({type(error).__name__}: {error}); only exports by "
            "`vit-jax export` can be evaluated."
        ) from error
    if path.suffix in runtimes.SUFFIXES:  # other tools may reshape these
        peers.check_takes(answer, (*found.image_size, found.channels), path)
    return found


def facts(config: models.ModelConfig, uint8: bool = False) -> dict[str, object]:
    """Facts that a server needs besides the function."""
    several = {"multilabel": True, "probabilities": "sigmoid", "thresholds": config.thresholds}
    shape = "(batch, height, width, channels)"
    return {
        "input": f"uint8 {shape}, pixels" if uint8 else f"float32 {shape}, pixels / 127.5 - 1",
        "image_size": list(config.image_size),
        "channels": config.channels,
        "preprocessing": dict(config.preprocessing) or data.DEFAULT_EVALUATION,
        "labels": list(config.labels),
        "variant": config.variant,
        **(several if config.multilabel else {}),
    }


# --- StableHLO ----------------------------------------------------------------------------------


def save_stablehlo(
    directory: Path, config: models.ModelConfig, params: models.Params, asked: Options
) -> None:
    """`model.stablehlo` (function of the weights and the images), the weights, and the facts."""
    from jax import export as jax_export

    _, apply = models.as_functions(config, numerics.PLAIN)  # it may run on any machine
    if asked.int8:
        from vit_jax.interop import quantize

        apply, params = quantize.int8(config, params)
    batch = asked.batch_size or jax_export.symbolic_shape("b")[0]
    images = jax.ShapeDtypeStruct((batch, *config.image_size, config.channels), np.float32)
    shapes = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in params.items()}
    function = jax.jit(functools.partial(answers, apply) if asked.features else apply)
    exported = jax_export.export(function, platforms=PLATFORMS)(shapes, images)
    directory.mkdir()
    (directory / "model.stablehlo").write_bytes(exported.serialize())
    saved.write_safetensors(directory / "weights.safetensors", params)
    write_facts(directory, config)


def write_facts(directory: Path, config: models.ModelConfig) -> None:
    """`facts.json`, with a checksum of each file in the directory, and of itself."""
    sums = {name: checksums.checksum(path) for name, path in files_of(directory).items()}
    file = directory / "facts.json"
    files.write_json(file, facts(config) | {"files": sums, checksums.NAME: checksums.OPEN})
    checksums.seal(file)


def files_of(directory: Path) -> dict[str, Path]:
    """The files of an exported directory except its facts, by relative name."""
    found = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    names = {path.relative_to(directory).as_posix(): path for path in found}
    return {name: path for name, path in names.items() if name != "facts.json"}


def check_directory(directory: Path) -> bool:
    """Whether an exported directory has checksums; verifies them unless VERIFY is off.

    Raises:
      UserError: a file is missing or damaged; additional files are allowed.
    """
    known = files.read_json(directory / "facts.json")
    if known is None or not checksums.check(directory / "facts.json"):
        return False
    for name, wanted in known["files"].items() if files.VERIFY.get() else ():
        if not (directory / name).is_file():
            raise UserError(f"{directory / name} is missing; copy or export it again.")
        if checksums.checksum(directory / name) != wanted:
            raise UserError(f"{directory / name} is damaged.{saved.COPY}")
    return True


def has_checksum(path: Path) -> bool:
    """Whether an exported model has a checksum; verifies it.

    Raises:
      UserError: it does not match.
    """
    if path.is_dir():
        return check_directory(path)
    return checksums.check(path, [part for part in parts(path)[1:] if part.exists()])


def answers(apply: Callable, params: models.Params, images: jax.Array) -> tuple[jax.Array, ...]:
    """Logits and pre_logits, of the model's function."""
    logits, out = apply(params, images, return_intermediates=("pre_logits",))
    return logits, out["pre_logits"]


def open_stablehlo(directory: str | Path) -> tuple[Answer, str]:
    """Runs an export from its files alone, without the model's code."""
    from jax import export as jax_export

    directory = Path(directory)
    check_directory(directory)
    function = (directory / "model.stablehlo").read_bytes()
    # Earlier exports have a checksum of the function only.
    written = (files.read_json(directory / "facts.json") or {}).get("sha256")
    if files.VERIFY.get() and written not in (None, hashlib.sha256(function).hexdigest()[:16]):
        raise UserError(f"{directory}/model.stablehlo is damaged.{saved.COPY}")
    try:
        exported = jax_export.deserialize(bytearray(function))
    except Exception as error:  # of many kinds
        why = first_line(error)
        raise UserError(f"{directory}/model.stablehlo is damaged ({why}).") from error
    weights = saved.read_safetensors(directory / "weights.safetensors")
    if [x.shape for x in jax.tree.leaves(weights)] != [x.shape for x in exported.in_avals[:-1]]:
        raise UserError(f"{directory}: its model.stablehlo is for other weights.")
    on_device = jax.tree.map(jax.numpy.asarray, weights)
    call = jax.jit(exported.call)

    def run(images: Array) -> Outputs:
        found = jax.tree.leaves(call(on_device, images))
        return Outputs(*(np.asarray(value) for value in found))

    return Answer(run, exported.in_avals[-1].shape[0]), f"jax.export {jax.__version__}"


def save_onnx(file: Path, config: models.ModelConfig, params: models.Params, asked: Options) -> str:
    """An ONNX file with the weights inside, and the facts as its metadata."""
    options = asked._asdict() | {"opset": asked.opset or onnx_files.OLDEST_OPSET}
    options["calibration"] = None
    if asked.int8:
        images = peers.opened(asked.calibration)
        options["calibration"] = peers.photographs(config, images, CALIBRATION)
    return onnx_files.save(file, config, params, facts(config, asked.uint8), **options)


def save_openvino(
    file: Path, config: models.ModelConfig, params: models.Params, asked: Options
) -> str:
    """OpenVINO's IR of the ONNX file."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".onnx-") as scratch:
        made = Path(scratch) / "model.onnx"
        note = save_onnx(made, config, params, asked)
        openvino_files.save(file, made, facts(config, asked.uint8))
    return note


# --- SavedModel ---------------------------------------------------------------------------------


def save_savedmodel(
    directory: Path, config: models.ModelConfig, params: models.Params, asked: Options
) -> None:
    """A TensorFlow SavedModel with the signature "serving_default"."""
    import tensorflow as tf
    from jax.experimental import jax2tf

    _, apply = models.as_functions(config, numerics.PLAIN)  # it may run on any machine
    sides = (asked.batch_size or "b", *config.image_size, config.channels)
    function = jax2tf.convert(
        functools.partial(answers, apply) if asked.features else apply,
        polymorphic_shapes=[None, f"({', '.join(map(str, sides))})"],
        native_serialization_platforms=("cpu", "cuda"),
        with_gradient=False,
    )
    module = tf.Module()
    module.weights = {name.replace("/", "."): tf.Variable(v) for name, v in params.items()}

    def call(images):
        weights = {name.replace(".", "/"): v for name, v in module.weights.items()}
        found = function(weights, images)
        names = ("logits", "pre_logits")
        return dict(zip(names, found, strict=True)) if asked.features else {"logits": found}

    shape = (asked.batch_size or None, *config.image_size, config.channels)
    module.call = tf.function(call, input_signature=[tf.TensorSpec(shape, tf.float32, "images")])
    tf.saved_model.save(module, str(directory), signatures={"serving_default": module.call})
    write_facts(directory, config)


def open_savedmodel(directory: str | Path) -> tuple[Answer, str]:
    """Runs a SavedModel by TensorFlow."""
    check_directory(Path(directory))
    need("A SavedModel", "tensorflow")
    import tensorflow as tf

    serve = tf.saved_model.load(str(directory)).signatures["serving_default"]

    def run(images: Array) -> Outputs:
        found = {k: v.numpy() for k, v in serve(images=tf.constant(images)).items()}
        return Outputs(found["logits"], found.get("pre_logits"))

    size = serve.structured_input_signature[1]["images"].shape[0]
    return Answer(run, size), f"TensorFlow {tf.__version__}"


Opened = tuple[Answer, str]
#: For each format: writer, reader, and options.
FORMATS: dict[str, tuple[Callable[..., str | None], Callable[..., Opened], set[str]]] = {
    "stablehlo": (save_stablehlo, open_stablehlo, {"batch_size", "int8", "features"}),
    "onnx": (save_onnx, onnx_files.open_file, set(Options._fields)),
    "openvino": (save_openvino, openvino_files.open_file, set(Options._fields)),
    "savedmodel": (save_savedmodel, open_savedmodel, {"batch_size", "features"}),
}
#: The packages that write and run a format.
PACKAGES = {
    "stablehlo": (), "onnx": ("onnx", "onnxruntime"), "openvino": ("onnx", "openvino"),
    "savedmodel": ("tensorflow",),
}  # fmt: skip
BY_SUFFIX = {".onnx": "onnx", ".xml": "openvino"}
