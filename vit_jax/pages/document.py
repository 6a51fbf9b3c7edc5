"""The page of `vit-jax inspect`: pictures, and a viewer to step through images, layers and heads.

Everything is inside the file; it forbids itself the network.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

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


def data_url(image: np.ndarray, size: int | None = None) -> str:
    """An image (h, w, 3) uint8 as a data: address, at most `size` pixels wide."""
    picture = PIL.Image.fromarray(image)
    if size and picture.width > size:
        picture = picture.resize((size, round(picture.height * size / picture.width)))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


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
