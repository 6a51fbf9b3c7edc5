"""Hugging Face directories of ViT: `config.json`, `model.safetensors`, preprocessing and labels.

`ViTForImageClassification` is a fine-tuned model; `ViTModel` has the hidden layer of the
pre-training head (its pooler) and no classifier.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from vit_jax import files, models
from vit_jax.errors import UserError
from vit_jax.interop import card, pixels, settings, weight_files
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
from vit_jax.interop.settings import OFF, READ, TRAINING, WORDS, Nothing, Only
from vit_jax.models import ViTConfig, saved

ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh", "gelu": "gelu", "gelu_python": "gelu", "relu": "relu",
    "silu": "silu", "swish": "silu", "quick_gelu": "quick_gelu",
}  # fmt: skip
NAMES = {"gelu_tanh": "gelu_pytorch_tanh"}
SEVERAL = "multi_label_classification"  # their problem_type for several labels per image
#: transformers' ViTConfig, inherited settings, and those that older versions wrote.
SETTINGS: settings.Table = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads",
                     "intermediate_size", "hidden_act", "hidden_dropout_prob", "layer_norm_eps",
                     "image_size", "patch_size", "num_channels", "qkv_bias", "pooler_output_size",
                     "id2label", "model_type", "problem_type", "head_dim", "num_labels"), READ),
    "pooler_act": READ,  # where there is a pooler
    "attention_probs_dropout_prob": TRAINING,
    "initializer_range": TRAINING,
    "label2id": Nothing("id2label says the same"),
    "encoder_stride": Nothing("for the decoder of masked images, which is not read"),
    "quantization_config": Only((None,)),
    "is_encoder_decoder": OFF,
    "add_cross_attention": OFF,
    "is_decoder": OFF,
    "pruned_heads": Only((None, {})),
    "chunk_size_feed_forward": Nothing("the same in pieces"),
    **dict.fromkeys(("architectures", "transformers_version", "_name_or_path", "finetuning_task",
                     "task_specific_params", "auto_map", "_commit_hash"), WORDS),
    **dict.fromkeys(("dtype", "torch_dtype", "_attn_implementation_autoset",
                     "attn_implementation", "_attn_implementation", "torchscript", "use_bfloat16",
                     "tie_word_embeddings", "gradient_checkpointing"),
                    Nothing("how it is computed, not the result")),
    **dict.fromkeys(("output_hidden_states", "output_attentions", "return_dict", "use_cache"),
                    Nothing("additional outputs")),
}  # fmt: skip


def layout(config: ViTConfig, prefix: str = "vit.") -> Layout:
    """The layout of `ViTForImageClassification`, or of `ViTModel` with a hidden layer."""
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
    """Our axes (heads, head_dim) as one axis."""
    return reshaped(name, lambda shape: (shape[0] * shape[1],))


def check_supported(config: models.ModelConfig) -> ViTConfig:
    """Raises UserError for models that a Hugging Face ViT cannot represent."""
    if (
        type(config) is not ViTConfig
        or config.stem_depths is not None
        or config.classifier != "token"
        or config.position_embedding != "1d"
        or config.position_embedding_at != "stem"
    ):
        raise UserError(
            f"Hugging Face's ViT cannot represent this {config.variant} (only plain ViTs with a "
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


def save(directory: str | Path, config: models.ModelConfig, params: models.Params) -> None:
    """Writes a directory that `transformers` loads, `pipeline("image-classification")` included.

    Raises:
      UserError: Hugging Face's ViT cannot represent the model.
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
        "hidden_act": NAMES.get(config.activation, config.activation),
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
        **({"problem_type": SEVERAL} if config.multilabel else {}),
        "id2label": {str(i): name for i, name in enumerate(labels)},
        "label2id": {name: i for i, name in enumerate(labels)},
    }
    saved.write_safetensors(directory / "model.safetensors", weights, {"format": "pt"})
    files.write_json(directory / "config.json", values)
    files.write_json(
        directory / "preprocessor_config.json", pixels.to_processor(config.preprocessing, config)[0]
    )
    files.write_text(directory / "README.md", card.model_card(config))


def is_huggingface(directory: str | Path) -> bool:
    """Whether a directory has a transformers model, ViT or other."""
    values = files.read_json(Path(directory) / "config.json")
    return isinstance(values, dict) and "model_type" in values


def load(directory: str | Path) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    """Reads a Hugging Face ViT directory.

    Without a classifier (`ViTModel`) the head is zero: for features and fine-tuning.

    Raises:
      UserError: a file is missing or damaged, or has another architecture.
    """
    directory = Path(directory)
    where, values = f"{directory}/config.json", files.read_json(directory / "config.json")
    if values.get("model_type") != "vit":
        raise UserError(
            f"{where} is for transformers' {values.get('model_type')!r}; only 'vit' is supported."
        )
    settings.check(values, SETTINGS, where, strict=False)
    weights = weight_files.unwrapped(weight_files.read_weights(directory), str(directory))
    try:
        config, weights = find_config(values, weights, where)
    except UserError as error:
        raise UserError(str(error) if where in str(error) else f"{where}: {error}") from error
    entries = layout(config, "vit." if any(name.startswith("vit.") for name in weights) else "")
    if config.representation_size is not None:
        entries["head/kernel"] = transposed("classifier.weight", 1, 0)
        entries["head/bias"] = reshaped("classifier.bias")
    params = from_foreign(entries, weights, config, str(directory))
    processor, where = read_processor(directory)
    preprocessing, scale = pixels.from_processor(processor, config, where)
    config = models.replace(config, preprocessing=preprocessing)
    return config, pixels.fold(config, params, scale, where)


def read_processor(directory: Path) -> tuple[dict[str, Any], str]:
    """The image settings of a directory, and their file: transformers has used two."""
    for name, key in (
        ("preprocessor_config.json", None),
        ("processor_config.json", "image_processor"),
    ):
        file = directory / name
        found = files.read_json(file)
        if found is not None and key is not None:
            found = found.get(key) if isinstance(found, dict) else found
        if found is None:
            continue
        if not isinstance(found, dict):
            raise UserError(f"{file} has no image settings.")
        return found, str(file)
    print(f"{directory} has no image settings: using the defaults of transformers")
    return {}, f"{directory}/preprocessor_config.json"


def find_config(
    values: settings.Values, weights: dict[str, np.ndarray], where: str
) -> tuple[ViTConfig, dict[str, np.ndarray]]:
    """The configuration of `config.json`, and the arrays to read from `weights`.

    Raises:
      UserError: a setting is missing or invalid, or our models do not support it.
    """
    prefix = "vit." if any(name.startswith("vit.") for name in weights) else ""
    classifier = "classifier.weight" in weights
    pooler = weights.get(f"{prefix}pooler.dense.bias")

    def setting(key: str, default: Any, parse: Any = settings.count) -> Any:
        if default is ... and values.get(key) is None:
            raise UserError(f"{where} has no {key!r}, so it is not a ViT.")
        return settings.get(values, key, default, where, parse)

    hidden, layers = setting("hidden_size", ...), setting("num_hidden_layers", ...)
    heads = setting("num_attention_heads", ...)
    block = re.compile(rf"{prefix}encoder\.layer\.(\d+)\.")
    there = {int(m[1]) for name in weights if (m := block.match(name))}
    if layers != len(there):
        settings.refuse(where, "num_hidden_layers", layers, f"the weights have {len(there)}")
    if setting("head_dim", hidden // heads) * heads != hidden:
        if values.get("head_dim") is None:
            settings.refuse(where, "num_attention_heads", heads, f"hidden_size is {hidden}")
        settings.refuse(where, "head_dim", values["head_dim"])
    activation = values.get("hidden_act", "gelu")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        settings.refuse(
            where, "hidden_act", activation, f"there are {', '.join(sorted(ACTIVATIONS))}"
        )
    if pooler is not None and not classifier:
        if values.get("pooler_act", "tanh") != "tanh":
            settings.refuse(where, "pooler_act", values["pooler_act"], "only 'tanh' is supported")
        if setting("pooler_output_size", hidden) != len(pooler):
            settings.refuse(where, "pooler_output_size", values["pooler_output_size"],
                            f"the weights have {len(pooler)}")  # fmt: skip
    labels = labels_of(values, where)
    problem = values.get("problem_type")
    if problem not in (None, "single_label_classification", SEVERAL):
        print(f"{where}: problem_type={problem!r}; here probabilities are a softmax")
    classes = len(weights["classifier.bias"]) if classifier else max(len(labels), 1)
    config = ViTConfig(
        variant="custom",
        patch_size=setting("patch_size", (16, 16), _pair),
        hidden_size=hidden,
        num_layers=layers,
        mlp_dim=setting("intermediate_size", ...),
        num_heads=heads,
        image_size=setting("image_size", (224, 224), _pair),
        channels=setting("num_channels", 3),
        num_classes=classes,
        representation_size=len(pooler) if pooler is not None and not classifier else None,
        activation=ACTIVATIONS[activation],
        layer_norm_epsilon=setting("layer_norm_eps", 1e-12, float),
        dropout_rate=setting("hidden_dropout_prob", 0.0, float),
        labels=settings.class_names(labels, classes, where),
        multilabel=problem == SEVERAL,
    )
    config = models.replace(config, variant=models.find_variant(config))
    unread = [f"{prefix}embeddings.mask_token"]  # for masked images
    if classifier:
        unread += [f"{prefix}pooler.dense.{part}" for part in ("weight", "bias")]
    weights = {name: array for name, array in weights.items() if name not in unread}
    if not setting("qkv_bias", True, settings.flag):  # transformers also ignores those present
        for i in range(layers):
            for part in ("query", "key", "value"):
                name = f"{prefix}encoder.layer.{i}.attention.attention.{part}.bias"
                weights[name] = np.zeros(hidden, np.float32)
    if not classifier:
        width = config.representation_size or hidden
        weights["classifier.weight"] = np.zeros((classes, width), np.float32)
        weights["classifier.bias"] = np.zeros(classes, np.float32)
    return config, weights


def _pair(value: Any) -> tuple[int, int]:
    height, width = (value, value) if isinstance(value, int) else value
    return settings.count(height), settings.count(width)


def labels_of(values: settings.Values, where: str) -> tuple[str, ...]:
    """Class names in order; () if they are LABEL_0, ..., or not of 0, 1, ... (with a note)."""
    table = values.get("id2label") or {}
    if isinstance(table, list):
        table = {str(i): name for i, name in enumerate(table)}
    try:
        labels = tuple(table[str(i)] for i in range(len(table)))
    except KeyError as missing:
        print(f"{where}: id2label has {len(table)} names but none for {missing}; ignored")
        return ()
    return () if all(name == f"LABEL_{i}" for i, name in enumerate(labels)) else labels
