"""`vit_jax.report`: the page of a run, shown inline in a notebook."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from vit_jax.pages.compare import check_run
from vit_jax.pages.report import write_report


class Page:
    """A page in the file `path`; a notebook shows it in an iframe."""

    def __init__(self, path: Path, height: int):
        self.path, self.height = path, height

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r})"

    def _repr_html_(self) -> str:
        content = escape(self.path.read_text(encoding="utf-8"))
        style = f"width:100%;height:{self.height}px;border:0"
        return f'<iframe srcdoc="{content}" sandbox="allow-scripts" style="{style}"></iframe>'


def report(workdir: str | os.PathLike[str], *, height: int = 700) -> Page:
    """Writes `report.html` of the run in `workdir`, finished or not, and shows it in a notebook.

    Args:
      height: of the frame, in pixels.

    Raises:
      UserError: it is not the directory of a run, or a file of it is damaged.
    """
    return Page(write_report(check_run(workdir)), height)
