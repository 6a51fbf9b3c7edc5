"""The ablations: alternatives to parts of a Vision Transformer.

2-D and relative position embeddings, or one at every block (Table 8), the MAP head, and the encoder
as one loop.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import (
    MLP,
    Array,
    Dense,
    Keys,
    LayerNorm,
    PositionEmbedding,
    Randomness,
    add_float32,
    fold,
    initializers,
)
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import Numerics
from vit_jax.numerics.plain import attend, attention_weights


class PositionEmbedding2D(nnx.Module):
    """Adds row and column embeddings of half the width each, concatenated (Appendix D.4)."""

    def __init__(self, config: ViTConfig, *, keys: Keys):
        init = initializers.normal(stddev=0.02)
        d, (rows, columns) = config.hidden_size, config.grid
        self.y = nnx.Param(keys(init, (rows, d // 2)))
        self.x = nnx.Param(keys(init, (columns, d - d // 2)))
        self.token = config.classifier == "token"
        if self.token:
            self.class_token = nnx.Param(keys(init, (1, d)))

    def table(self) -> Array:
        """The embedding of every token, (1, n, d); the class token's comes first."""
        grid = grid_table(self.y[...], self.x[...])
        return (jnp.concatenate([self.class_token[...], grid]) if self.token else grid)[None]

    def __call__(self, z: Array) -> Array:
        return add_float32(z, self.table())


def position_embeddings(config: ViTConfig, *, keys: Keys) -> nnx.List:
    """The modules that add E_pos: one for the stem, one for every block, or none (Table 8)."""
    kinds = {"1d": PositionEmbedding, "2d": PositionEmbedding2D}
    if config.position_embedding not in kinds:
        return nnx.List()
    count = config.num_layers if config.position_embedding_at == "every" else 1
    return nnx.List(kinds[config.position_embedding](config, keys=keys) for _ in range(count))


def add_position(embeddings: nnx.List, config: ViTConfig, z: Array, layer: int) -> Array:
    """z with the position embedding of `layer`, if it has one; layer 0 is the stem (Table 8)."""
    if not len(embeddings) or (layer and config.position_embedding_at == "stem"):
        return z
    return embeddings[layer if config.position_embedding_at == "every" else 0](z)


def grid_table(y: Array, x: Array) -> Array:
    """Embeddings of rows (h, d1) and columns (w, d2) as those of h w positions, (h w, d1 + d2)."""
    shape = (y.shape[0], x.shape[0])
    return jnp.concatenate(
        [
            jnp.broadcast_to(y[:, None], (*shape, y.shape[1])),
            jnp.broadcast_to(x[None, :], (*shape, x.shape[1])),
        ],
        axis=-1,
    ).reshape(shape[0] * shape[1], -1)


def relative_embedding(config: ViTConfig, *, keys: Keys) -> nnx.Param | None:
    """One vector per offset of two tokens, (2 n - 1, e); None unless positions are relative."""
    if config.position_embedding != "relative":
        return None
    shape = (2 * config.num_tokens - 1, config.hidden_size // config.num_heads)
    return nnx.Param(keys(initializers.normal(stddev=0.02), shape))


def relative_logits(
    embedding: nnx.Param | None, numerics: Numerics
) -> Callable[[Array], Array] | None:
    """q . r[p_q - p_k] (Table 8), to be added to q k^T, as a function of q (b, h, n, e).

    Its result is (b, h, n, n); offsets are in raster order.
    """
    if embedding is None:
        return None

    def of_queries(q: Array) -> Array:
        n = q.shape[2]
        offsets = jnp.arange(n)[:, None] - jnp.arange(n)[None, :] + n - 1
        scores = numerics.product("bhqe,re->bhqr", q, embedding[...].astype(q.dtype))
        return jnp.take_along_axis(
            scores, jnp.broadcast_to(offsets, (*scores.shape[:2], n, n)), axis=-1
        )

    return of_queries


def pooling(config: ViTConfig, numerics: Numerics, *, keys: Keys) -> Callable[..., Array]:
    """Replaces the class token (Appendix D.3): (z (b, n, d), key) to y (b, d)."""
    return average if config.classifier == "gap" else AttentionPooling(config, numerics, keys=keys)


def average(z: Array, key: Randomness = None) -> Array:
    """Global average pooling."""
    del key
    return z.astype(jnp.float32).mean(axis=1).astype(z.dtype)


class AttentionPooling(nnx.Module):
    """The MAP head: one learned query attends to all tokens, then an MLP. (b, n, d) to (b, d)."""

    def __init__(self, config: ViTConfig, numerics: Numerics, *, keys: Keys):
        d, heads = config.hidden_size, config.num_heads
        dense = functools.partial(Dense, numerics=numerics, keys=keys)
        init = initializers.xavier_uniform()
        self.probe = nnx.Param(keys(init, (1, d))[None])
        self.query = dense(d, (heads, d // heads))
        self.key_value = dense(d, (2, heads, d // heads), batch_axes=1)
        self.out = dense(d, d)
        self.mlp_norm = LayerNorm(d, epsilon=config.layer_norm_epsilon, numerics=numerics)
        self.mlp = MLP(config, numerics, keys=keys)
        self.product, self.index = numerics.product, config.num_layers + 1

    def __call__(self, x: Array, key: Randomness = None) -> Array:
        key, b = fold(key, self.index), x.shape[0]
        q = self.query(self.probe[...]).transpose(0, 2, 1, 3)  # (1, h, 1, e)
        k, v = self.key_value(x).transpose(2, 0, 3, 1, 4)  # two of (b, h, n, e)
        q = jnp.broadcast_to(q, (b, *q.shape[1:]))
        weights = attention_weights(q, k, product=self.product)
        y = self.out(attend(weights, v, product=self.product))
        return (y + self.mlp(self.mlp_norm(y), key))[:, 0]


def scan_blocks(
    blocks: nnx.List, config: ViTConfig, numerics: Numerics, z: Array, key: Randomness
) -> Array:
    """The encoder as one `lax.scan`, which compiles one layer instead of all.

    Raises:
      UserError: the layers differ.
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
        return nnx.merge(graphdef, state)(z, fold(key, index)), None

    return jax.lax.scan(numerics.layer(layer), z, (stacked, jnp.arange(config.num_layers)))[0]
