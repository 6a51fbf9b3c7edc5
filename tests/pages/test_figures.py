"""Figures need no display, and no backend of whoever started the program."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vit_jax.evaluation import figures
from vit_jax.pages.document import data_url
from vit_jax.pages.figures import as_text

DRAW = """
from vit_jax.pages.figures import new_figure
figure, axes = new_figure(1, 2, 4, 2)
axes[0, 0].plot([0, 1])
figure.savefig("figure.png")
import os
print(os.environ.get("MPLBACKEND"))
"""


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", "nbagg", "no such backend", "", None]
)
def test_the_backend_of_a_notebook_does_not_matter(backend, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "MPLBACKEND"}
    if backend is not None:
        environment["MPLBACKEND"] = backend
    ended = subprocess.run(
        [sys.executable, "-c", DRAW], env=environment, cwd=tmp_path, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "figure.png").stat().st_size > 1000
    assert ended.stdout.strip() == str(backend).strip()


@pytest.mark.parametrize("shape", [(1, 1000), (66_000, 8), (30, 20)])
def test_a_picture_of_any_shape_fits_a_page(shape):
    assert data_url(np.zeros((*shape, 3), np.uint8), 160).startswith("data:image/jpeg;base64,")


def test_names_of_classes_are_text():
    """No formula, which may not even parse, and one line."""
    names = [r"$\frac$", "a\nb", "costs $5"]
    figure = figures.confusion(np.eye(3, dtype=int), names)
    figure.canvas.draw()
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == [r"\$\frac\$", r"a\nb", r"costs \$5"]
    assert as_text("abcdef", 4) == "abc…"
