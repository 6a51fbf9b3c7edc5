"""Reference runs for comparisons: photographs, and the other library's own code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import data, models
from vit_jax.errors import UserError

Array = np.ndarray
PROBES = 8  # photographs


class Outputs(NamedTuple):
    """For a batch: logits (b, k), pre_logits (b, d) (input of the classifier), tokens (b, n, d).

    tokens is empty for ResNets, and for files that return logits only.
    """

    logits: Array
    pre_logits: Array | None = None
    tokens: Array | None = None


class Answer(NamedTuple):
    """run: images (b, h, w, c) float32 in [-1, 1] -> Outputs. size: the batch size, if fixed."""

    run: Callable[[Array], Outputs]
    size: object = None


def of_any_number(answer: Answer) -> Callable[[Array], Outputs]:
    """The function for any number of images, also if a fixed batch was exported."""
    run, size = answer
    if not isinstance(size, int):
        return run

    def run_all(images: Array) -> Outputs:
        if len(images) == size:
            return run(images)
        padded = np.concatenate([images, np.repeat(images[:1], -len(images) % size, axis=0)])
        found = [run(padded[start : start + size]) for start in range(0, len(padded), size)]
        logits = np.concatenate([part.logits for part in found])[: len(images)]
        features = [part.pre_logits for part in found if part.pre_logits is not None]
        return Outputs(logits, np.concatenate(features)[: len(images)] if features else None)

    return run_all


def check_takes(answer: Answer, sides: tuple[int, int, int], path: str | Path) -> None:
    """Raises UserError if a file does not accept the size (h, w, c) in its metadata."""
    batch = answer.size if isinstance(answer.size, int) else 1
    try:
        answer.run(np.zeros((batch, *sides), np.float32))
    except Exception as error:  # of any runtime
        height, width, channels = sides
        raise UserError(
            f"{path} does not accept images of {height}x{width} with {channels} channels, as its "
            "metadata says: it was reshaped for others; export it again."
        ) from error


def opened(spec: str) -> data.Source | None:
    """A data set of photographs; None for "".

    Raises:
      UserError: there is none; checked before a model is loaded.
    """
    return data.open_source(spec, labelled=False) if spec else None


def photographs(
    config: models.ModelConfig, source: data.Source | None = None, count: int = PROBES
) -> Array:
    """Decoded photographs as input of a model, (8, h, w, c) float32 in [-1, 1].

    At most `count` of a data set, evenly spread, or scikit-learn's two sample photographs, cut up.
    """
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    if source is not None:
        chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
        batches = data.eval_batches(
            *(data.Subset(source, chosen, source.spec), transform),
            batch_size=len(chosen),
            labelled=False,
        )
        pixels = next(iter(batches))["image"]
    else:
        from sklearn.datasets import load_sample_images

        pieces = [
            photo[top : top + 300, left : left + 400]
            for photo in load_sample_images().images
            for top, left in ((0, 0), (0, 240), (127, 0), (127, 240))
        ]
        pixels = np.stack([transform(np.ascontiguousarray(piece)) for piece in pieces])
    images = np.asarray(pixels, np.float32) / 127.5 - 1
    if images.shape[-1] != config.channels:
        images = np.repeat(images.mean(-1, keepdims=True), config.channels, axis=-1)
    return images


def random_head(config: models.ModelConfig, width: int) -> dict[str, Array]:
    """A random classifier that distinguishes photographs, to replace a zero one."""
    kernel = np.random.default_rng(0).normal(0, width**-0.5, (width, config.num_classes))
    bias = np.zeros(config.num_classes, np.float32)
    return {"head/kernel": kernel.astype(np.float32), "head/bias": bias}


def run_ours(config: models.ModelConfig, params: models.Params, images: Array) -> Array:
    """Logits (b, num_classes) in float32."""
    return outputs(config, params, images).logits


def outputs(config: models.ModelConfig, params: models.Params, images: Array) -> Outputs:
    """By this package, in float32."""
    config = models.replace(config, dtype="float32")
    _, apply = models.as_functions(config)
    with jax.default_matmul_precision("highest"):
        logits, out = jax.jit(lambda p, x: apply(p, x, return_intermediates=True))(
            dict(params), images
        )
    pre_logits = np.asarray(out["pre_logits"])
    if getattr(config, "representation_size", None) is not None:
        pre_logits = np.tanh(pre_logits)
    tokens = np.asarray(out["encoded"]) if "encoded" in out else None
    return Outputs(np.asarray(logits), pre_logits, tokens)


def run_transformers(directory: Path, config: models.ModelConfig, images: Array, head) -> Outputs:
    """By transformers; `head` replaces the classifier."""
    import torch
    import transformers

    pooled = getattr(config, "representation_size", None) is not None
    kind = transformers.ViTModel if pooled else transformers.ViTForImageClassification
    model = kind.from_pretrained(directory).eval()
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        found = (model if pooled else model.vit)(pixels)
        tokens = found.last_hidden_state
        features = found.pooler_output if pooled else tokens[:, 0]
        if pooled:  # which has no classifier
            logits = features.numpy() @ head["head/kernel"] + head["head/bias"]
        else:
            set_head(model.classifier, head)
            logits = model(pixels).logits.numpy()
    return Outputs(logits, features.numpy(), tokens.numpy())


def run_timm(directory: Path, config: models.ModelConfig, images: Array, head) -> Outputs:
    """By timm; `head` replaces the classifier."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{directory}", pretrained=True).eval()
    set_head(model.get_classifier(), head)
    with torch.no_grad():
        pixels = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        features = model.forward_features(pixels)
        pre_logits = model.forward_head(features, pre_logits=True)
        tokens = features.numpy() if features.ndim == 3 else None
        return Outputs(model(pixels).numpy(), pre_logits.reshape(len(images), -1).numpy(), tokens)


def set_head(layer, head: Mapping[str, Array]) -> None:
    """Sets a kernel (d, k) and a bias in a torch layer, dense or 1x1 convolution."""
    import torch

    if head:
        with torch.no_grad():
            kernel = torch.from_numpy(np.ascontiguousarray(head["head/kernel"].T))
            layer.weight.copy_(kernel.reshape(layer.weight.shape))
            layer.bias.copy_(torch.from_numpy(head["head/bias"]))


def available(name: str) -> str:
    """The version of a package that runs the result; "" if it is not installed.

    Raises:
      UserError: it is installed but does not load.
    """
    import importlib

    try:
        declare_torchvision()
        return importlib.import_module(name).__version__
    except ModuleNotFoundError:
        return ""
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} is installed but does not load ({reason}).") from error


def declare_torchvision() -> None:
    """Imports torchvision, a dependency of timm and transformers, even if its operators fail.

    PyPI's is built for CUDA: with a CPU torch its operators do not load, and those that it
    registers must be declared first. They are not used here.
    """
    import torch

    try:
        import torchvision
    except ImportError:
        return
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::" not in str(error) or hasattr(declare_torchvision, "kept"):
            raise
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        declare_torchvision.kept = library  # type: ignore[attr-defined]  # kept for the life of the process
        import torchvision  # noqa: F401
