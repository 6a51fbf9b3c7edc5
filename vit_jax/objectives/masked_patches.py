"""Masked patch prediction (Appendix B.1.2): a model is pre-trained on images without labels.

Half of the patch embeddings are corrupted, and the model predicts the original patch: by default
its mean colour, one of 512. What the paper leaves open is an argument of `masked_patches`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vit_jax import models
from vit_jax.errors import UserError
from vit_jax.models.layers import Array, Randomness, example_keys, split
from vit_jax.numerics import Numerics, bits as random_bits
from vit_jax.objectives.labels import reads_no_labels
from vit_jax.objectives.objective import Batch, Objective

Params = dict[str, Array]


class Corruption(NamedTuple):
    """The corruption of N patches in each of b images; all (b, N).

    corrupted: bool, patches to predict. masked: bool, those that get the learned embedding.
    source: int32, for the others the index of the patch whose embedding they get.
    """

    corrupted: Array
    masked: Array
    source: Array


class Target(NamedTuple):
    """What is predicted for a patch.

    outputs: outputs of the head per patch. of: (b, h, w, 3) uint8 to (b, N, ...) targets.
    loss: (outputs (b, N, outputs) float32, targets) -> (b, N). right: likewise, the fraction of
    correct predictions. picture: outputs to (b, N, rows, columns, 3) in [0, 255].
    """

    outputs: int
    of: Callable[[Array], Array]
    loss: Callable[[Array, Array], Array]
    right: Callable[[Array, Array], Array]
    picture: Callable[[Array], Array]


@reads_no_labels
def masked_patches(
    apply: Callable[..., Array],
    model: models.ViTConfig,
    numerics: Numerics,
    *,
    target: str = "mean_colour",
    corrupted: float = 0.5,
    masked: float = 0.8,
    replaced: float = 0.1,
    bits: int = 3,
    exactly: bool = False,
    replaced_from: str = "image",
    hidden_layers: int = 0,
) -> Objective:
    """The objective of self-supervised pre-training; labels are not read.

    Embeddings are corrupted before position embeddings are added: otherwise all masked patches of
    an image would get the same prediction.

    Args:
      target: "mean_colour", one of 2^(3 bits) classes per patch; "downsized", one for each cell of
        the patch resized to 4 x 4; "pixels", the mean squared error of pixels in [-1, 1].
      corrupted: fraction of the patches; 0.15, as for words in BERT, is slightly worse (B.1.2).
      masked: fraction of these that gets the learned embedding.
      replaced: fraction of these that gets the embedding of another patch. The rest stays.
      bits: per colour channel. Values 0 to 255 are divided into 2^bits equal bins, each channel
        separately: no statistics of the data are needed.
      exactly: the fraction holds in every image, to the nearest patch; otherwise each patch is
        drawn independently, as words in BERT.
      replaced_from: "image", another patch of the same image, so that examples are independent;
        or "batch", any patch of the next image in the micro-batch.
      hidden_layers: of the head, with GELU, each of the hidden size; 0 is a linear head.

    Raises:
      UserError: the architecture has no patches, a fraction is out of range, or an unknown name.
    """
    check(model, corrupted, masked, replaced, bits, replaced_from)
    wanted = target_of(target, model, bits)
    width = model.hidden_size

    def init(key: Array) -> Params:
        keys = jax.random.split(key, hidden_layers + 2)
        normal = jax.nn.initializers.normal(0.02)
        dense = jax.nn.initializers.lecun_normal()
        params = {"objective/mask": normal(keys[0], (width,), jnp.float32)}
        for i in range(hidden_layers + 1):
            outputs = wanted.outputs if i == hidden_layers else width
            params[f"objective/dense_{i}/kernel"] = dense(keys[i + 1], (width, outputs))
            params[f"objective/dense_{i}/bias"] = jnp.zeros((outputs,))
        return params

    def predict(params: Params, images: Array, corruption: Corruption, key: Randomness) -> Array:
        z = apply(params, models.normalise(images), method="patches")
        z = corrupt(z, params["objective/mask"], corruption, replaced_from)
        y = apply(params, z, key=key, method="encode")[:, -z.shape[1] :]  # not the class token
        for i in range(hidden_layers + 1):
            last = i == hidden_layers
            y = numerics.dense(
                y,
                params[f"objective/dense_{i}/kernel"],
                params[f"objective/dense_{i}/bias"],
                activation=None if last else jax.nn.gelu,
                out_dtype=jnp.float32 if last else None,
            )
        return y

    def over(keys: Array) -> Corruption:
        one = lambda key: draw(key, model, corrupted, masked, replaced, exactly)  # noqa: E731
        return Corruption(*jax.vmap(one)(keys))

    def loss(params: Params, batch: Batch, key: Randomness) -> Array:
        corruption = over(example_keys(key, len(batch["image"])))
        y = predict(params, batch["image"], corruption, split(key)[0])
        return mean_over(wanted.loss(y, wanted.of(batch["image"])), corruption.corrupted)

    def measure(params: Params, batch: Batch) -> dict[str, Array]:
        # The same corruption of an image in every evaluation, for any batch size.
        numbers = batch.get("index", jnp.arange(len(batch["image"])))
        corruption = over(random_bits.folded(jax.random.key(0), numbers))
        y = predict(params, batch["image"], corruption, None)
        targets = wanted.of(batch["image"])
        return {
            "loss": mean_over(wanted.loss(y, targets), corruption.corrupted),
            "right": mean_over(wanted.right(y, targets), corruption.corrupted),
        }

    def show(params: Params, images: Array) -> dict[str, Array]:
        corruption = over(jax.random.split(jax.random.key(0), len(images)))
        found = wanted.picture(predict(params, images, corruption, None))
        return {"original": images} | pictures(images, corruption, found, model.grid, replaced_from)

    return Objective(loss, measure, init, show)


def pictures(
    images: Array, corruption: Corruption, found: Array, grid: tuple[int, int], replaced_from: str
) -> dict[str, Array]:
    """Images (b, h, w, c) as the model sees them, masks in grey, and as it predicts them."""
    b, h, w, c = images.shape
    size = (h // grid[0], w // grid[1], c)

    def whole(patches: Array) -> Array:
        x = patches.reshape(b, *grid, *size).transpose(0, 1, 3, 2, 4, 5).reshape(b, h, w, c)
        return jnp.clip(jnp.round(x), 0, 255).astype(jnp.uint8)

    patches = cells(images.astype(jnp.float32), grid)
    seen = corrupt(patches, jnp.full(patches.shape[-1], 128.0), corruption, replaced_from)
    found = found.repeat(size[0] // found.shape[2], axis=2).repeat(
        size[1] // found.shape[3], axis=3
    )
    filled = jnp.where(corruption.corrupted[..., None], found.reshape(patches.shape), patches)
    return {"corrupted": whole(seen), "predicted": whole(filled)}


def check(
    model: models.ModelConfig,
    corrupted: float,
    masked: float,
    replaced: float,
    bits: int,
    replaced_from: str,
) -> None:
    """Raises UserError for options out of range."""
    where = "config.objective"
    if not isinstance(model, models.ViTConfig):
        raise UserError(
            f"{where}.name='masked_patches' corrupts patch embeddings, and {model.variant} has "
            "none; choose a ViT or a hybrid."
        )
    if not 0 < corrupted <= 1:
        raise UserError(f"{where}.corrupted={corrupted} must lie in (0, 1].")
    if min(masked, replaced) < 0 or masked + replaced > 1 + 1e-9:
        raise UserError(
            f"{where}.masked={masked} and {where}.replaced={replaced} are fractions of the "
            "corrupted patches; they must not be negative, nor exceed 1 in sum."
        )
    if not 1 <= bits <= 8:
        raise UserError(f"{where}.bits={bits} must be 1 to 8; a colour channel has 8.")
    if replaced_from not in ("image", "batch"):
        raise UserError(f"{where}.replaced_from={replaced_from!r} must be image or batch.")


def draw(
    key: Array,
    model: models.ViTConfig,
    corrupted: float,
    masked: float,
    replaced: float,
    exactly: bool,
) -> Corruption:
    """The corruption of one image, (N,) each."""
    n = model.grid[0] * model.grid[1]
    chosen_key, kind_key, other_key = jax.random.split(key, 3)
    chance = jax.random.uniform(chosen_key, (n,))
    if exactly:
        chosen = jnp.argsort(jnp.argsort(chance)) < round(corrupted * n)
    else:
        chosen = chance < corrupted
    kind = jax.random.uniform(kind_key, (n,))
    here = jnp.arange(n)
    other = (here + jax.random.randint(other_key, (n,), 1, max(n, 2))) % n
    moved = chosen & (kind >= masked) & (kind < masked + replaced)
    return Corruption(chosen, chosen & (kind < masked), jnp.where(moved, other, here))


def corrupt(z: Array, mask: Array, corruption: Corruption, replaced_from: str = "image") -> Array:
    """x_p E with corrupted embeddings: (b, N, d), `mask` (d,)."""
    others = jnp.roll(z, -1, axis=0) if replaced_from == "batch" else z
    moved = corruption.source != jnp.arange(z.shape[1])
    taken = jnp.take_along_axis(others, corruption.source[..., None], axis=1)
    z = jnp.where(moved[..., None], taken, z)
    return jnp.where(corruption.masked[..., None], mask.astype(z.dtype), z)


def mean_over(values: Array, where: Array) -> Array:
    """(b, N) to (b,): the mean over selected patches; 0 for an image with none."""
    where = where.astype(jnp.float32)
    return (values * where).sum(axis=1) / jnp.maximum(where.sum(axis=1), 1.0)


def target_of(name: str, model: models.ViTConfig, bits: int) -> Target:
    """The three targets of B.1.2 by name."""
    height, width = (
        size // count for size, count in zip(model.image_size, model.grid, strict=True)
    )
    if name == "mean_colour":
        return colours(model.grid, 1, bits)
    if name == "downsized":
        if height % 4 or width % 4:
            raise UserError(
                "config.objective.target='downsized' resizes patches to 4 x 4, which does not "
                f"divide {height} x {width} of {model.variant}; choose mean_colour or pixels."
            )
        return colours(model.grid, 4, bits)
    if name == "pixels":

        def squares(y: Array, wanted: Array) -> Array:
            return jnp.square(y - wanted).mean(axis=-1)

        return Target(
            height * width * model.channels,
            lambda images: cells(models.normalise(images), model.grid),
            squares,
            lambda y, wanted: (jnp.abs(y - wanted) < 1 / 2**bits).mean(axis=-1),  # half a bin
            lambda y: 127.5 * (y.reshape(*y.shape[:2], height, width, -1) + 1),
        )
    raise UserError(f"config.objective.target={name!r} must be mean_colour, downsized or pixels.")


def colours(grid: tuple[int, int], side: int, bits: int) -> Target:
    """Classes of the mean colours of side x side parts of every patch."""

    def of(images: Array) -> Array:
        b, h, w, c = images.shape
        rows, columns = grid[0] * side, grid[1] * side
        x = images.astype(jnp.float32).reshape(b, rows, h // rows, columns, w // columns, c)
        means = x.mean(axis=(2, 4)).reshape(b, grid[0], side, grid[1], side, c)
        means = means.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid[0] * grid[1], side * side, c)
        return colour_classes(means, bits)

    def logits(y: Array) -> Array:
        return y.reshape(*y.shape[:2], side * side, -1)

    def loss(y: Array, wanted: Array) -> Array:
        likely = jax.nn.log_softmax(logits(y))
        return -jnp.take_along_axis(likely, wanted[..., None], axis=-1)[..., 0].mean(axis=-1)

    def right(y: Array, wanted: Array) -> Array:
        return (logits(y).argmax(axis=-1) == wanted).mean(axis=-1)

    def picture(y: Array) -> Array:
        classes, levels = logits(y).argmax(axis=-1), 2**bits
        bins = jnp.stack([classes // levels**2, classes // levels % levels, classes % levels], -1)
        middle = (bins.astype(jnp.float32) + 0.5) * (256 / levels)
        return middle.reshape(*y.shape[:2], side, side, 3)

    return Target(side * side * 2 ** (3 * bits), of, loss, right, picture)


def colour_classes(colour: Array, bits: int) -> Array:
    """Colours (..., 3) in [0, 255] as integers in [0, 2^(3 bits)); red is most significant."""
    levels = 2**bits
    bins = jnp.minimum((colour * (levels / 256)).astype(jnp.int32), levels - 1)
    return (bins[..., 0] * levels + bins[..., 1]) * levels + bins[..., 2]


def cells(images: Array, grid: tuple[int, int]) -> Array:
    """(b, h, w, c) cut into the patches of a grid, (b, N, values)."""
    b, h, w, c = images.shape
    x = images.reshape(b, grid[0], h // grid[0], grid[1], w // grid[1], c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, grid[0] * grid[1], -1)
