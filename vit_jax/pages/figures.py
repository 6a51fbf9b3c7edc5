"""Blank figures, drawn without a display."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

import numpy as np

from vit_jax.errors import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
else:
    Figure = object  # without importing it


def new_figure(rows: int, columns: int, width: float, height: float) -> tuple[Figure, np.ndarray]:
    """A figure without a window, and its axes (rows, columns)."""
    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, np.asarray(figure.subplots(rows, columns, squeeze=False))


def import_matplotlib() -> None:
    """Imports matplotlib, ignoring MPLBACKEND: a notebook's backend may not exist here."""
    if "matplotlib" in sys.modules:
        return
    given = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if given is not None:
        os.environ["MPLBACKEND"] = given
        with contextlib.suppress(ValueError):  # the user's choice, for their own figures
            matplotlib.rcParams["backend"] = given


def as_text(name: str, length: int = 0) -> str:
    """A name of others in a figure: on one line, at most `length` characters, and no formula."""
    name = printable(name)
    name = f"{name[: length - 1]}…" if 0 < length < len(name) else name
    return name.replace("$", r"\$")


def hide_axes(axes: Axes) -> None:
    """Removes ticks and frame."""
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
