"""One model in every format: the table of docs/weights.md.

  taskset -c 0 python docs/tools/formats.py --checkpoint=/runs/flowers \\
      --data=folder:/data/flowers --out=formats

Makes every export by its command and runs it by its runtime, with its own preprocessing, on the
photographs of the evaluation split, beside the checkpoint in JAX. Predictions are of `vit-jax
evaluate` where it runs the file in this runtime; images/s are without preprocessing. Writes
table.md and table.csv into --out, and keeps exports that are there. On one core, since threads that
wait for each other on a shared machine measure what else runs there: torch took 20 times as long.
"""

import argparse
import csv
import functools
import importlib
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

import vit_jax
from vit_jax import cli, data, models
from vit_jax.errors import need
from vit_jax.evaluation import per_image
from vit_jax.interop import export, load, openvino_files, peers

PACKAGES = ("onnxruntime", "openvino", "qwix", "tensorflow", "timm", "transformers")
BATCH, ROUNDS, SECONDS = 8, 15, 0.3  # of the speeds: in a round each model has a turn


class Model(NamedTuple):
    """A file in a runtime. prepare: image files -> its input; logits: its input -> (b, k)."""

    runtime: str
    prepare: Callable[[Sequence[str]], object]
    logits: Callable[[object], np.ndarray]
    is_evaluated: bool = False  # whether `vit-jax evaluate` runs it in this runtime


def in_jax(path: str) -> Model:
    config, params = load.read(path)
    apply = functools.partial(jax.jit(models.as_functions(config)[1]), jax.device_put(params))
    prepare = functools.partial(vit_jax.preprocess, config)
    return Model("jax", prepare, lambda images: np.asarray(apply(images)), True)


def exported(runtime: str) -> Callable[[str], Model]:
    """An export in the runtime of its format."""

    def opened(path: str) -> Model:
        found = export.open_exported(path)
        prepare = functools.partial(vit_jax.preprocess, found)
        return Model(runtime, prepare, lambda images: found.run(images).logits, True)

    return opened


def in_openvino(path: str) -> Model:
    (answer, _), prepare = openvino_files.open_file(path), exported("")(path).prepare
    return Model("openvino", prepare, lambda images: answer.run(images).logits)


def in_transformers(path: str) -> Model:
    """The parts of its pipeline, which decodes the files."""
    from transformers import pipeline

    pipe = pipeline("image-classification", model=path)
    return torch_model(
        *("transformers", lambda file: pipe.preprocess(file)["pixel_values"][0]),
        lambda images: pipe.model(images).logits,
    )


def in_timm(path: str) -> Model:
    import timm
    from PIL import Image

    model = timm.create_model(f"local-dir:{path}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    return torch_model("timm", lambda file: transform(Image.open(file).convert("RGB")), model)


def torch_model(runtime: str, prepare: Callable, model: Callable) -> Model:
    import torch

    logits = torch.inference_mode()(lambda images: model(images).numpy())
    return Model(runtime, lambda files: torch.stack([prepare(file) for file in files]), logits)


ONNX = (exported("onnxruntime"), in_openvino)
#: {file: (how it is made, the runtimes)}; "" is the checkpoint, and DATA its training split.
TABLE = {
    "": ("", [in_jax]),
    "weights.npz": ("convert --to=npz", [in_jax]),
    "huggingface": ("convert --to=huggingface", [in_transformers]),
    "timm": ("convert --to=timm", [in_timm]),
    "float32.onnx": ("export --format=onnx", ONNX),
    "float16.onnx": ("export --format=onnx --dtype=float16", ONNX),
    "int8.onnx": ("export --format=onnx --int8 --calibration=DATA", ONNX),
    "float32.xml": ("export --format=openvino", [exported("openvino")]),
    "float16.xml": ("export --format=openvino --dtype=float16", [exported("openvino")]),
    "int8.xml": ("export --format=openvino --int8 --calibration=DATA", [exported("openvino")]),
    "stablehlo": ("export --format=stablehlo", [exported("jax.export")]),
    "stablehlo-int8": ("export --format=stablehlo --int8", [exported("jax.export")]),
    "savedmodel": ("export --format=savedmodel", [exported("tensorflow")]),
}


def run(command: str, *words: str) -> None:
    """A command of vit-jax; the script ends if it fails."""
    print("vit-jax", command, *words, flush=True)
    if code := cli.main([command, *words]):
        raise SystemExit(code)


def make(checkpoint: str, path: str, words: str) -> None:
    """An export, if it is not there."""
    if not Path(path).exists():
        command, *rest = words.split()
        flags = ("--checkpoint=", "--out=") if command == "export" else ("", "")
        run(command, flags[0] + checkpoint, flags[1] + path, *rest)


def evaluated(path: str, source: data.Source) -> np.ndarray:
    """The class that `vit-jax evaluate` finds in each image."""
    with tempfile.TemporaryDirectory() as out:
        rows = Path(out) / "images.csv"
        places = [f"--checkpoint={path}", f"--data={source.spec}", f"--out={out}"]
        run("evaluate", *places, f"--predictions={rows}")
        with open(rows, newline="", encoding="utf-8") as file:
            names = [row["class_1"] for row in csv.DictReader(file)]
    return np.array([source.class_names.index(name) for name in names])


def speeds(running: Sequence[Model], files: Sequence[str]) -> np.ndarray:
    """Images/s (models, rounds); the models take turns."""
    inputs = [model.prepare(files[:BATCH]) for model in running]
    found = np.zeros((len(running), ROUNDS))
    for k in range(ROUNDS):
        for i, (model, images) in enumerate(zip(running, inputs, strict=True)):
            model.logits(images)  # after another's turn
            start = time.perf_counter()
            while (passed := time.perf_counter() - start) < SECONDS:
                model.logits(images)
                found[i, k] += BATCH
            found[i, k] /= passed
    return found


def megabytes(path: Path) -> float:
    files = path.rglob("*") if path.is_dir() else export.parts(path)
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def measure(checkpoint: str, spec: str, out: Path) -> list[dict[str, object]]:
    """The rows of the table. The first is the checkpoint, and others are compared with it."""
    source = data.open_source(data.evaluation_spec(spec), labelled=True)
    files = [str(Path(source.root, path)) for path in source.paths]
    running, rows, reference, wanted = [], [], 0, 0
    for name, (words, runtimes) in TABLE.items():
        path = str(out / name) if name else checkpoint
        make(checkpoint, path, words.replace("DATA", f"{spec}[train]"))
        for runtime in runtimes:
            running.append(model := runtime(path))
            parts = (files[i : i + BATCH] for i in range(0, len(files), BATCH))
            logits = np.concatenate([model.logits(model.prepare(part)) for part in parts])
            found = evaluated(path, source) if model.is_evaluated else logits.argmax(-1)
            if not name:
                reference, wanted = logits, found
                print(f"{len(files)} photographs, largest logit {np.abs(logits).max():.3g}")
            right = found == source.labels
            module = importlib.import_module(model.runtime.split(".")[0])
            rows.append({
                "made by": f"`{words}`" if name else "the run itself",
                "run by": f"{model.runtime} {module.__version__.split('-')[0]}",
                "logit difference": f"{np.abs(logits - reference).max():.2g}",
                "top-1 equal": f"{(found == wanted).mean():.1%}",
                "MB": f"{megabytes(Path(path) if name else Path(path, 'model')):.1f}",
                "accuracy": f"{right.mean():.2%}",
                **{each: f"{right[source.labels == label].mean():.1%}"
                   for label, each in enumerate(source.class_names)},
            })  # fmt: skip
    rates = speeds(running, files)
    for row, own in zip(rows, rates, strict=True):
        row["images/s"] = f"{np.median(own):,.0f}"
        row["times JAX"] = f"{np.median(own / rates[0]):.2f}"
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("checkpoint", "data", "out"):
        parser.add_argument(f"--{name}", required=True)
    asked = parser.parse_args()
    out = Path(asked.out)
    need("The table", *PACKAGES)
    peers.declare_torchvision()
    out.mkdir(parents=True, exist_ok=True)
    rows = measure(asked.checkpoint, asked.data, out)
    per_image.write_csv(out / "table.csv", {key: [r[key] for r in rows] for key in rows[0]})
    lines = [rows[0].keys(), ["-"] * len(rows[0]), *(row.values() for row in rows)]
    text = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    (out / "table.md").write_text(f"{text}\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
