"""The document of every page: a single self-contained file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np
import PIL.Image

from vit_jax import __version__

TEMPLATES = Path(__file__).with_name("templates")


def document(
    title: str, parts: Sequence[str], *, script: str = "", refresh: int | None = None
) -> str:
    """A whole page from pieces of HTML; its content policy forbids network access.

    Args:
      script: a file in `templates/`, e.g. "charts.js".
      refresh: seconds after which a browser reloads the page; None: never.
    """
    return Template(_read("page.html")).substitute(
        title=escape(title),
        refresh=f'<meta http-equiv="refresh" content="{refresh}">\n' if refresh else "",
        style=_read("style.css"),
        script=_read(script) if script else "",
        body="\n".join(parts),
    )


def header(kind: str, title: str, facts: str = "") -> str:
    """The header of every page. kind: of page. facts: HTML, a line or two below the title."""
    line = f"<p class=facts>{facts}</p>" if facts else ""
    return f"<header><p class=eyebrow>{escape(kind)}</p><h1>{escape(title)}</h1>{line}</header>"


def footer(origin: str) -> str:
    """The footer of every page. origin: the source of its data."""
    return f"<footer>vit_jax {escape(__version__)}, from {escape(origin)}</footer>"


def _read(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def facts_table(rows: Iterable[tuple[str, str]]) -> str:
    """(name, value) rows as a table."""
    cells = "".join(
        f"<tr><th scope=row>{escape(name)}</th><td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f"<div class=scroll><table><tbody>{cells}</tbody></table></div>"


def data_url(image: np.ndarray, size: int) -> str:
    """An image (h, w, 3) uint8 as a data: URL, at most `size` wide and four times as high."""
    picture = PIL.Image.fromarray(image)
    picture.thumbnail((size, 4 * size))  # a side has at least one pixel
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
