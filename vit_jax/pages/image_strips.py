"""Pictures of a model's input and of its predictions: files of a run, parts of its report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from vit_jax import files
from vit_jax.pages.document import data_url

FILE, FED = "objective.png", "fed.png"
#: Input images: per row, number of rows, and pixels per side.
ACROSS, DOWN, SIDE = 8, 2, 128


def write(rows: Mapping[str, np.ndarray], workdir: Path) -> None:
    """`WORKDIR/objective.png`: a row of pictures (b, h, w, 3) uint8 per name."""
    size = max(64, next(iter(rows.values())).shape[1])
    lines = []
    for pictures in rows.values():
        scaled = [
            np.asarray(PIL.Image.fromarray(one).resize((size, size), PIL.Image.Resampling.NEAREST))
            for one in pictures
        ]
        lines.append(np.concatenate([np.pad(x, ((2, 2), (2, 2), (0, 0))) for x in scaled], axis=1))
    information = PIL.PngImagePlugin.PngInfo()
    information.add_text("rows", ", ".join(rows))
    image = PIL.Image.fromarray(np.concatenate(lines))
    with files.replacing(workdir / FILE) as partial:
        image.save(partial, "PNG", pnginfo=information)


def write_fed(images: np.ndarray, labels: str, workdir: Path) -> None:
    """`WORKDIR/fed.png`: some images of a batch (b, h, w, 3) uint8, as input to the model.

    labels: of these images, in words.
    """
    shown = [PIL.Image.fromarray(one).resize((SIDE, SIDE)) for one in images[: ACROSS * DOWN]]
    down = -(-len(shown) // ACROSS)
    sheet = PIL.Image.new("RGB", (min(ACROSS, len(shown)) * (SIDE + 4), down * (SIDE + 4)))
    for i, one in enumerate(shown):
        sheet.paste(one, (i % ACROSS * (SIDE + 4) + 2, i // ACROSS * (SIDE + 4) + 2))
    information = PIL.PngImagePlugin.PngInfo()
    information.add_itxt("labels", labels)
    with files.replacing(workdir / FED) as partial:
        sheet.save(partial, "PNG", pnginfo=information)


def fed_section(workdir: Path) -> str:
    """The first input images of a run, if stored."""
    caption = "The first training images, cropped and augmented: {}."
    return _figure(workdir / FED, "labels", "Input of the model", caption)


def section(workdir: Path) -> str:
    """The pictures of an objective, if there are any."""
    caption = "Rows: {}; the first images of the evaluation."
    return _figure(workdir / FILE, "rows", "Predictions", caption)


def _figure(file: Path, key: str, heading: str, caption: str) -> str:
    """A picture with the caption in its metadata under `key`; "" if there is none."""
    if not file.exists():
        return ""
    with PIL.Image.open(file) as image:
        said, shown = escape(image.info.get(key, "")), np.asarray(image.convert("RGB"))
    return (
        f"<h2>{heading}</h2><figure><figcaption>{caption.format(said)}</figcaption>"
        f"<img alt='{said}' src='{data_url(shown, 1600)}'></figure>"
    )
