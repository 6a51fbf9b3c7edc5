"""`vit-jax inspect`: all pictures of a checkpoint, in one directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from vit_jax import data, files, models
from vit_jax.data.photos import read_file
from vit_jax.errors import UserError
from vit_jax.evaluation import knn
from vit_jax.evaluation.predict import find_images
from vit_jax.inspection import figures, page, walk
from vit_jax.interop import load
from vit_jax.pages.figures import Figure
from vit_jax.runtime.logbook import FILE_NAME, read_metrics

MAX_IMAGES = 16
SIMILAR = 4


def inspect(
    checkpoint: str,
    out: str | Path,
    *,
    images: Sequence[str] = (),
    compare: Sequence[str] = (),
    occlusion: bool = False,
    max_images: int = MAX_IMAGES,
    say: Callable[[str], None] = print,
) -> Path:
    """Draws all pictures of a checkpoint; returns the page.

    Args:
      images: files and folders; without any, pictures that need images are skipped with a note.
      compare: other checkpoints whose position embeddings are also drawn (Figure 10).
      occlusion: also occlude parts of every image, about 50 forward passes each.

    Raises:
      UserError: an unreadable checkpoint or image, or `out` is a file or has a page.
    """
    out = Path(out)
    files.check_directory(out)
    files.check_new(out / "index.html")
    for source in compare:
        load.check_named(source)
    config, params = load.read(checkpoint)
    config = models.replace(config, dtype="float32")
    found = find_images(images)[:max_images] if images else []
    pixels = read_images(config, found)
    out.mkdir(parents=True, exist_ok=True)
    pictures: list[tuple[str, str, Path]] = []
    notes: list[str] = []

    def draw(
        name: str, heading: str, caption: str, make: Callable[[], tuple[Figure, dict]]
    ) -> None:
        try:
            figure, numbers = make()
        except UserError as error:
            notes.append(str(error))
            return
        with files.replacing(out / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)
        with files.replacing(out / f"{name}.npz") as partial, open(partial, "wb") as written:
            np.savez(written, **numbers)
        pictures.append((heading, caption, out / f"{name}.png"))

    draw(
        "filters",
        "Embedding filters (Figure 7, left)",
        "Principal components of the filters that are applied to pixels.",
        lambda: figures.filters(config, params),
    )
    for i, source in enumerate([checkpoint, *compare]):
        other = (config, params) if i == 0 else load.read(source)
        draw(
            "positions" + (f"_{i}" if i else ""),
            "Position embeddings (Figure 7, centre" + (", Figure 10)" if compare else ")"),
            f"{source}: each tile is one patch against all others.",
            lambda other=other: figures.positions(*other),  # type: ignore[misc]
        )
    viewer = None
    if found:
        viewer = draw_images(config, params, found, pixels, draw, notes)
        if occlusion:
            draw_occlusion(config, params, found, pixels, draw)
    else:
        notes.append(
            "Attention distance, rollout and heads need images: give files or folders (--images)."
        )
    metrics = Path(checkpoint) / FILE_NAME
    if metrics.exists():
        draw("curves", "Training", "", lambda: figures.curves(read_metrics(metrics)))
    facts = [
        ("checkpoint", checkpoint),
        ("model", f"{config.variant}, {sum(np.size(p) for p in params.values()):,} parameters"),
        ("image size", " x ".join(map(str, config.image_size))),
        ("classes", f"{config.num_classes}"),
        ("images", f"{len(found)}"),
        *evaluation_facts(Path(checkpoint)),
    ]
    for note in notes:
        say(note)
    page.write(
        out / "index.html",
        title=f"Inside {config.variant}",
        facts=facts,
        pictures=pictures,
        notes=notes,
        viewer=viewer,
    )
    return out / "index.html"


def read_images(config: models.ModelConfig, files: Sequence[Path | str]) -> np.ndarray:
    """Images as the model sees them, (b, h, w, c) uint8."""
    if not files:
        return np.zeros((0, *config.image_size, config.channels), np.uint8)
    transform = data.evaluation_transform(
        config.image_size, config.preprocessing, channels=config.channels
    )
    return np.stack([read_file(transform, file) for file in files])


def pictures_of(pixels: np.ndarray) -> list[np.ndarray]:
    """Images (b, h, w, c) as pictures (h, w, 3) to look at."""
    return [data.picture(image, "") for image in pixels]


def evaluation_facts(workdir: Path) -> list[tuple[str, str]]:
    """Accuracies, or mean average precisions, in a workdir's `evaluation.json`."""
    found = files.read_json(workdir / "evaluation.json") if workdir.is_dir() else None
    rows = []
    for suite, record in (found or {}).items():
        for name in ("accuracy", "mAP") if isinstance(record, dict) else ():
            if name in record:
                text = f"{100 * record[name]:.2f}% on {record.get('data', '?')}"
                rows.append((f"{name} ({suite})", text))
    return rows


def draw_images(config, params, files, pixels, draw, notes) -> page.Viewer | None:
    """Pictures that need images: distance, rollout, heads, neighbours; returns the viewer."""
    scaled, shown = np.asarray(models.normalise(pixels)), pictures_of(pixels)
    names = [Path(file).name for file in files]
    viewer = None
    try:
        looked = walk.attention_stats(config, params, scaled)
    except UserError as error:
        notes.append(str(error))
    else:
        draw(
            "attention_distance",
            "Attention distance (Figure 7, right; Figure 11)",
            "Mean distance in pixels that each head attends over.",
            lambda: figures.distance(config, looked.distance, len(files)),
        )
        if looked.rollout is not None:
            draw(
                "rollout",
                "Attention rollout (Figures 6 and 14)",
                "Attention of the class token to the patches, through all layers.",
                lambda: figures.rollout(config, shown, looked.rollout, names),
            )
        else:
            notes.append(
                f"Rollout reads the row of the class token, and this {config.variant} has none; "
                "the heads below show what all patches attend to on average."
            )
        draw(
            "heads",
            "All heads of the first image",
            "Layers down, heads across.",
            lambda: figures.heads(config, shown[0], looked.rows[0]),
        )
        who = "the class token attends" if looked.rollout is not None else "all patches attend"
        viewer = page.Viewer(names, shown, looked.rows, looked.distance, f"What {who} to.")
    if len(files) > 2:
        _, apply = models.as_functions(config)
        features = jax.jit(lambda p, x: apply(p, x, return_intermediates=True)[1]["pre_logits"])
        found = np.asarray(features(params, scaled))
        neighbours, similarities = knn.nearest_neighbours(
            found, found, min(SIMILAR + 1, len(files))
        )
        draw(
            "similar",
            "Most similar images",
            "By the cosine of their features.",
            lambda: figures.similar(shown, neighbours[:, 1:], similarities[:, 1:]),
        )
    return viewer


def draw_occlusion(config, params, files, pixels, draw) -> None:
    """An occlusion map per image: where its class depends on the image."""
    scaled, shown = np.asarray(models.normalise(pixels)), pictures_of(pixels)
    for i, file in enumerate(files):
        drops, label = walk.occlusion(config, params, scaled[i])
        name = config.labels[label] if config.labels else str(label)
        draw(
            f"occlusion_{i}",
            f"Occlusion: {Path(file).name}",
            "Drop in probability where a part is covered with grey.",
            lambda i=i, drops=drops, name=name: figures.occlusion(shown[i], drops, name),
        )
