"""The Vision Transformer: Eq. 1-4 of section 3.1, and Eq. 5-8 of Appendix A.

The paper's variations are in ablations.py. How products, norms, attention and residuals are
computed on a machine is in numerics; its plain.py has them as in the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.models import ablations, layers
from vit_jax.models.layers import MLP, Array, Dense, Keys, LayerNorm, Randomness, dropout, fold
from vit_jax.models.stem import HybridStem
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import Numerics
from vit_jax.numerics.plain import attention_weights, heads

Outputs = dict[str, Any] | None  # collects intermediates, if requested


class PatchEmbedding(nnx.Module):
    """x_p E (Eq. 1): flattened patches times a matrix. (b, h, w, c) to (b, grid_h * grid_w, d)."""

    def __init__(self, config: ViTConfig, numerics: Numerics, channels: int, *, keys: Keys):
        init = layers.initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        shape = (*config.patch_size, channels, config.hidden_size)
        self.kernel = nnx.Param(keys(init, shape))
        self.bias = nnx.Param(jnp.zeros((config.hidden_size,), jnp.float32))
        self.dense = numerics.dense

    def __call__(self, x: Array) -> Array:
        ph, pw, c, d = self.kernel[...].shape
        b, h, w, _ = x.shape
        # A reshape and one matrix product: the gradient of a strided convolution is far slower.
        x = x.reshape(b, h // ph, ph, w // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, -1, ph * pw * c)
        return self.dense(x, self.kernel[...].reshape(-1, d), self.bias[...])


class SelfAttention(nnx.Module):
    """MSA (Eq. 5-8): [q, k, v] = z U_qkv, attention per head, U_msa mixes them. (b, n, d)."""

    def __init__(self, config: ViTConfig, numerics: Numerics, *, keys: Keys):
        d, h = config.hidden_size, config.num_heads
        self.qkv = Dense(d, (3, h, d // h), batch_axes=1, numerics=numerics, keys=keys)
        self.out = Dense(d, d, numerics=numerics, keys=keys)
        self.relative = ablations.relative_embedding(config, keys=keys)
        self.rate, self.numerics = config.dropout_rate, numerics

    def __call__(self, z: Array, key: Randomness = None) -> Array:
        qkv = self.qkv(z)  # Eq. 5, (b, n, 3, h, e)
        extra = ablations.relative_logits(self.relative, self.numerics)
        y = self.numerics.attention(qkv, extra)  # Eq. 6 and 7: softmax(q k^T / sqrt(e)) v
        y = self.out(y)[:, : z.shape[1]]  # Eq. 8
        return dropout(y, self.rate, fold(key, 0))

    def weights(self, z: Array) -> Array:
        """A of Eq. 6, (b, h, n, n) float32, which the attention above need not store."""
        q, k, _ = heads(self.qkv(z))
        extra = ablations.relative_logits(self.relative, self.numerics)
        return attention_weights(q, k, extra, product=self.numerics.product)


class EncoderBlock(nnx.Module):
    """One layer of the encoder: Eq. 2 and Eq. 3, pre-norm, each with its residual."""

    def __init__(self, config: ViTConfig, numerics: Numerics, *, drop_path=0.0, keys: Keys):
        d, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.attention_norm = LayerNorm(d, epsilon=epsilon, numerics=numerics)
        self.attention = SelfAttention(config, numerics, keys=keys)
        self.mlp_norm = LayerNorm(d, epsilon=epsilon, numerics=numerics)
        self.mlp = MLP(config, numerics, keys=keys)
        self.drop_path, self.add = drop_path, numerics.add

    def __call__(self, z: Array, key: Randomness = None) -> Array:
        def drop(y: Array, index: int) -> Array:  # stochastic depth drops whole examples
            return dropout(y, self.drop_path, fold(key, index), shape=(y.shape[0], 1, 1))

        z = self.add(z, drop(self.attention(self.attention_norm(z), key), 1))  # Eq. 2
        return self.add(z, drop(self.mlp(self.mlp_norm(z), fold(key, 2)), 3))  # Eq. 3

    def attention_weights(self, z: Array) -> Array:
        """A of Eq. 6, (b, h, n, n), for the input of the block."""
        return self.attention.weights(self.attention_norm(z))


class VisionTransformer(layers.Model):
    """ViT, and the hybrid with a ResNet stem. Images in, logits out.

    Facts about the model: `config`, `variant`, `image_size`, `num_params`, `labels`,
    `preprocessing`, and `numerics` (how it computes).
    """

    block: Any = EncoderBlock  # class of an encoder layer

    def __init__(self, config: ViTConfig, numerics: Numerics, *, keys: Keys):
        d, epsilon = config.hidden_size, config.layer_norm_epsilon
        self.config, self.numerics = config, numerics
        dense = functools.partial(Dense, numerics=numerics, keys=keys)
        channels = config.channels
        if config.stem_depths is not None:
            self.stem = HybridStem(config, numerics, keys=keys)
            channels = self.stem.features
        self.patch_embedding = PatchEmbedding(config, numerics, channels, keys=keys)
        if config.classifier == "token":
            self.class_token = nnx.Param(jnp.zeros((1, 1, d), jnp.float32))
        self.position_embedding = ablations.position_embeddings(config, keys=keys)
        rate, last = config.stochastic_depth_rate, max(config.num_layers - 1, 1)
        self.blocks = nnx.List(
            self.block(config, numerics, drop_path=rate * i / last, keys=keys)
            for i in range(config.num_layers)
        )
        self.encoder_norm = LayerNorm(d, epsilon=epsilon, numerics=numerics)
        if config.classifier != "token":
            self.pooling = ablations.pooling(config, numerics, keys=keys)
        if config.representation_size is not None:
            init = layers.initializers.lecun_normal
            self.pre_logits = dense(d, config.representation_size, kernel_init=init)
        width, start = config.representation_size or d, layers.constant(config.head_bias)
        self.head = dense(width, config.num_classes, kernel_init=layers.all_zeros, bias_init=start)

    def __call__(
        self,
        images: Array,
        *,
        key: Randomness = None,
        return_intermediates: bool | Collection[str] = False,
    ) -> Any:
        """Classifies images.

        Args:
          images: (b, h, w, c) float in [-1, 1]; h and w are `config.image_size`.
          key: for dropout and stochastic depth; None: inference.
          return_intermediates: True, or names to add: "attention" (expensive) is returned only if
            named.

        Returns:
          logits (b, num_classes) float32; with `return_intermediates` also a dict of
          "embedded" (b, n, d) after Eq. 1, "block_0" ... (b, n, d), "encoded" (b, n, d) = LN(z_L),
          "pooled" (b, d) = y of Eq. 4, "pre_logits" (b, d or representation_size) before the tanh,
          "attention" (layers, b, heads, n, n).

        Raises:
          UserError: the images have another shape than the position embeddings were made for.
        """
        out: Outputs = {} if return_intermediates else None
        if out is not None and not isinstance(return_intermediates, bool):
            out |= {"attention": []} if "attention" in return_intermediates else {}
        blocks = None if return_intermediates == ("pre_logits",) else out  # a scan can stay a scan
        z = self.encode(self.patches(images), key=key, out=blocks)
        logits = self.classify(z, key=key, out=out)
        return logits if out is None else (logits, layers.with_names(out, return_intermediates))

    def patches(self, images: Array) -> Array:
        """x_p E (Eq. 1): (b, h, w, c) in [-1, 1] to (b, N, d); in a hybrid after the stem."""
        layers.check_images(images, self.config, exactly=True)
        return self.patch_embedding(
            self.stem(images) if self.config.stem_depths is not None else images
        )

    def embed(self, z: Array, *, key: Randomness = None) -> Array:
        """z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos (Eq. 1): (b, N, d) to (b, n, d)."""
        if self.config.classifier == "token":
            token = self.class_token[...].astype(z.dtype)
            z = jnp.concatenate([jnp.broadcast_to(token, (z.shape[0], 1, z.shape[2])), z], axis=1)
        z = ablations.add_position(self.position_embedding, self.config, z, 0)
        return dropout(z, self.config.dropout_rate, fold(key, self.config.num_layers))

    def encode(self, z: Array, *, key: Randomness = None, out: Outputs = None) -> Array:
        """LN(z_L) (b, n, d) from x_p E (b, N, d). `out`, if given, receives the intermediates."""
        z = self.embed(z, key=key)  # Eq. 1
        if self.config.scan and out is None:
            z = ablations.scan_blocks(self.blocks, self.config, self.numerics, z, key)
            return self.encoder_norm(z)
        out = {} if out is None else out
        out["embedded"] = z
        for i, block in enumerate(self.blocks):  # Eq. 2 and 3, L times
            z = ablations.add_position(self.position_embedding, self.config, z, i) if i else z
            if "attention" in out:
                out["attention"].append(block.attention_weights(z))
            out[f"block_{i}"] = z = self.numerics.layer(block.__call__)(z, fold(key, i))
        if "attention" in out:
            out["attention"] = jnp.stack(out["attention"])
        out["encoded"] = z = self.encoder_norm(z)
        return z

    def classify(self, z: Array, *, key: Randomness = None, out: Outputs = None) -> Array:
        """Logits (b, num_classes) float32 of LN(z_L) (b, n, d): Eq. 4 and the head."""
        out = {} if out is None else out
        y = z[:, 0] if self.config.classifier == "token" else self.pooling(z, key)  # Eq. 4
        out["pooled"] = out["pre_logits"] = y
        if self.config.representation_size is not None:  # a hidden tanh layer in pre-training
            out["pre_logits"] = y = self.pre_logits(y)
            y = jnp.tanh(y)
        return self.head(y, out_dtype=jnp.float32)
