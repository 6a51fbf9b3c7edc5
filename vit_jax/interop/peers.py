"""What answers are compared by: photographs, and the other side's own code run on them."""

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
RANDOM_CLASSES = 16


class Outputs(NamedTuple):
    """Of a batch: logits (b, k), pre_logits (b, d) that the classifier takes, tokens (b, n, d).

    tokens is empty where there are none: of ResNets, and of files that give logits alone.
    """

    logits: Array
    pre_logits: Array | None = None
    tokens: Array | None = None


class Answer(NamedTuple):
    """run: images (b, h, w, c) float32 in [-1, 1] -> Outputs. size: the batch that it takes, if not
    any number."""

    run: Callable[[Array], Outputs]
    size: object = None


def check_takes(answer: Answer, sides: tuple[int, int, int], path: str | Path) -> None:
    """Raises UserError if images of the size (h, w, c) that a file names are not what it takes."""
    batch = answer.size if isinstance(answer.size, int) else 1
    try:
        answer.run(np.zeros((batch, *sides), np.float32))
    except Exception as error:  # of any runtime
        height, width, channels = sides
        raise UserError(
            f"{path} says that it takes images of {height}x{width} with {channels} channels, and "
            "does not: it was made or reshaped for others; export it again."
        ) from error


def photographs(config: models.ModelConfig, spec: str = "", count: int = PROBES) -> Array:
    """Decoded photographs as the model sees them, (8, h, w, c) float32 in [-1, 1].

    At most `count` of a data set, evenly spread, or scikit-learn's two sample photographs, cut up.
    """
    transform = data.evaluation_transform(config.image_size, config.preprocessing)
    if spec:
        source = data.open_source(spec)
        chosen = np.linspace(0, len(source) - 1, min(count, len(source))).astype(int)
        batches = data.eval_batches(
            data.Subset(source, chosen, source.spec), transform, batch_size=len(chosen)
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
    if config.channels != 3:
        images = np.repeat(images.mean(-1, keepdims=True), config.channels, axis=-1)
    return images


def random_head(config: models.ModelConfig, width: int) -> dict[str, Array]:
    """A classifier that tells photographs apart, in the place of one that is all zeros."""
    kernel = np.random.default_rng(0).normal(0, width**-0.5, (width, config.num_classes))
    bias = np.zeros(config.num_classes, np.float32)
    return {"head/kernel": kernel.astype(np.float32), "head/bias": bias}


def run_ours(config: models.ModelConfig, params: models.Params, images: Array) -> Array:
    """Logits (b, num_classes) in float32."""
    return outputs(config, params, images).logits


def outputs(config: models.ModelConfig, params: models.Params, images: Array) -> Outputs:
    """What this package computes, in float32."""
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
    """By transformers; `head` stands in for the classifier."""
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
    """By timm; `head` stands in for the classifier."""
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
    """Puts a kernel (d, k) and a bias into a layer of torch, dense or a 1x1 convolution."""
    import torch

    if head:
        with torch.no_grad():
            kernel = torch.from_numpy(np.ascontiguousarray(head["head/kernel"].T))
            layer.weight.copy_(kernel.reshape(layer.weight.shape))
            layer.bias.copy_(torch.from_numpy(head["head/bias"]))


def available(name: str) -> str:
    """The version of a package that runs what was written; "" if it is not installed.

    Raises:
      UserError: it is installed and does not load.
    """
    import importlib

    try:
        declare_torchvision()
        return importlib.import_module(name).__version__
    except ModuleNotFoundError:
        return ""
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{name} is installed and does not load ({reason}).") from error


def declare_torchvision() -> None:
    """Imports torchvision, which timm and transformers import, whether or not its operators load.

    PyPI's is built for CUDA: with a CPU torch its operators do not load, and those that it only
    registers must be declared first. Nothing of it is used here.
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
        declare_torchvision.kept = library  # type: ignore[attr-defined]  # it lives with the process
        import torchvision  # noqa: F401
