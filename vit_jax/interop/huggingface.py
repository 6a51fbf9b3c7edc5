"""Hugging Face directories of ViT: `config.json`, `model.safetensors`, preprocessing and labels.

`ViTForImageClassification` holds a fine-tuned model; `ViTModel` one with the hidden layer of the
pre-training head (its pooler) and no classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.interop.layout import (
    Entry,
    Layout,
    flattened,
    from_foreign,
    reshaped,
    stacked,
    to_foreign,
    transposed,
)
from vit_jax.models import ViTConfig, saved

ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu"}
BILINEAR = 2  # PIL's number


def layout(config: ViTConfig, prefix: str = "vit.") -> Layout:
    """The layout of `ViTForImageClassification`, or with a hidden layer of `ViTModel`."""
    entries = {
        "class_token": reshaped(f"{prefix}embeddings.cls_token"),
        "position_embedding/0/embedding": reshaped(f"{prefix}embeddings.position_embeddings"),
        "patch_embedding/kernel": transposed(
            f"{prefix}embeddings.patch_embeddings.projection.weight", 3, 2, 0, 1
        ),
        "patch_embedding/bias": reshaped(f"{prefix}embeddings.patch_embeddings.projection.bias"),
    }

    def add_norm(ours: str, theirs: str) -> None:
        entries[f"{ours}/scale"] = reshaped(f"{theirs}.weight")
        entries[f"{ours}/bias"] = reshaped(f"{theirs}.bias")

    def add_dense(ours: str, theirs: str) -> None:
        entries[f"{ours}/kernel"] = transposed(f"{theirs}.weight", 1, 0)
        entries[f"{ours}/bias"] = reshaped(f"{theirs}.bias")

    add_norm("encoder_norm", f"{prefix}layernorm")
    if config.representation_size is None:
        add_dense("head", "classifier")
    else:
        add_dense("pre_logits", f"{prefix}pooler.dense")
    for i in range(config.num_layers):
        ours, theirs = f"blocks/{i}", f"{prefix}encoder.layer.{i}"
        add_norm(f"{ours}/attention_norm", f"{theirs}.layernorm_before")
        add_norm(f"{ours}/mlp_norm", f"{theirs}.layernorm_after")
        add_dense(f"{ours}/mlp/dense1", f"{theirs}.intermediate.dense")
        add_dense(f"{ours}/mlp/dense2", f"{theirs}.output.dense")
        add_dense(f"{ours}/attention/out", f"{theirs}.attention.output.dense")
        parts = [f"{theirs}.attention.attention.{p}" for p in ("query", "key", "value")]
        entries[f"{ours}/attention/qkv/kernel"] = stacked(
            tuple(f"{part}.weight" for part in parts), flattened, 1
        )
        biases = tuple(f"{part}.bias" for part in parts)
        entries[f"{ours}/attention/qkv/bias"] = stacked(biases, vector, 0)
    return entries


def vector(name: str) -> Entry:
    """(heads, head_dim) of ours as one axis."""
    return reshaped(name, lambda shape: (shape[0] * shape[1],))


def check_supported(config: models.ModelConfig) -> ViTConfig:
    """Raises UserError for what a Hugging Face ViT cannot hold."""
    if (
        type(config) is not ViTConfig
        or config.stem_depths is not None
        or config.classifier != "token"
        or config.position_embedding != "1d"
        or config.position_embedding_at != "stem"
    ):
        raise UserError(
            f"Hugging Face's ViT has no place for this {config.variant} (only plain ViTs with a "
            "class token and 1-D position embeddings); use --to=native, npz or timm."
        )
    if config.image_size[0] != config.image_size[1] or config.patch_size[0] != config.patch_size[1]:
        raise UserError(
            f"Hugging Face's ViT is saved for square images and patches, and this {config.variant} "
            f"is for {config.image_size}; use --to=native."
        )
    if config.representation_size not in (None, config.hidden_size):
        raise UserError(
            f"Hugging Face's pooler is as wide as the model ({config.hidden_size}), and "
            f"representation_size is {config.representation_size}; use --to=native or npz."
        )
    return config


def save(directory: str | Path, config: models.ModelConfig, params: Mapping[str, Any]) -> None:
    """Writes a directory that `transformers` loads, `pipeline("image-classification")` included.

    Raises:
      UserError: Hugging Face's ViT has no place for the model.
    """
    config = check_supported(config)
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    pooled = config.representation_size is not None
    entries = layout(config, "" if pooled else "vit.")
    weights = to_foreign(entries, params)
    labels = config.labels or tuple(f"LABEL_{i}" for i in range(config.num_classes))
    values = {
        "architectures": ["ViTModel" if pooled else "ViTForImageClassification"],
        "model_type": "vit",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_dim,
        "hidden_act": "gelu_pytorch_tanh" if config.activation == "gelu_tanh" else "gelu",
        "layer_norm_eps": config.layer_norm_epsilon,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size[0],
        "num_channels": config.channels,
        "qkv_bias": True,
        "hidden_dropout_prob": config.dropout_rate,
        "attention_probs_dropout_prob": 0.0,
        "pooler_act": "tanh",
        "pooler_output_size": config.hidden_size,
        "dtype": "float32",
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    saved.write_safetensors(directory / "model.safetensors", weights, {"format": "pt"})
    files.write_json(directory / "config.json", values)
    files.write_json(directory / "preprocessor_config.json", preprocessor(config))
    (directory / "README.md").write_text(model_card(config))


def preprocessor(config: ViTConfig) -> dict[str, Any]:
    """`preprocessor_config.json`: resize to the size, bilinear, to [-1, 1].

    A centre crop is what transformers' ViT processor cannot do, so models that were evaluated with
    one are resized straight to their size; accuracy differs by a few tenths.
    """
    height, width = config.image_size
    return {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": height, "width": width},
        "resample": BILINEAR,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5] * config.channels,
        "image_std": [0.5] * config.channels,
    }


def model_card(config: ViTConfig) -> str:
    """A README for the Hub: what the model is and how it is used."""
    size = "x".join(map(str, config.image_size))
    return (
        "---\nlibrary_name: transformers\npipeline_tag: image-classification\n---\n\n"
        f"# ViT-{config.variant}, {size} pixels, {config.num_classes} classes\n\n"
        "A Vision Transformer (arXiv 2010.11929), written by vit_jax.\n\n"
        "```python\nfrom transformers import pipeline\n\n"
        'pipeline("image-classification", model="this directory")("photo.jpg")\n```\n\n'
        f"Pixels are scaled to [-1, 1]; evaluation: {dict(config.preprocessing) or 'resize'}.\n"
    )


def is_huggingface(directory: str | Path) -> bool:
    """Whether a directory holds a Hugging Face ViT."""
    values = files.read_json(Path(directory) / "config.json")
    return isinstance(values, dict) and values.get("model_type") == "vit"


def load(directory: str | Path) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    """Reads a Hugging Face ViT directory.

    Without a classifier (`ViTModel`) the head is all zeros: good for features and fine-tuning.

    Raises:
      UserError: a file is missing or damaged, or holds another architecture.
    """
    directory = Path(directory)
    values = files.read_json(directory / "config.json") or {}
    weights = saved.read_weights(directory)
    where = str(directory)
    classifier = "classifier.weight" in weights
    prefix = "vit." if any(name.startswith("vit.") for name in weights) else ""
    pooled = f"{prefix}pooler.dense.weight" in weights
    if values.get("hidden_act", "gelu") not in ACTIVATIONS:
        raise UserError(f"{where}: hidden_act={values['hidden_act']!r} is no GELU.")
    labels = labels_of(values)
    try:
        config = ViTConfig(
            variant="custom",
            patch_size=_pair(values.get("patch_size", 16)),
            hidden_size=values["hidden_size"],
            num_layers=values["num_hidden_layers"],
            mlp_dim=values["intermediate_size"],
            num_heads=values["num_attention_heads"],
            image_size=_pair(values.get("image_size", 224)),
            channels=values.get("num_channels", 3),
            num_classes=len(weights["classifier.bias"]) if classifier else max(len(labels), 1),
            representation_size=values["hidden_size"] if pooled and not classifier else None,
            activation=ACTIVATIONS[values.get("hidden_act", "gelu")],
            layer_norm_epsilon=values.get("layer_norm_eps", 1e-12),
            dropout_rate=values.get("hidden_dropout_prob", 0.0),
            preprocessing=preprocessing_of(directory),
        )
    except KeyError as error:
        raise UserError(f"{where}/config.json has no {error}, so it is no ViT's.") from None
    if len(labels) == config.num_classes:
        config = models.replace(config, labels=labels)
    config = models.replace(config, variant=models.find_variant(config))
    if classifier and pooled:  # a pooler that nothing reads
        weights = {k: v for k, v in weights.items() if not k.startswith(f"{prefix}pooler.")}
    entries = layout(config, prefix)
    if not classifier:
        head = models.abstract_params(config)
        weights |= {
            "classifier.weight": np.zeros(head["head/kernel"].shape[::-1], np.float32),
            "classifier.bias": np.zeros(head["head/bias"].shape, np.float32),
        }
    if config.representation_size is not None:
        entries["head/kernel"] = transposed("classifier.weight", 1, 0)
        entries["head/bias"] = reshaped("classifier.bias")
    return config, from_foreign(entries, weights, config, where)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def labels_of(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names in order; () where they are only LABEL_0, LABEL_1, ..."""
    table = values.get("id2label") or {}
    try:
        labels = tuple(table[str(i)] for i in range(len(table)))
    except KeyError:
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(labels)) else labels


def preprocessing_of(directory: Path) -> tuple[tuple[str, Any], ...]:
    """The evaluation transform that `preprocessor_config.json` describes.

    Raises:
      UserError: pixels are scaled to another range than [-1, 1].
    """
    values = files.read_json(directory / "preprocessor_config.json") or {}
    mean, std = values.get("image_mean", [0.5] * 3), values.get("image_std", [0.5] * 3)
    if values.get("do_normalize", True) and not np.allclose([*mean, *std], 0.5):
        raise UserError(
            f"{directory}/preprocessor_config.json scales pixels by mean {mean} and std {std}; "
            "only 0.5, that is [-1, 1], is supported."
        )
    return (("name", "resize"),)
