"""The page of `vit-jax inspect`: pictures, and a viewer to step through images, layers and heads.

Everything is inside the file; it forbids itself the network.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

STYLE = """
:root { color-scheme: light dark; --ink: #1a202c; --paper: #fff; --line: #cbd5e0; --soft: #4a5568 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e2e8f0; --paper: #171c24; --line: #3b4656; --soft: #a0aec0 }
}
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2.5rem }
p, figcaption { color: var(--soft); max-width: 40rem }
figure { margin: 0 } figure img { max-width: 100%; height: auto; background: #fff;
  border: 1px solid var(--line); border-radius: 4px }
table { border-collapse: collapse } td, th { border-bottom: 1px solid var(--line);
  padding: .25rem .75rem .25rem 0; text-align: left }
.controls { display: flex; flex-wrap: wrap; gap: .75rem 1.25rem; margin: .75rem 0 }
.controls label { display: flex; align-items: center; gap: .5rem }
select, input { font: inherit; color: inherit; background: var(--paper); max-width: 60vw }
:focus-visible { outline: 3px solid #3182ce; outline-offset: 2px }
.views { display: flex; flex-wrap: wrap; gap: .75rem }
.views canvas, .views img { width: min(20rem, 100%); aspect-ratio: var(--aspect); display: block;
  border: 1px solid var(--line); border-radius: 4px; image-rendering: pixelated }
"""

SCRIPT = """
const facts = JSON.parse(document.getElementById("facts").textContent);
const pick = id => document.getElementById(id);
const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0));
const maps = facts.images.map(image => bytes(image.attention));
const [layers, heads, rows, columns] = facts.shape;
function draw() {
  const i = +pick("image").value, layer = +pick("layer").value, head = +pick("head").value;
  pick("photo").src = facts.images[i].photo;
  pick("photo").alt = facts.images[i].name;
  const size = rows * columns, start = (layer * heads + head) * size;
  const canvas = pick("map"), context = canvas.getContext("2d");
  canvas.width = columns; canvas.height = rows;
  const pixels = context.createImageData(columns, rows);
  for (let p = 0; p < size; p++) {
    const v = maps[i][start + p] / 255;
    const blue = 0.25 + 0.5 * Math.abs(v - 0.4);
    pixels.data.set([255 * Math.min(1, 1.6 * v), 255 * v * v, 255 * blue, 255], 4 * p);
  }
  context.putImageData(pixels, 0, 0);
  pick("said").textContent = `${facts.images[i].name}, layer ${layer}, head ${head}: mean distance `
    + `${facts.distance[layer][head].toFixed(1)} pixels`;
}
for (const id of ["image", "layer", "head"]) pick(id).addEventListener("input", draw);
draw();
"""


def data_url(image: np.ndarray, size: int | None = None) -> str:
    """An image (h, w, 3) uint8 as a data: address, at most `size` pixels wide."""
    picture = PIL.Image.fromarray(image)
    if size and picture.width > size:
        picture = picture.resize((size, round(picture.height * size / picture.width)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def write(
    file: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    pictures: Sequence[tuple[str, str, Path]],
    notes: Sequence[str],
    viewer: Mapping[str, Any] | None,
) -> None:
    """Writes the page.

    Args:
      facts: (name, value) rows about the model.
      pictures: (heading, caption, PNG) in order.
      notes: what could not be drawn, and why.
      viewer: names, images (b, h, w, 3) uint8, attention (b, layers, heads, gh, gw) and distance
        (layers, heads) to step through; None leaves the viewer out.
    """
    parts = [f"<h1>{escape(title)}</h1>", "<table>"]
    parts += [f"<tr><th>{escape(a)}</th><td>{escape(b)}</td></tr>" for a, b in facts]
    parts.append("</table>")
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    if viewer is not None:
        parts.append(_viewer(viewer))
    for heading, caption, picture in pictures:
        encoded = base64.b64encode(picture.read_bytes()).decode()
        parts.append(
            f"<h2>{escape(heading)}</h2><figure>"
            f'<img alt="{escape(heading)}" src="data:image/png;base64,{encoded}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    file.write_text(document(title, parts), encoding="utf-8")


def document(title: str, parts: Sequence[str]) -> str:
    """A whole page of these pieces of HTML; it may fetch nothing."""
    inline = "'unsafe-inline'"
    policy = f"default-src 'none'; img-src data:; style-src {inline}; script-src {inline}"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>"
        + "\n".join(parts)
        + "</main></body></html>\n"
    )


def _viewer(viewer: Mapping[str, Any]) -> str:
    attention = np.asarray(viewer["attention"], np.float32)
    largest = attention.max(axis=(-2, -1), keepdims=True)
    levels = np.round(255 * attention / np.maximum(largest, 1e-12)).astype(np.uint8)
    b, layers, heads, rows, columns = levels.shape
    facts = {
        "shape": [layers, heads, rows, columns],
        "distance": np.round(viewer["distance"], 3).tolist(),
        "images": [
            {
                "name": viewer["names"][i],
                "photo": data_url(viewer["images"][i], 320),
                "attention": base64.b64encode(levels[i].tobytes()).decode(),
            }
            for i in range(b)
        ],
    }
    height, width = viewer["images"][0].shape[:2]
    options = "".join(
        f'<option value="{i}">{escape(name)}</option>' for i, name in enumerate(viewer["names"])
    )
    text = json.dumps(facts).replace("<", "\\u003c")
    return (
        f"<h2>Attention, head by head</h2><p>{escape(viewer['caption'])} Each map is scaled by its "
        "own largest value. Tab reaches the controls, the arrow keys change them.</p>"
        '<div class="controls">'
        f'<label>image <select id="image">{options}</select></label>'
        f'<label>layer <input id="layer" type="range" min="0" max="{layers - 1}" value="0"></label>'
        f'<label>head <input id="head" type="range" min="0" max="{heads - 1}" value="0"></label>'
        f'</div><p id="said" role="status" aria-live="polite"></p>'
        f'<div class="views" style="--aspect: {width} / {height}"><img id="photo" alt="">'
        '<canvas id="map" role="img" aria-label="attention map"></canvas></div>'
        f'<script type="application/json" id="facts">{text}</script><script>{SCRIPT}</script>'
    )
