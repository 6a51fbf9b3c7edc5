"""Axial-ViT (Appendix D.6): attention along the rows, then down the columns, of the token grid.

The paper does not say what happens to the class token, which has no position on the grid. Here
there is none, and the classifier averages the tokens.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import Array, Dense, Keys, Randomness, fold, initializers
from vit_jax.models.vit import EncoderBlock, VisionTransformer
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import Numerics


@dataclasses.dataclass(frozen=True)
class AxialConfig(ViTConfig):
    """A `ViTConfig` whose blocks are axial. Its classifier is "gap" or "map"."""

    classifier: str = "gap"

    def __post_init__(self):
        super().__post_init__()
        if self.classifier == "token":
            raise UserError(
                f"{self.variant} has no class token; set model.classifier to gap or map."
            )
        if self.position_embedding == "relative":
            raise UserError(f"{self.variant}: model.position_embedding must be none, 1d or 2d.")


class AxialBlock(nnx.Module):
    """Row attention and an MLP, then column attention and another MLP. (b, n, d) to (b, n, d)."""

    def __init__(
        self, config: ViTConfig, numerics: Numerics, *, drop_path: float = 0.0, keys: Keys
    ):
        self.row = EncoderBlock(config, numerics, drop_path=drop_path, keys=keys)
        self.column = EncoderBlock(config, numerics, drop_path=drop_path, keys=keys)
        self.grid = config.grid

    def __call__(self, z: Array, key: Randomness = None) -> Array:
        b, n, d = z.shape
        rows, columns = self.grid
        z = self.row(z.reshape(b * rows, columns, d), fold(key, 0))
        z = z.reshape(b, rows, columns, d).swapaxes(1, 2).reshape(b * columns, rows, d)
        z = self.column(z, fold(key, 1))
        return z.reshape(b, columns, rows, d).swapaxes(1, 2).reshape(b, n, d)

    def attention_weights(self, z: Array) -> Array:
        """Not defined: there is no attention over all tokens."""
        raise UserError(
            "Axial models attend along rows and columns, so there is no (n, n) attention to "
            "return; ask for other intermediates."
        )


class AxialTransformer(VisionTransformer):
    """A Vision Transformer of axial blocks; the same contract."""

    block = AxialBlock


class AxialConv(nnx.Module):
    """Replaces a 3x3 convolution: attention down columns, then along rows, then a stride.

    (b, h, w, c) to (b, h / stride, w / stride, c); the stride averages 2x2 pixels.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        stride: int,
        grid: tuple[int, int],
        *,
        numerics: Numerics,
        keys: Keys,
    ):
        self.column = RelativeAttention(features, heads, grid[0], numerics=numerics, keys=keys)
        self.row = RelativeAttention(features, heads, grid[1], numerics=numerics, keys=keys)
        self.stride = stride

    def __call__(self, x: Array) -> Array:
        x = self.column(x.swapaxes(1, 2)).swapaxes(1, 2)
        x = self.row(x)
        if self.stride == 1:
            return x
        with jax.numpy_dtype_promotion("standard"):  # flax divides by counts in float32
            pooled = nnx.avg_pool(
                x, window_shape=(2, 2), strides=(2, 2), padding="SAME", count_include_pad=False
            )
        return pooled.astype(x.dtype)


class RelativeAttention(nnx.Module):
    """Position-sensitive attention over the last spatial axis: (b, m, n, c) to the same.

    Queries, keys and values each have a learned embedding of the offset, shared by the heads
    (arXiv 2003.07853): logit = (q k + q r_q + k r_k) / sqrt(e), output = sum of w (v + r_v).
    """

    def __init__(self, features: int, heads: int, length: int, *, numerics: Numerics, keys: Keys):
        e = features // heads
        self.qkv = Dense(features, (3, heads, e), batch_axes=1, numerics=numerics, keys=keys)
        self.relative = nnx.Param(keys(initializers.normal(stddev=e**-0.5), (3, 2 * length - 1, e)))
        self.product = numerics.product

    def __call__(self, x: Array) -> Array:
        product = self.product
        q, k, v = jnp.moveaxis(self.qkv(x), (3, 4), (0, 2))  # three of (b, h, m, n, e)
        n, e = q.shape[-2:]
        offsets = jnp.arange(n)[:, None] - jnp.arange(n)[None, :] + n - 1
        r_q, r_k, r_v = self.relative[...].astype(q.dtype)[:, offsets]  # three of (n, n, e)
        logits = product("bhmqe,bhmke->bhmqk", q, k)
        logits += product("bhmqe,qke->bhmqk", q, r_q) + product("bhmke,qke->bhmqk", k, r_k)
        weights = jax.nn.softmax(logits / e**0.5, axis=-1).astype(v.dtype)
        y = product("bhmqk,bhmke->bhmqe", weights, v)
        y += product("bhmqk,qke->bhmqe", weights, r_v)
        return jnp.moveaxis(y, 1, 3).reshape(x.shape).astype(x.dtype)
