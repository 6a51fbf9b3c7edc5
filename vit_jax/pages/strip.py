"""Pictures of what an objective predicts, as a file of a run and as a part of its report."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.PngImagePlugin

from vit_jax.pages.document import data_url

FILE = "objective.png"


def write(rows: Mapping[str, np.ndarray], workdir: Path) -> None:
    """`WORKDIR/objective.png`: a row of pictures (b, h, w, 3) uint8 for each name."""
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
    image.save(workdir / FILE, pnginfo=information)


def section(workdir: Path) -> str:
    """The pictures of an objective, if there are any."""
    file = workdir / FILE
    if not file.exists():
        return ""
    with PIL.Image.open(file) as image:
        rows, shown = image.info.get("rows", ""), np.asarray(image.convert("RGB"))
    return (
        f"<h2>What was predicted</h2><figure><figcaption>Rows: {escape(rows)}; the first images of "
        f"the evaluation.</figcaption><img alt='{escape(rows)}' src='{data_url(shown, 1600)}'>"
        "</figure>"
    )
