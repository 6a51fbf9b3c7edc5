"""The models as ONNX operations: Vision Transformers, hybrids, axial models and BiT.

Tokens are rows (batch * tokens, d), so that a dense layer is one Gemm. 1 / sqrt(e) is folded into
the query weights, kernels are stored standardised, and the class token is folded into the table of
E_pos. Only the class token is read after the last block, so there only its query, projection and
MLP are computed.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vit_jax import models
from vit_jax.interop.onnx_graph import Graph, Tensor
from vit_jax.models.stem import EXPANSION, GROUPS

Array = np.ndarray


class Image(NamedTuple):
    """A feature map (b, channels, h, w)."""

    tensor: Tensor
    channels: int
    h: int
    w: int


def write(g: Graph, config: models.ModelConfig, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (b, k) and pre_logits (b, d), before any tanh, for images (b, h, w, c) in [-1, 1]."""
    if isinstance(config, models.ResNetConfig):
        y = resnet(g, config, images)
    else:
        y = transformer(g, config, images)
    if getattr(config, "representation_size", None) is None:
        return g.dense(y, "head"), y
    y = g.dense(y, "pre_logits")
    return g.dense(g("Tanh", y, name="pre_logits/tanh"), "head"), y


# --- Transformers -------------------------------------------------------------------------------


def transformer(g: Graph, config: models.ViTConfig, images: Tensor) -> Tensor:
    """Eq. 1 to 4: y (b, d) for images (b, h, w, c)."""
    d, n, epsilon = config.hidden_size, config.num_tokens, config.layer_norm_epsilon
    token = config.classifier == "token"
    z = patches(g, config, images)
    first = np.zeros((n, d), np.float32)
    if token:  # a row of zeros before the patches, to which the table adds the class token
        z = g("Pad", g.reshape(z, -1, n - 1, d), g.integers(0, 1, 0, 0, 0, 0), name="class_token")
        first[0] = g.param("class_token")
        z = g.reshape(z, -1, d)
    z = add_position(g, config, z, 0, first)
    for i in range(config.num_layers):
        z = add_position(g, config, z, i) if i else z
        with g.at(f"blocks/{i}/"):
            if isinstance(config, models.AxialConfig):
                z = axial_block(g, config, z)
            else:
                z = block(g, config, z, n, last=token and i == config.num_layers - 1)
    z = g.norm(z, "encoder_norm", epsilon)
    if token:
        return z
    if config.classifier == "gap":
        return g.mean(g.reshape(z, -1, n, d), 1, name="pooled")
    with g.at("pooling/"):
        return attention_pooling(g, config, z)


def patches(g: Graph, config: models.ViTConfig, images: Tensor) -> Tensor:
    """x_p E: rows (b N, d)."""
    (rows, columns), (ph, pw) = config.grid, config.patch_size
    kernel, bias = g.param("patch_embedding/kernel"), g.param("patch_embedding/bias")
    c = kernel.shape[2]
    if config.stem_depths is None:
        x = g.reshape(images, -1, rows, ph, columns, pw, c)
        x = g.transpose(x, 0, 1, 3, 2, 4, 5)
    else:
        with g.at("stem/"):
            x = g.reshape(stem(g, config, images).tensor, -1, c, rows, ph, columns, pw)
        x = g.transpose(x, 0, 2, 4, 3, 5, 1)
    x = g.reshape(x, -1, ph * pw * c, name="patches")
    return g.gemm(x, kernel.reshape(ph * pw * c, -1), bias, "patch_embedding")


def add_position(
    g: Graph, config: models.ViTConfig, z: Tensor, layer: int, first: Array | None = None
) -> Tensor:
    """z + E_pos of this layer, if there is one (Table 8), + `first` (n, d)."""
    n, d = config.num_tokens, config.hidden_size
    table = np.zeros((n, d), np.float32) if first is None else first
    kind, place = config.position_embedding, config.position_embedding_at
    if kind in ("1d", "2d") and (layer == 0 or place != "stem"):
        path = f"position_embedding/{layer if place == 'every' else 0}"
        table = table + (g.param(f"{path}/embedding") if kind == "1d" else table_2d(g, path, n))
    if not table.any():
        return z
    added = g.weight(table.reshape(n, d), f"position_embedding/{layer}")
    return g.reshape(g("Add", g.reshape(z, -1, n, d), added), -1, d)


def table_2d(g: Graph, path: str, n: int) -> Array:
    """Half of a token's vector is for its row, half for its column; the class token has its own."""
    y, x = g.param(f"{path}/y"), g.param(f"{path}/x")
    grid = np.concatenate([np.repeat(y, len(x), axis=0), np.tile(x, (len(y), 1))], axis=-1)
    return grid if len(grid) == n else np.concatenate([g.param(f"{path}/class_token"), grid])


def block(g: Graph, config: models.ViTConfig, z: Tensor, n: int, *, last: bool = False) -> Tensor:
    """Eq. 2 and 3 on rows (b n, d), where n tokens attend to each other.

    last: only the first of the n tokens is computed, (b, d).
    """
    d, epsilon = config.hidden_size, config.layer_norm_epsilon
    x = g.norm(z, "attention_norm", epsilon)
    first = g.weight(np.zeros((), np.int64), "shapes/first", shared=True)

    def first_of(rows: Tensor) -> Tensor:
        return g("Gather", g.reshape(rows, -1, n, d), first, axis=1) if last else rows

    z = first_of(z)
    with g.at("attention/"):
        y = attention(g, config, x, n, first_of(x), 1 if last else n)
    z = g("Add", z, y)
    return g("Add", z, mlp(g, config, g.norm(z, "mlp_norm", epsilon)))


def mlp(g: Graph, config: models.ViTConfig, x: Tensor) -> Tensor:
    x = g.activation(g.dense(x, "mlp/dense1"), config.activation)
    return g.dense(x, "mlp/dense2")


def attention(
    g: Graph, config: models.ViTConfig, x: Tensor, n: int, asking: Tensor, queries: int
) -> Tensor:
    """MSA (Eq. 5 to 8) on rows x (b n, d); `asking` (b queries, d) are the queries' tokens."""
    kernel, bias = g.param("qkv/kernel"), g.param("qkv/bias")  # (d, 3, h, e), (3, h, e)
    h, e = kernel.shape[2:]
    scale = np.float32(e**-0.5)
    q = g.gemm(asking, kernel[:, 0] * scale, bias[0] * scale, "q")
    k, v = (g.gemm(x, kernel[:, i], bias[i], name) for i, name in ((1, "k"), (2, "v")))
    q = g.transpose(g.reshape(q, -1, queries, h, e), 0, 2, 1, 3)
    k = g.transpose(g.reshape(k, -1, n, h, e), 0, 2, 3, 1)
    v = g.transpose(g.reshape(v, -1, n, h, e), 0, 2, 1, 3)
    logits = g("MatMul", q, k, name="logits")  # the scale is folded into q
    if config.position_embedding == "relative":
        logits = g("Add", logits, relative_logits(g, q, n, queries))
    return attend(g, logits, v)


def attend(g: Graph, logits: Tensor, v: Tensor) -> Tensor:
    """softmax(logits) v and the projection, for logits (b, h, queries, n): (b queries, d)."""
    y = g("MatMul", g("Softmax", logits, axis=-1), v, name="attended")
    d = g.param("out/kernel").shape[0]
    return g.dense(g.reshape(g.transpose(y, 0, 2, 1, 3), -1, d), "out")


def relative_logits(g: Graph, q: Tensor, n: int, queries: int) -> Tensor:
    """q . r[p_q - p_k] (Table 8), (b, h, queries, n), for the first `queries` tokens."""
    by_key = g.param("relative")[::-1]  # [k - q + n - 1]: then a row's values are contiguous
    scores = g("MatMul", q, g.weight(by_key.T, "relative"))  # (b, h, queries, 2 n - 1)
    if queries == 1:
        return g.slice(scores, n - 1, 2 * n - 1, axis=3)
    h = g.param("qkv/kernel").shape[2]
    # Row q begins at n - 1 - q: with one more column, all begin in one column after reshaping.
    scores = g("Pad", scores, g.integers(0, 0, 0, 0, 0, 0, 0, 1))
    scores = g.reshape(scores, -1, h, queries * 2 * n)
    scores = g.slice(scores, n - 1, n - 1 + queries * (2 * n - 1), axis=2)
    return g.slice(g.reshape(scores, -1, h, queries, 2 * n - 1), 0, n, axis=3)


def axial_block(g: Graph, config: models.AxialConfig, z: Tensor) -> Tensor:
    """Attention along the rows, then down the columns, of the grid (Appendix D.6)."""
    (rows, columns), d = config.grid, config.hidden_size
    with g.at("row/"):
        z = block(g, config, z, columns)
    z = g.reshape(g.transpose(g.reshape(z, -1, rows, columns, d), 0, 2, 1, 3), -1, d)
    with g.at("column/"):
        z = block(g, config, z, rows)
    return g.reshape(g.transpose(g.reshape(z, -1, columns, rows, d), 0, 2, 1, 3), -1, d)


def attention_pooling(g: Graph, config: models.ViTConfig, z: Tensor) -> Tensor:
    """The MAP head: one learned query, a constant, attends to all tokens."""
    n = config.num_tokens
    kernel, bias = g.param("key_value/kernel"), g.param("key_value/bias")  # (d, 2, h, e), (2, h, e)
    h, e = kernel.shape[2:]
    query = np.tensordot(g.param("probe")[0], g.param("query/kernel"), 1) + g.param("query/bias")
    q = g.weight(query.reshape(1, h, 1, e) * np.float32(e**-0.5), "query")
    k, v = (g.gemm(z, kernel[:, i], bias[i], name) for i, name in ((0, "k"), (1, "v")))
    k = g.transpose(g.reshape(k, -1, n, h, e), 0, 2, 3, 1)
    v = g.transpose(g.reshape(v, -1, n, h, e), 0, 2, 1, 3)
    y = attend(g, g("MatMul", q, k, name="logits"), v)
    return g("Add", y, mlp(g, config, g.norm(y, "mlp_norm", config.layer_norm_epsilon)))


# --- ResNets ------------------------------------------------------------------------------------


def nchw(g: Graph, config: models.ModelConfig, images: Tensor) -> Image:
    return Image(g.transpose(images, 0, 3, 1, 2), config.channels, *config.image_size)


def stem(g: Graph, config: models.ViTConfig, images: Tensor) -> Image:
    """The v1 stem of a hybrid: convolution, norm, ReLU."""
    style, epsilon = config.stem_standardisation, config.stem_standardisation_epsilon

    def conv(x: Image, name: str, stride: int = 1) -> Image:
        k = g.param(f"{name}/kernel").shape[0]
        pads = [same(size, k, stride) for size in (x.h, x.w)]
        return convolution(g, x, name, stride, pads, style, epsilon)

    def norm(x: Image, name: str) -> Image:
        return group_norm(g, x, name, config.stem_group_norm_epsilon)

    x = relu(g, norm(conv(nchw(g, config, images), "conv_root", 2), "norm_root"))
    x = max_pool(g, x, [same(size, 3, 2) for size in (x.h, x.w)])
    for stage, depth in enumerate(config.stem_depths or ()):
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            with g.at(f"stages/{stage}/{unit}/"):
                residual = x
                if stride != 1 or x.channels != int(64 * config.stem_width) * 2**stage * EXPANSION:
                    residual = norm(conv(x, "conv_proj", stride), "norm_proj")
                y = relu(g, norm(conv(x, "conv1"), "norm1"))
                y = relu(g, norm(conv(y, "conv2", stride), "norm2"))
                y = norm(conv(y, "conv3"), "norm3")
                x = relu(g, y._replace(tensor=g("Add", residual.tensor, y.tensor)))
    return x


def resnet(g: Graph, config: models.ResNetConfig, images: Tensor) -> Tensor:
    """BiT's ResNet-v2, or an Axial-ResNet: pre_logits (b, d) for images (b, h, w, c)."""
    style, epsilon = config.standardisation, config.standardisation_epsilon

    def conv(x: Image, name: str, stride: int = 1) -> Image:
        side = (g.param(f"{name}/kernel").shape[0] - 1) // 2
        return convolution(g, x, name, stride, [(side, side)] * 2, style, epsilon)

    def active(x: Image, name: str) -> Image:
        return relu(g, group_norm(g, x, name, config.group_norm_epsilon))

    x = conv(nchw(g, config, images), "conv_root", 2)
    if config.pool_padding == "zeros":
        padded = g("Pad", x.tensor, g.integers(0, 0, 1, 1, 0, 0, 1, 1))
        x = max_pool(g, Image(padded, x.channels, x.h + 2, x.w + 2), [(0, 0)] * 2)
    else:
        x = max_pool(g, x, [(1, 1)] * 2)
    for stage, depth in enumerate(config.depths):
        for unit in range(depth):
            stride = 2 if stage and not unit else 1
            out = int(64 * config.width_factor) * 2**stage * EXPANSION
            with g.at(f"stages/{stage}/{unit}/"):
                y = active(x, "norm1")
                projects = stride != 1 or x.channels != out
                residual = conv(y, "conv_proj", stride) if projects else x
                y = active(conv(y, "conv1"), "norm2")
                if config.axial_heads:
                    with g.at("conv2/"):
                        y = axial_convolution(g, y, stride)
                else:
                    y = conv(y, "conv2", stride)
                y = conv(active(y, "norm3"), "conv3")
                x = y._replace(tensor=g("Add", residual.tensor, y.tensor))
    return g.mean(active(x, "norm").tensor, 2, 3, name="pooled")


def same(size: int, window: int, stride: int) -> tuple[int, int]:
    """The padding for ceil(size / stride) outputs, the larger half after."""
    total = max((-(-size // stride) - 1) * stride + window - size, 0)
    return total // 2, total - total // 2


def slide(
    g: Graph,
    operation: str,
    x: Image,
    window: int,
    stride: int,
    pads: list[tuple[int, int]],
    *,
    name: str = "",
    weights: tuple[Tensor, ...] = (),
) -> Image:
    """An operation on windows of an image; `pads` are (before, after) of rows and of columns."""
    tensor = g(
        operation,
        x.tensor,
        *weights,
        name=name,
        kernel_shape=[window] * 2,
        strides=[stride] * 2,
        pads=[pad[end] for end in (0, 1) for pad in pads],
    )
    sizes = zip((x.h, x.w), pads, strict=True)
    h, w = ((size + sum(pad) - window) // stride + 1 for size, pad in sizes)
    return Image(tensor, x.channels, h, w)


def convolution(
    g: Graph,
    x: Image,
    name: str,
    stride: int,
    pads: list[tuple[int, int]],
    style: str,
    epsilon: float,
) -> Image:
    """A convolution with a kernel that is standardised over (kh, kw, c_in) before it is stored."""
    w = g.param(f"{name}/kernel")
    centred = w - w.mean(axis=(0, 1, 2), keepdims=True)
    variance = np.square(centred).mean(axis=(0, 1, 2), keepdims=True)
    eps = np.float32(epsilon)
    w = centred / (np.sqrt(variance) + eps if style == "std" else np.sqrt(variance + eps))
    kernel = g.weight(w.transpose(3, 2, 0, 1), f"{name}/kernel")
    y = slide(g, "Conv", x, w.shape[0], stride, pads, name=name, weights=(kernel,))
    return y._replace(channels=w.shape[3])


def max_pool(g: Graph, x: Image, pads: list[tuple[int, int]]) -> Image:
    """3x3, stride 2; padding does not count."""
    return slide(g, "MaxPool", x, 3, 2, pads)


def relu(g: Graph, x: Image) -> Image:
    return x._replace(tensor=g("Relu", x.tensor))


def group_norm(g: Graph, x: Image, name: str, epsilon: float) -> Image:
    """GroupNorm of 32 groups as InstanceNormalization, then scale and bias per channel."""
    ones, zeros = (
        g.weight(np.full(GROUPS, value, np.float32), f"constants/groups_{value}", shared=True)
        for value in (1, 0)
    )
    y = g.reshape(x.tensor, -1, GROUPS, x.channels // GROUPS * x.h * x.w)
    y = g("InstanceNormalization", y, ones, zeros, name=name, epsilon=epsilon)
    y = g.reshape(y, -1, x.channels, x.h, x.w)
    scale, bias = (
        g.weight(g.param(f"{name}/{part}")[:, None, None], f"{name}/{part}")
        for part in ("scale", "bias")
    )
    return x._replace(tensor=g("Add", g("Mul", y, scale), bias))


def axial_convolution(g: Graph, x: Image, stride: int) -> Image:
    """Attention down columns, then along rows; a stride is the mean of 2x2 pixels."""
    with g.at("column/"):
        y = relative_attention(g, g.transpose(x.tensor, 0, 3, 2, 1), x.channels, x.w, x.h)
    y = g.transpose(y, 0, 2, 1, 3)
    with g.at("row/"):
        y = relative_attention(g, y, x.channels, x.h, x.w)
    y = g.transpose(y, 0, 3, 1, 2)
    if stride == 1:
        return x._replace(tensor=y)
    pads = [same(size, 2, 2) for size in (x.h, x.w)]
    # Padding does not count: "count_include_pad" is 0 by default.
    return slide(g, "AveragePool", x._replace(tensor=y), 2, 2, pads)


def relative_attention(g: Graph, x: Tensor, c: int, m: int, n: int) -> Tensor:
    """Position-sensitive attention: (b, m, n, c) to the same."""
    kernel, bias = g.param("qkv/kernel"), g.param("qkv/bias")
    h, e = kernel.shape[2:]
    scale = np.float32(e**-0.5)
    rows = g.reshape(x, -1, c)
    q, k, v = (
        g.gemm(rows, kernel[:, i] * factor, bias[i] * factor, name)
        for i, (name, factor) in enumerate((("q", scale), ("k", 1), ("v", 1)))
    )
    q, k, v = (g.transpose(g.reshape(y, -1, m, n, h, e), 0, 3, 1, 2, 4) for y in (q, k, v))
    offsets = np.arange(n)[:, None] - np.arange(n)[None, :] + n - 1
    r_q, r_k, r_v = g.param("relative")[:, offsets]  # three of (n, n, e), by query and key
    logits = g("MatMul", q, g.transpose(k, 0, 1, 2, 4, 3))
    of_query = (q, g.weight(r_q, "relative/q"))
    of_key = (k, g.weight(r_k * scale, "relative/k"))
    logits = g("Add", logits, g("Einsum", *of_query, equation="bhmqe,qke->bhmqk"))
    logits = g("Add", logits, g("Einsum", *of_key, equation="bhmke,qke->bhmqk"))
    weights = g("Softmax", logits, axis=-1)
    of_value = (weights, g.weight(r_v, "relative/v"))
    y = g("Add", g("MatMul", weights, v), g("Einsum", *of_value, equation="bhmqk,qke->bhmqe"))
    return g.reshape(g.transpose(y, 0, 2, 3, 1, 4), -1, m, n, c)
