"""Other contenders: timm, transformers, tf.data, exported models, or your own function.

Each is a function (Spec) -> Job, as jobs.build is for this package.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax.bench.jobs import (
    BUFFERED,
    CLIP,
    CORES,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Job,
    Spec,
    encoded_files,
    random_images,
)
from vit_jax.errors import UserError, need
from vit_jax.interop import export
from vit_jax.interop.peers import declare_torchvision, of_any_number


def torch_job(spec: Spec, model: Any, logits_of: Callable[[Any], Any], *, compiled: bool) -> Job:
    """Training or inference of a torch module, float32 or under bfloat16 autocast."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = model.to(device)
    bf16 = spec.dtype == "bfloat16"

    def autocast() -> Any:
        if not bf16:
            return contextlib.nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16)

    images = torch.from_numpy(random_images(spec)).to(device)
    labels = torch.arange(spec.batch, device=device) % spec.num_classes

    def forward(images):
        return logits_of(model(images.permute(0, 3, 1, 2).float() / 127.5 - 1.0))

    run = torch.compile(forward) if compiled else forward

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def infer() -> None:
        with torch.inference_mode(), autocast():
            run(images)
        wait()

    if spec.task == "train":
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            fused=True,
        )

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with autocast():
                loss = torch.nn.functional.cross_entropy(run(images).float(), labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            wait()

        model.train()
    else:
        model.eval()
        step = infer

    def logits(pixels: np.ndarray) -> np.ndarray:
        training = model.training
        model.eval()
        with torch.inference_mode(), autocast():
            x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()).to(device)
            found = logits_of(model(x)).float().cpu().numpy()
        model.train(training)
        return found

    return Job(step, spec.batch, 0.0, logits)


def timm(spec: Spec, *, compiled: bool = False) -> Job:
    """timm's model with the same weights."""
    declare_torchvision()
    import timm as library

    model = library.create_model(f"local-dir:{spec.weights}", pretrained=True)
    return torch_job(spec, model, lambda found: found, compiled=compiled)


def timm_compiled(spec: Spec) -> Job:
    """timm's model under torch.compile."""
    return timm(spec, compiled=True)


def transformers(spec: Spec) -> Job:
    """transformers' model with the same weights."""
    declare_torchvision()
    import transformers as library

    model = library.ViTForImageClassification.from_pretrained(spec.weights)
    return torch_job(spec, model, lambda found: found.logits, compiled=False)


def tf_data(spec: Spec) -> Job:
    """TensorFlow's input pipeline on the same files and boxes: decode and crop, resize, flip."""
    import tensorflow as tf

    size = (spec.image_size, spec.image_size)

    def box(height, width):
        """inception_box: the first of 20 that fits, where about two in three do."""
        pixels = tf.random.uniform([20], 0.05, 1.0) * tf.cast(height * width, tf.float32)
        ratio = tf.random.uniform([20], 3 / 4, 4 / 3)
        heights = tf.cast(tf.round(tf.sqrt(pixels / ratio)), tf.int32)
        widths = tf.cast(tf.round(tf.sqrt(pixels * ratio)), tf.int32)
        fits = (heights <= height) & (widths <= width)
        chosen = tf.argmax(tf.cast(fits, tf.int32))
        h, w = tf.minimum(heights[chosen], height), tf.minimum(widths[chosen], width)
        top = tf.random.uniform([], 0, height - h + 1, tf.int32)
        left = tf.random.uniform([], 0, width - w + 1, tf.int32)
        return tf.stack([top, left, h, w])

    def prepare(file):
        height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(file))
        image = tf.io.decode_and_crop_jpeg(file, box(height, width), channels=3)
        image = tf.image.random_flip_left_right(tf.image.resize(image, size))
        return tf.cast(image, tf.uint8)

    batches = iter(
        tf.data.Dataset.from_tensor_slices(encoded_files(spec))
        .repeat()
        .shuffle(256)
        .map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(spec.batch)
        .prefetch(2 * CORES)  # as many as ours: more would run in the turns of others
        .as_numpy_iterator()
    )
    return Job(lambda: next(batches), spec.batch, unmeasured=BUFFERED)


def exported(spec: Spec, form: str) -> Job:
    """The model as `vit-jax export` writes it, on float images of the host."""
    options = {"dtype": spec.dtype} if form in ROUNDS_PRODUCTS else {}
    answer, _ = export.FORMATS[form][1](Path(spec.weights), **options)
    run_all = of_any_number(answer)
    images = random_images(spec).astype(np.float32) / 127.5 - 1.0

    def run(images: np.ndarray) -> np.ndarray:
        return run_all(images).logits

    return Job(lambda: run(images), spec.batch, 0.0, run)


#: Formats of `vit-jax export`: contenders of inference in float32.
SERVING = {
    "stablehlo": functools.partial(exported, form="stablehlo"),
    "onnx": functools.partial(exported, form="onnx"),
    "openvino": functools.partial(exported, form="openvino"),
    "savedmodel": functools.partial(exported, form="savedmodel"),
}
#: Runtimes that can use 16-bit products for any file.
ROUNDS_PRODUCTS = ("openvino",)
MODELS = {"timm": timm, "timm-compile": timm_compiled, "transformers": transformers}
FORMATS = {
    "timm": "timm", "timm-compile": "timm", "transformers": "huggingface",
    "stablehlo": "stablehlo", "onnx": "onnx", "openvino": "openvino", "savedmodel": "savedmodel",
}  # fmt: skip
PACKAGES = {
    "timm": ("timm", "torch"), "timm-compile": ("timm", "torch"),
    "transformers": ("transformers", "torch"), "tf.data": ("tensorflow",), **export.PACKAGES,
}  # fmt: skip


def installed() -> list[str]:
    """The peers of training and input that can run here."""
    names = ("timm", "transformers", "tf.data")
    return [name for name in names if all(map(importlib.util.find_spec, PACKAGES[name]))]


def find(name: str) -> Callable[[Spec], Job]:
    """The builder of a peer: a name of the table, or MODULE:FUNCTION.

    Raises:
      UserError: there is no such peer, or its packages are not installed.
    """
    need(f"--peers={name}", *PACKAGES.get(name, ()))
    if name == "tf.data":
        return tf_data
    if name in MODELS or name in SERVING:
        return (MODELS | SERVING)[name]
    module, colon, function = name.partition(":")
    if colon:
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise UserError(f"--peers={name}: {error}.") from error
    raise UserError(
        f"There is no peer {name!r}; there are {', '.join((*MODELS, *SERVING, 'tf.data'))} and "
        "MODULE:FUNCTION."
    )
