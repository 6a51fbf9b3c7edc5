"""The Vision Transformer (section 3.1): `VisionTransformer.__call__` reads as Eq. 1-4."""

from __future__ import annotations

import functools
from collections.abc import Collection
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.ablations import AttentionPooling, grid_table, relative_logits, scan_blocks
from vit_jax.models.layers import (
    MLP,
    Array,
    Dense,
    Keys,
    LayerNorm,
    Model,
    check_images,
    constant,
    dropout,
    fold,
    initializers,
    zeros,
)
from vit_jax.models.stem import HybridStem
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import gpu, one_cpu, plain, remat
from vit_jax.numerics.dense import affine


class PatchEmbedding(nnx.Module):
    """x_p E (Eq. 1): flattened patches times a matrix. (b, h, w, c) to (b, grid_h * grid_w, d)."""

    def __init__(self, config: ViTConfig, channels: int, *, keys: Keys):
        init = initializers.lecun_normal(in_axis=(0, 1, 2), out_axis=3)
        shape = (*config.patch_size, channels, config.hidden_size)
        self.kernel = nnx.Param(init(keys(), shape, jnp.float32))
        self.bias = nnx.Param(jnp.zeros((config.hidden_size,), jnp.float32))
        self.dtype = config.compute_dtype

    def __call__(self, x: Array) -> Array:
        ph, pw, c, d = self.kernel[...].shape
        b, h, w, _ = x.shape
        # A reshape and one matrix product: a strided convolution's gradient is far slower.
        x = x.reshape(b, h // ph, ph, w // pw, pw, c).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(b, -1, ph * pw * c)
        return affine(x, self.kernel[...].reshape(-1, d), self.bias[...], self.dtype)


class PositionEmbedding(nnx.Module):
    """Adds E_pos (Eq. 1) to (b, n, d): one vector per token ("1d"), or row + column ("2d")."""

    def __init__(self, config: ViTConfig, *, keys: Keys):
        init = initializers.normal(stddev=0.02)
        d, (rows, columns) = config.hidden_size, config.grid
        self.token = config.classifier == "token"
        self.kind = config.position_embedding
        if self.kind == "1d":
            shape = (1, config.num_tokens, d)
            self.embedding = nnx.Param(init(keys(), shape, jnp.float32))
        else:  # learned X and Y tables of half the width each, concatenated (Appendix D.4)
            self.y = nnx.Param(init(keys(), (rows, d // 2), jnp.float32))
            self.x = nnx.Param(init(keys(), (columns, d - d // 2), jnp.float32))
            if self.token:
                self.class_token = nnx.Param(init(keys(), (1, d), jnp.float32))

    def table(self) -> Array:
        """The embedding of every token, (1, n, d); the class token's comes first."""
        if self.kind == "1d":
            return self.embedding[...]
        grid = grid_table(self.y[...], self.x[...])
        return (jnp.concatenate([self.class_token[...], grid]) if self.token else grid)[None]

    def __call__(self, x: Array) -> Array:
        return (x + self.table()).astype(x.dtype)


class SelfAttention(nnx.Module):
    """MSA (Appendix A): [q, k, v] = z U_qkv, heads attend apart, U_msa mixes them. (b, n, d)."""

    def __init__(self, config: ViTConfig, num_tokens: int, *, relative: bool, keys: Keys):
        d, heads = config.hidden_size, config.num_heads
        dense = functools.partial(Dense, dtype=config.compute_dtype, keys=keys)
        self.qkv = dense(d, (3, heads, d // heads), batch_axes=1)
        self.out = dense(d, d)
        self.fused = gpu.fused_attention(
            config.attention,
            dtype=config.dtype,
            head_size=d // heads,
            relative=config.position_embedding == "relative",
        )
        self.relative = (
            nnx.Param(
                initializers.normal(stddev=0.02)(
                    keys(), (2 * num_tokens - 1, d // heads), jnp.float32
                )
            )
            if relative
            else None
        )

    def __call__(self, x: Array, *, return_weights: bool = False) -> tuple[Array, Array | None]:
        qkv = self.qkv(x)  # (b, n, 3, h, e)
        if self.fused and not return_weights:
            q, k, v = (part[:, :, 0] for part in jnp.split(qkv, 3, axis=2))
            y = gpu.cudnn_attention(q, k, v)
            return self.out(y.reshape(*y.shape[:2], -1))[:, : x.shape[1]], None
        # three of (b, h, n, e)
        q, k, v = (part[0] for part in jnp.split(qkv.transpose(2, 0, 3, 1, 4), 3))
        extra = relative_logits(q, self.relative[...]) if self.relative is not None else None
        weights = plain.attention_weights(q, k, extra)
        y = plain.attend(weights, v).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.out(y), weights if return_weights else None


class EncoderBlock(nnx.Module):
    """One layer of the encoder: Eq. 2 and Eq. 3, pre-norm, each with its residual."""

    def __init__(self, config: ViTConfig, *, drop_path: float = 0.0, keys: Keys):
        norm = functools.partial(
            LayerNorm,
            config.hidden_size,
            epsilon=config.layer_norm_epsilon,
            dtype=config.compute_dtype,
            keys=keys,
        )
        relative = config.position_embedding == "relative"
        self.attention_norm = norm()
        self.attention = SelfAttention(config, config.num_tokens, relative=relative, keys=keys)
        self.mlp_norm = norm()
        self.mlp = MLP(config, keys=keys)
        self.rate = config.dropout_rate
        self.drop_path = drop_path

    def __call__(
        self, z: Array, key: Array | None = None, *, return_weights: bool = False
    ) -> tuple[Array, Array | None]:
        def branch(y: Array, index: int) -> Array:  # stochastic depth drops it per example
            return dropout(y, self.drop_path, fold(key, index), shape=(y.shape[0], 1, 1))

        y, weights = self.attention(self.attention_norm(z), return_weights=return_weights)
        y = dropout(y, self.rate, fold(key, 0))
        z = one_cpu.settled(branch(y, 1) + z)  # Eq. 2: z' = MSA(LN(z)) + z
        y = self.mlp(self.mlp_norm(z), fold(key, 2))
        z = one_cpu.settled(branch(y, 3) + z)  # Eq. 3: z = MLP(LN(z')) + z'
        return z, weights


class VisionTransformer(Model):
    """ViT, and with a ResNet stem the hybrid. Images in, logits out.

    Facts about the model: `config`, `variant`, `image_size`, `num_params`, `labels`,
    `preprocessing`.
    """

    block: Any = EncoderBlock  # what a layer of the encoder is

    def __init__(self, config: ViTConfig, *, keys: Keys):
        d, dtype = config.hidden_size, config.compute_dtype
        self.config = config
        channels = config.channels
        if config.stem_depths is not None:
            self.stem = HybridStem(
                config.stem_depths,
                width_factor=config.stem_width,
                channels=channels,
                group_norm_epsilon=config.stem_group_norm_epsilon,
                standardisation=config.stem_standardisation,
                standardisation_epsilon=config.stem_standardisation_epsilon,
                dtype=dtype,
                keys=keys,
            )
            channels = self.stem.features
        self.patch_embedding = PatchEmbedding(config, channels, keys=keys)
        if config.classifier == "token":
            self.class_token = nnx.Param(jnp.zeros((1, 1, d), jnp.float32))
        if config.position_embedding in ("1d", "2d"):
            count = config.num_layers if config.position_embedding_at == "every" else 1
            self.position_embedding = nnx.List(
                [PositionEmbedding(config, keys=keys) for _ in range(count)]
            )
        last = max(config.num_layers - 1, 1)
        self.blocks = nnx.List(
            [
                self.block(config, drop_path=config.stochastic_depth_rate * i / last, keys=keys)
                for i in range(config.num_layers)
            ]
        )
        self.encoder_norm = LayerNorm(d, epsilon=config.layer_norm_epsilon, dtype=dtype, keys=keys)
        if config.classifier == "map":
            self.pooling = AttentionPooling(config, keys=keys)
        if config.representation_size is not None:
            self.pre_logits = Dense(
                d,
                config.representation_size,
                kernel_init=initializers.lecun_normal,
                dtype=dtype,
                keys=keys,
            )
        self.head = Dense(
            config.representation_size or d,
            config.num_classes,
            kernel_init=lambda **_: zeros,
            bias_init=constant(config.head_bias),
            dtype=dtype,
            keys=keys,
        )

    def __call__(
        self,
        images: Array,
        *,
        key: Array | None = None,
        return_intermediates: bool | Collection[str] = False,
    ) -> Any:
        """Classifies images.

        Args:
          images: (b, h, w, c) float in [-1, 1]; h and w are `config.image_size`.
          key: randomness of dropout and stochastic depth; None is inference.
          return_intermediates: True, or names to add to it: "attention" (costly) is only
            returned when it is named. ("pre_logits",) alone leaves a scan one.

        Returns:
          logits (b, num_classes) float32; with `return_intermediates` also a dict of
          "embedded" (b, n, d) after Eq. 1, "block_0" ... (b, n, d), "encoded" (b, n, d) = LN(z_L),
          "pooled" (b, d) = y of Eq. 4, "pre_logits" (b, d or representation_size) before the tanh,
          "attention" (layers, b, heads, n, n).

        Raises:
          UserError: the images have another shape than the position embeddings were made for.
        """
        config = self.config
        check_images(images, config)
        if images.shape[1:] != (*config.image_size, config.channels):
            raise UserError(
                f"{config.variant} was built for images of {(*config.image_size, config.channels)} "
                f"but got {tuple(images.shape[1:])}; resize the images, or load the model with "
                f"image_size={tuple(images.shape[1:3])} to interpolate its position embeddings."
            )
        wants = () if isinstance(return_intermediates, bool) else tuple(return_intermediates)
        out: dict[str, Any] = {}

        out["embedded"] = z = self.embed(images, key)  # Eq. 1

        # Eq. 2 and 3, L times
        if config.scan and (not return_intermediates or wants == ("pre_logits",)):
            z = scan_blocks(self.blocks, config, z, key)
        else:
            attention: list[Any] = []
            for i, block in enumerate(self.blocks):
                if i and config.position_embedding_at != "stem":
                    z = self.add_position(z, i)
                call = functools.partial(block, return_weights="attention" in wants)
                z, weights = remat.apply(call, config.remat)(z, fold(key, i))
                out[f"block_{i}"] = z
                attention.append(weights)
            if "attention" in wants:
                out["attention"] = jnp.stack(attention)

        # Eq. 4: y = LN(z_L^0)
        out["encoded"] = z = self.encoder_norm(z)
        if config.classifier == "token":
            y = z[:, 0]
        elif config.classifier == "gap":
            y = z.astype(jnp.float32).mean(axis=1).astype(z.dtype)
        else:
            y = self.pooling(z, fold(key, config.num_layers + 1))
        out["pooled"] = y

        # Head: a hidden tanh layer in pre-training, one linear layer in fine-tuning (section 3.1)
        if config.representation_size is not None:
            out["pre_logits"] = y = self.pre_logits(y)
            y = jnp.tanh(y)
        else:
            out["pre_logits"] = y
        logits = self.head(y, out_dtype=jnp.float32)
        return (logits, out) if return_intermediates else logits

    def embed(self, images: Array, key: Array | None = None) -> Array:
        """Eq. 1: z_0 = [x_class; x_p^1 E; ...; x_p^N E] + E_pos. (b, h, w, c) to (b, n, d)."""
        config = self.config
        x = self.stem(images) if config.stem_depths is not None else images
        z = self.patch_embedding(x)
        if config.classifier == "token":
            token = jnp.broadcast_to(
                self.class_token[...].astype(z.dtype), (z.shape[0], 1, z.shape[2])
            )
            z = jnp.concatenate([token, z], axis=1)
        z = self.add_position(z, 0)
        return dropout(z, config.dropout_rate, fold(key, config.num_layers))

    def add_position(self, z: Array, layer: int) -> Array:
        """Adds the position embedding of `layer` (Table 8); layer 0 is the stem."""
        if self.config.position_embedding not in ("1d", "2d"):
            return z
        every = self.config.position_embedding_at == "every"
        return self.position_embedding[layer if every else 0](z)
