"""The Vision Transformer (section 3.1): `VisionTransformer.__call__` reads as Eq. 1-4."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import (
    ACTIVATIONS,
    Array,
    Dense,
    Keys,
    LayerNorm,
    Model,
    affine,
    constant,
    dropout,
    fold,
    initializers,
    product,
    settled,
    zeros,
)
from vit_jax.models.resnet import HybridStem
from vit_jax.numerics import remat

CLASSIFIERS = ("token", "gap", "map")
POSITION_EMBEDDINGS = ("none", "1d", "2d", "relative")
POSITION_EMBEDDING_PLACES = ("stem", "every", "shared")
ATTENTIONS = ("auto", "xla", "cudnn")


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """The shape of one Vision Transformer: a row of Table 1 plus what the ablations vary.

    `stem_depths`: None, or the stages of a ResNet stem (hybrids, section 3.1); the patches are then
    cut from its feature map. Its epsilons are those of the released hybrids; weights of other
    families may have others; so may their `layer_norm_epsilon` and their `activation`, "gelu_tanh"
    (as here) or "gelu" (exact). `representation_size` is the hidden layer of the pre-training head
    (None: the linear fine-tuning head). `labels` are the class names and `preprocessing` the
    evaluation transform with its options, if known; they travel with the weights. `attention` is
    "xla", "cudnn" (its fused kernel) or "auto", cuDNN's where it can be had.
    """

    variant: str
    patch_size: tuple[int, int]
    hidden_size: int
    num_layers: int
    mlp_dim: int
    num_heads: int
    image_size: tuple[int, int] = (224, 224)
    channels: int = 3
    num_classes: int = 1000
    representation_size: int | None = None
    classifier: str = "token"
    position_embedding: str = "1d"
    position_embedding_at: str = "stem"
    stem_depths: tuple[int, ...] | None = None
    stem_width: float = 1.0
    stem_group_norm_epsilon: float = 1e-6
    stem_standardisation: str = "std"
    stem_standardisation_epsilon: float = 1e-5
    head_bias: float = 0.0
    activation: str = "gelu_tanh"
    layer_norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0
    stochastic_depth_rate: float = 0.0
    remat: bool | str = False  # see models/remat.py
    scan: bool = False
    attention: str = "auto"
    dtype: str = "float32"
    labels: tuple[str, ...] = ()
    preprocessing: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        remat.name_of(self.remat)
        for key, options in (
            ("classifier", CLASSIFIERS),
            ("activation", tuple(ACTIVATIONS)),
            ("attention", ATTENTIONS),
            ("position_embedding", POSITION_EMBEDDINGS),
            ("position_embedding_at", POSITION_EMBEDDING_PLACES),
        ):
            if getattr(self, key) not in options:
                raise UserError(
                    f"model.{key}={getattr(self, key)!r} does not exist; "
                    f"choose one of {', '.join(options)}."
                )
        if self.hidden_size % self.num_heads:
            fits = [h for h in range(1, self.hidden_size + 1) if self.hidden_size % h == 0]
            close = sorted(fits, key=lambda h: abs(h - self.num_heads))[:3]
            raise UserError(
                f"{self.variant}: hidden size {self.hidden_size} does not divide into "
                f"{self.num_heads} heads; {', '.join(map(str, sorted(close)))} heads would."
            )
        stride = self.stride
        for axis, size, step in zip(("height", "width"), self.image_size, stride, strict=True):
            if size <= 0 or size % step:
                below, above = size // step * step, (size // step + 1) * step
                fit = f"{below} or {above}" if below > 0 else f"{above}"
                raise UserError(
                    f"{self.variant}: image {axis} {size} is not divisible by the patch size "
                    f"{step}; set model.image_size to {fit}."
                )

    @property
    def stride(self) -> tuple[int, int]:
        """Pixels per token, (vertical, horizontal): the number after the slash in the name."""
        stem = 1 if self.stem_depths is None else HybridStem.stride(self.stem_depths)
        return self.patch_size[0] * stem, self.patch_size[1] * stem

    @property
    def grid(self) -> tuple[int, int]:
        """Tokens per (column, row) of the image, without the class token."""
        return self.image_size[0] // self.stride[0], self.image_size[1] // self.stride[1]

    @property
    def num_tokens(self) -> int:
        """Sequence length: N patches, plus one with a class token."""
        return self.grid[0] * self.grid[1] + (self.classifier == "token")

    @property
    def compute_dtype(self):
        return jnp.dtype(self.dtype)


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


def grid_table(y: Array, x: Array) -> Array:
    """Embeddings of rows (h, d1) and of columns (w, d2) as those of h w places, (h w, d1 + d2)."""
    shape = (y.shape[0], x.shape[0])
    return jnp.concatenate(
        [
            jnp.broadcast_to(y[:, None], (*shape, y.shape[1])),
            jnp.broadcast_to(x[None, :], (*shape, x.shape[1])),
        ],
        axis=-1,
    ).reshape(shape[0] * shape[1], -1)


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


def attention_weights(q: Array, k: Array, extra_logits: Array | None = None) -> Array:
    """A = softmax(q k^T / sqrt(D_h)), float32 (Appendix A). Twice (b, h, n, e) to (b, h, n, n)."""
    logits = product("bhqe,bhke->bhqk", q, k)
    if extra_logits is not None:
        logits = logits + extra_logits
    return jax.nn.softmax(logits / q.shape[-1] ** 0.5, axis=-1)


def attend(weights: Array, v: Array) -> Array:
    """A v: weights (b, h, n, m) float32 and v (b, h, m, e) to (b, h, n, e) float32."""
    return product("bhqk,bhke->bhqe", weights.astype(v.dtype), v)


def compute_capability() -> float:
    """That of the NVIDIA GPU which programs are compiled for, e.g. 9.0; 0 on anything else."""
    found = str(getattr(jax.devices()[0], "compute_capability", ""))
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def fused_attention(asked: str, *, dtype: str, head_size: int, relative: bool) -> bool:
    """Whether attention is cuDNN's kernel, which keeps no (b, h, n, n) array in memory.

    It needs an NVIDIA GPU from Ampere on, 16 bits, and heads of at most 128 in multiples of 8; it
    knows no relative positions.

    Args:
      asked: `model.attention`: "auto", "xla" or "cudnn".

    Raises:
      UserError: `asked` is "cudnn", which cannot be.
    """
    obstacles = {
        "the device is no NVIDIA GPU of compute capability 8.0 or more": compute_capability() < 8.0,
        f"the compute dtype is {dtype}, not bfloat16": dtype != "bfloat16",
        f"the heads are {head_size} wide": head_size > 128 or head_size % 8 != 0,
        "position embeddings are relative": relative,
    }
    found = [text for text, there in obstacles.items() if there]
    if asked == "cudnn" and found:
        raise UserError(f"model.attention='cudnn' cannot be: {found[0]}; use 'auto'.")
    return asked != "xla" and not found


def cudnn_attention(q: Array, k: Array, v: Array) -> Array:
    """softmax(q k^T / sqrt(e)) v by cuDNN. Thrice (b, n, h, e) to (b, n or n + 1, h, e).

    Its gradient takes an even number of tokens only: an odd one gets a token more, to which nobody
    attends, and which is to be cut off.
    """
    n = q.shape[1]
    lengths = None
    if n % 2:
        q, k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (q, k, v))
        lengths = jnp.full((q.shape[0],), n, jnp.int32)
    return jax.nn.dot_product_attention(
        q, k, v, key_value_seq_lengths=lengths, implementation="cudnn"
    )


def relative_logits(q: Array, embeddings: Array) -> Array:
    """q . r[p_q - p_k] (Table 8): queries (b, h, n, e) against (2 n - 1, e) embeddings of offsets.

    Returns (b, h, n, n); offsets are those of the raster order.
    """
    n = q.shape[2]
    offsets = jnp.arange(n)[:, None] - jnp.arange(n)[None, :] + n - 1
    scores = product("bhqe,re->bhqr", q, embeddings.astype(q.dtype))
    return jnp.take_along_axis(
        scores, jnp.broadcast_to(offsets, (*scores.shape[:2], n, n)), axis=-1
    )


class SelfAttention(nnx.Module):
    """MSA (Appendix A): [q, k, v] = z U_qkv, heads attend apart, U_msa mixes them. (b, n, d)."""

    def __init__(self, config: ViTConfig, num_tokens: int, *, relative: bool, keys: Keys):
        d, heads = config.hidden_size, config.num_heads
        dense = functools.partial(Dense, dtype=config.compute_dtype, keys=keys)
        self.qkv = dense(d, (3, heads, d // heads), batch_axes=1)
        self.out = dense(d, d)
        self.fused = fused_attention(
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
            y = cudnn_attention(q, k, v)
            return self.out(y.reshape(*y.shape[:2], -1))[:, : x.shape[1]], None
        # three of (b, h, n, e)
        q, k, v = (part[0] for part in jnp.split(qkv.transpose(2, 0, 3, 1, 4), 3))
        extra = relative_logits(q, self.relative[...]) if self.relative is not None else None
        weights = attention_weights(q, k, extra)
        y = attend(weights, v).transpose(0, 2, 1, 3).reshape(x.shape)
        return self.out(y), weights if return_weights else None


class MLP(nnx.Module):
    """Two dense layers with a GELU between. (b, n, d) to (b, n, d)."""

    def __init__(self, config: ViTConfig, *, keys: Keys):
        dense = functools.partial(
            Dense, bias_init=initializers.normal(1e-6), dtype=config.compute_dtype, keys=keys
        )
        self.dense1 = dense(config.hidden_size, config.mlp_dim)
        self.dense2 = dense(config.mlp_dim, config.hidden_size)
        self.rate, self.activation = config.dropout_rate, ACTIVATIONS[config.activation]
        self.recompute = remat.name_of(config.remat) == "none"  # otherwise the block does

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        x = self.dense1(x, activation=self.activation, recompute=self.recompute)
        x = dropout(x, self.rate, fold(key, 0))
        return dropout(self.dense2(x), self.rate, fold(key, 1))


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
        z = settled(branch(y, 1) + z)  # Eq. 2: z' = MSA(LN(z)) + z
        y = self.mlp(self.mlp_norm(z), fold(key, 2))
        z = settled(branch(y, 3) + z)  # Eq. 3: z = MLP(LN(z')) + z'
        return z, weights


class AttentionPooling(nnx.Module):
    """The MAP head: one learned query attends to all tokens, then an MLP. (b, n, d) to (b, d)."""

    def __init__(self, config: ViTConfig, *, keys: Keys):
        d, heads = config.hidden_size, config.num_heads
        dense = functools.partial(Dense, dtype=config.compute_dtype, keys=keys)
        init = initializers.xavier_uniform()
        self.probe = nnx.Param(init(keys(), (1, d), jnp.float32)[None])
        self.query = dense(d, (heads, d // heads))
        self.key_value = dense(d, (2, heads, d // heads), batch_axes=1)
        self.out = dense(d, d)
        self.mlp_norm = LayerNorm(
            d, epsilon=config.layer_norm_epsilon, dtype=config.compute_dtype, keys=keys
        )
        self.mlp = MLP(config, keys=keys)

    def __call__(self, x: Array, key: Array | None = None) -> Array:
        b, _, d = x.shape
        q = self.query(self.probe[...]).transpose(0, 2, 1, 3)  # (1, h, 1, e)
        k, v = self.key_value(x).transpose(2, 0, 3, 1, 4)  # two of (b, h, n, e)
        weights = attention_weights(jnp.broadcast_to(q, (b, *q.shape[1:])), k)
        y = attend(weights, v).transpose(0, 2, 1, 3).reshape(b, 1, d)
        y = self.out(y)
        return (y + self.mlp(self.mlp_norm(y), key))[:, 0]


def scan_blocks(blocks: nnx.List, config: ViTConfig, z: Array, key: Array | None) -> Array:
    """The encoder as one `lax.scan`: one layer is compiled instead of all of them.

    Raises:
      UserError: the layers are not alike.
    """
    if config.position_embedding_at != "stem" or config.stochastic_depth_rate:
        raise UserError(
            "model.scan=True needs position embeddings at the stem and no stochastic depth; "
            "set model.scan=False."
        )
    graphdef, _ = nnx.split(blocks[0])
    states = [nnx.split(block)[1] for block in blocks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)

    def layer(z, scanned):
        state, index = scanned
        return nnx.merge(graphdef, state)(z, fold(key, index))[0], None

    body = remat.apply(layer, config.remat)
    return jax.lax.scan(body, z, (stacked, jnp.arange(config.num_layers)))[0]


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
            returned when it is named.

        Returns:
          logits (b, num_classes) float32; with `return_intermediates` also a dict of
          "embedded" (b, n, d) after Eq. 1, "block_0" ... (b, n, d), "encoded" (b, n, d) = LN(z_L),
          "pooled" (b, d) = y of Eq. 4, "pre_logits" (b, d or representation_size) before the tanh,
          "attention" (layers, b, heads, n, n).

        Raises:
          UserError: the images have another shape than the position embeddings were made for.
        """
        config = self.config
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
        if config.scan and not return_intermediates:
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

