"""The page of `vit-jax inspect`: pictures, and a viewer of images, layers and heads."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vit_jax.files import write_text
from vit_jax.pages.document import data_url, document, facts_table, footer, header


class Viewer(NamedTuple):
    """Data of the viewer: images (h, w, 3) uint8, attention (b, layers, heads, gh, gw) and
    distance (layers, heads) in pixels.
    """

    names: list[str]
    images: Sequence[np.ndarray]
    attention: np.ndarray
    distance: np.ndarray
    caption: str


def write(
    file: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, str, Path]],
    notes: Sequence[str],
    viewer: Viewer | None,
) -> None:
    """Writes the page.

    Args:
      facts: (name, value) rows about the model.
      pictures: (heading, caption, PNG) in order.
      notes: missing pictures, with reasons.
      viewer: None: no viewer.
    """
    parts = [header("Inside a model", title), facts_table(facts)]
    parts += [f"<p class=facts>{escape(note)}</p>" for note in notes]
    if viewer is not None:
        parts.append(_viewer(viewer))
    for heading, caption, picture in pictures:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f"<h2>{escape(heading)}</h2><figure>"
            f'<img alt="{escape(heading)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    parts.append(footer("the checkpoint"))
    script = "viewer.js" if viewer is not None else ""
    write_text(file, document(title, parts, script=script))


def _viewer(viewer: Viewer) -> str:
    attention = np.asarray(viewer.attention, np.float32)
    largest = attention.max(axis=(-2, -1), keepdims=True)
    levels = np.round(255 * attention / np.maximum(largest, 1e-12)).astype(np.uint8)
    b, layers, heads, rows, columns = levels.shape
    facts = {
        "shape": [layers, heads, rows, columns],
        "distance": np.round(viewer.distance, 3).tolist(),
        "images": [
            {
                "name": viewer.names[i],
                "photo": data_url(viewer.images[i], 320),
                "attention": base64.b64encode(levels[i].tobytes()).decode(),
            }
            for i in range(b)
        ],
    }
    height, width = viewer.images[0].shape[:2]
    options = "".join(
        f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(viewer.names)
    )
    text = json.dumps(facts).replace("<", "\\u003c")
    return (
        f"<h2>Attention, head by head</h2><p class=facts>{escape(viewer.caption)} Each map is "
        "scaled by its own largest value. Tab reaches the controls, the arrow keys change them.</p>"
        '<div class="controls">'
        f'<label>image <select id="image">{options}</select></label>'
        f'<label>layer <input id="layer" type="range" min="0" max="{layers - 1}" value="0"></label>'
        f'<label>head <input id="head" type="range" min="0" max="{heads - 1}" value="0"></label>'
        f'</div><p id="said" role="status" aria-live="polite"></p>'
        f'<div class="views" style="--aspect: {width} / {height}"><img id="photo" alt="">'
        '<canvas id="map" role="img" aria-label="attention map"></canvas></div>'
        f'<script type="application/json" id="facts">{text}</script>'
    )
