"""What the ablations put in a Vision Transformer's place: 2-D and relative position embeddings
(Table 8), the MAP head, and the encoder as one loop.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from vit_jax.errors import UserError
from vit_jax.models.layers import MLP, Array, Dense, Keys, LayerNorm, fold, initializers
from vit_jax.models.vit_config import ViTConfig
from vit_jax.numerics import plain, remat
from vit_jax.numerics.dense import product


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
        weights = plain.attention_weights(jnp.broadcast_to(q, (b, *q.shape[1:])), k)
        y = plain.attend(weights, v).transpose(0, 2, 1, 3).reshape(b, 1, d)
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
