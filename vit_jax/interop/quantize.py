"""The encoder's products in 8 bits (W8A8, qwix): per-output weights, dynamic activations."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from vit_jax import models, numerics
from vit_jax.errors import UserError, need

SCALE = "/scale_int8"  # beside a kernel stored in 8 bits


def is_quantised(path: str) -> bool:
    """The kernels of the encoder blocks; embeddings, norms and the head stay in float32."""
    return path.startswith("blocks/") and path.endswith("/kernel")


def int8(
    config: models.ModelConfig, params: models.Params
) -> tuple[Callable[..., jax.Array], dict[str, np.ndarray]]:
    """apply(stored, images) -> logits with 8-bit products, and the weights in stored form.

    A kernel is stored as int8 with one scale per output, a quarter of its size.

    Raises:
      UserError: qwix is not installed, or the model has no encoder blocks.
    """
    need("--int8", "qwix")
    import qwix

    if not any(is_quantised(path) for path in params):
        raise UserError(f"--int8 is for Vision Transformers; {config.variant} has no encoder.")
    stored: dict[str, np.ndarray] = {}
    for path, value in params.items():
        value = np.asarray(value, np.float32)
        if is_quantised(path):
            scale = np.maximum(np.abs(value).max(axis=0, keepdims=True), 1e-12) / 127
            stored[path] = np.round(value / scale).astype(np.int8)
            stored[path + SCALE] = scale.astype(np.float32)
        else:
            stored[path] = value

    model = models.set_params(
        models.abstract(config, numerics.PLAIN),
        {path: jnp.asarray(value) for path, value in params.items()},
    )
    rule = qwix.QtRule(module_path=r"blocks/.*", weight_qtype=jnp.int8, act_qtype=jnp.int8)
    probe = jnp.zeros((1, *config.image_size, config.channels))
    model = qwix.quantize_model(model, qwix.QtProvider([rule]), probe)
    graphdef, state = nnx.split(model)
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(state)]
    treedef = jax.tree.structure(state)

    def apply(stored: Mapping[str, jax.Array], images: jax.Array) -> jax.Array:
        leaves = [
            stored[path] * stored[path + SCALE] if is_quantised(path) else stored[path]
            for path in paths
        ]
        return nnx.merge(graphdef, jax.tree.unflatten(treedef, leaves))(images)

    return apply, stored


def onnx_int8(file: Path, images: np.ndarray) -> None:
    """Rewrites an ONNX file with the encoder's dense layers in 8 bits, by ONNX Runtime's quantiser.

    Weights have a scale per output, activations one calibrated on `images` (b, h, w, c). Embedding
    and head are unchanged.

    Raises:
      UserError: ONNX Runtime is not installed, or the model has no encoder blocks.
    """
    need("--int8", "onnxruntime")
    import onnx
    from onnxruntime import quantization

    graph = onnx.load(str(file), load_external_data=False).graph
    batch = graph.input[0].type.tensor_type.shape.dim[0].dim_value or 1  # 0 if dynamic
    images = np.concatenate([images, np.repeat(images[:1], -len(images) % batch, axis=0)])
    names = [node.name for node in graph.node]
    encoder = [name for name in names if name.startswith("blocks/") and name.endswith("/gemm")]
    if not encoder:
        raise UserError(f"--int8 is for Vision Transformers; {file.name} has no encoder.")

    class Images(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = iter(np.split(images, len(images) // batch))

        def get_next(self):
            image = next(self.left, None)
            return None if image is None else {"images": image}

    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".quantising-") as scratch:
        made = Path(scratch) / file.name
        logging.disable(logging.WARNING)  # it recommends preprocessing, which the writer has done
        try:
            quantization.quantize_static(
                str(file),
                str(made),
                Images(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                nodes_to_quantize=encoder,
                op_types_to_quantize=["Gemm"],
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )
        finally:
            logging.disable(logging.NOTSET)
        shutil.move(made, file)
