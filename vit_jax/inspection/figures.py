"""Figures for notebooks and `vit-jax inspect`: each returns a matplotlib figure and its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vit_jax import models
from vit_jax.errors import counted
from vit_jax.inspection import embeddings
from vit_jax.pages.figures import Figure, as_text, hide_axes, new_figure

Data = dict[str, np.ndarray]


def filters(config: models.ModelConfig, params: models.Params) -> tuple[Figure, Data]:
    """Figure 7, left: principal components of the embedding filters."""
    kernels = embeddings.embedding_filters(config, params)
    images, share = embeddings.filter_components(kernels)
    columns = 7
    rows = -(-len(images) // columns)
    figure, axes = new_figure(rows, columns, 5.6, 0.85 * rows + 0.4)
    for i, cell in enumerate(axes.flat):
        hide_axes(cell)
        if i < len(images):
            image = images[i]
            cell.imshow(image if image.shape[-1] == 3 else image.mean(axis=-1), cmap="gray")
    figure.suptitle(f"{config.variant}: first {len(images)} components of the embedding filters")
    return figure, {"components": images, "variance_share": share}


def positions(config: models.ModelConfig, params: models.Params) -> tuple[Figure, Data]:
    """Figure 7, centre, and Figure 10: cosine similarity of position embeddings, one tile each."""
    similarity = embeddings.position_similarity(config, params)
    rows, columns = config.grid
    shown_rows = np.unique(np.linspace(0, rows - 1, min(rows, 14)).round().astype(int))
    shown_columns = np.unique(np.linspace(0, columns - 1, min(columns, 14)).round().astype(int))
    figure, axes = new_figure(
        len(shown_rows), len(shown_columns), 6.4, 6.4 * len(shown_rows) / len(shown_columns)
    )
    for i, row in enumerate(shown_rows):
        for j, column in enumerate(shown_columns):
            hide_axes(axes[i, j])
            image = axes[i, j].imshow(similarity[row, column], vmin=-1, vmax=1, cmap="viridis")
    figure.colorbar(image, ax=axes.ravel().tolist(), shrink=0.6, label="cosine similarity")
    figure.suptitle(f"{config.variant}: position embeddings against all others")
    return figure, {"similarity": similarity}


def distance(
    config: models.ModelConfig, distances: np.ndarray, num_images: int
) -> tuple[Figure, Data]:
    """Figure 7, right, and Figure 11: mean attention distance, one dot per head and layer."""
    figure, axes = new_figure(1, 1, 5.6, 4.2)
    cell = axes[0, 0]
    layers, heads = distances.shape
    for head in range(heads):
        cell.scatter(range(layers), distances[:, head], s=16, color="#2b6cb0", alpha=0.75)
    cell.set_xlabel("layer")
    cell.xaxis.get_major_locator().set_params(integer=True)
    cell.set_ylabel("mean attention distance (pixels)")
    cell.set_ylim(0, None)
    cell.set_title(f"{config.variant}: {heads} heads, mean of {counted(num_images, 'image')}")
    return figure, {"distance": distances}


def overlay(image: np.ndarray, heat: np.ndarray, blur: float) -> np.ndarray:
    """An image (h, w, 3) uint8 masked by a coarse map (gh, gw), as in D.8.

    Divided by the largest, resized by Lanczos, blurred, stretched to [0, 1], and used as a mask.
    """
    import PIL.Image
    import PIL.ImageFilter

    scaled = np.asarray(heat, np.float32) / max(float(np.max(heat)), 1e-12)
    mask = PIL.Image.fromarray(scaled).resize(
        (image.shape[1], image.shape[0]), PIL.Image.Resampling.LANCZOS
    )
    levels = np.clip(np.asarray(mask), 0, 1) * 255
    soft = PIL.Image.fromarray(levels.astype(np.uint8)).filter(PIL.ImageFilter.GaussianBlur(blur))
    field = np.asarray(soft, np.float32)
    field = (field - field.min()) / max(float(field.max() - field.min()), 1e-12)
    return (image * field[..., None]).astype(np.uint8)


def rollout(
    config: models.ModelConfig,
    images: Sequence[np.ndarray],
    maps: np.ndarray,
    titles: Sequence[str] = (),
) -> tuple[Figure, Data]:
    """Figures 6 and 14: input and attention side by side."""
    pairs = 4
    rows = -(-len(images) // pairs)
    figure, axes = new_figure(rows, 2 * pairs, 2.0 * pairs, 1.25 * rows + 0.4)
    for cell in axes.flat:
        hide_axes(cell)
    blur = getattr(config, "stride", (16, 16))[0] / 2
    for i, image in enumerate(images):
        row, pair = divmod(i, pairs)
        axes[row, 2 * pair].imshow(image)
        axes[row, 2 * pair + 1].imshow(overlay(image, maps[i], blur))
        if i < len(titles):
            axes[row, 2 * pair].set_title(as_text(titles[i], 18), fontsize=7)
    figure.suptitle(f"{config.variant}: attention rollout")
    return figure, {"rollout": maps}


def heads(config: models.ModelConfig, image: np.ndarray, rows: np.ndarray) -> tuple[Figure, Data]:
    """Attention of every head and layer in one image: (layers, heads, gh, gw)."""
    layers, count = rows.shape[:2]
    figure, axes = new_figure(layers, count + 1, 0.55 * (count + 1), 0.55 * layers + 0.4)
    for layer in range(layers):
        for cell in axes[layer]:
            hide_axes(cell)
        axes[layer, 0].imshow(image)
        for head in range(count):
            axes[layer, head + 1].imshow(rows[layer, head], cmap="magma")
    figure.suptitle(f"{config.variant}: layers down, heads across", fontsize=9)
    return figure, {"attention": rows}


def occlusion(image: np.ndarray, drops: np.ndarray, label: str) -> tuple[Figure, Data]:
    """The image, and the drop in its class's probability where it is occluded."""
    figure, axes = new_figure(1, 2, 5.6, 2.9)
    for cell in axes.flat:
        hide_axes(cell)
    axes[0, 0].imshow(image)
    largest = max(float(np.abs(drops).max()), 1e-6)
    shown = axes[0, 1].imshow(drops, cmap="RdBu_r", vmin=-largest, vmax=largest)
    figure.colorbar(shown, ax=axes[0, 1], shrink=0.8, label="drop in probability")
    axes[0, 0].set_title(as_text(label, 40), fontsize=9)
    return figure, {"drop": drops}


def similar(
    images: Sequence[np.ndarray], neighbours: np.ndarray, similarities: np.ndarray
) -> tuple[Figure, Data]:
    """Each image and those whose features are most like its own."""
    count = neighbours.shape[1]
    figure, axes = new_figure(len(images), count + 1, 1.2 * (count + 1), 1.25 * len(images))
    for i, image in enumerate(images):
        for cell in axes[i]:
            hide_axes(cell)
        axes[i, 0].imshow(image)
        for j in range(count):
            axes[i, j + 1].imshow(images[neighbours[i, j]])
            axes[i, j + 1].set_title(f"{similarities[i, j]:.2f}", fontsize=7)
    figure.suptitle("most similar images by the cosine of their features", fontsize=9)
    return figure, {"neighbours": neighbours, "similarities": similarities}


def curves(records: Sequence[Mapping[str, float]]) -> tuple[Figure, Data]:
    """Loss, accuracy and learning rate of a run over its steps."""
    names = ("train/loss", "eval/accuracy", "train/learning_rate")
    present = [name for name in names if any(name in record for record in records)]
    figure, axes = new_figure(1, len(present), 3.6 * len(present), 2.8)
    data: Data = {}
    for cell, name in zip(axes[0], present, strict=True):
        points = np.array([(r["step"], r[name]) for r in records if name in r], np.float64)
        cell.plot(points[:, 0], points[:, 1], color="#2b6cb0", linewidth=1.2)
        cell.set_title(name, fontsize=9)
        cell.set_xlabel("step")
        data[name.replace("/", "_")] = points
    return figure, data
