"""The notebooks run from top to bottom, and are kept without outputs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

#: What the last cell that prints must have said; a model that learned nothing does not.
SAID = {
    "export_and_serve": "are correct",
    "fine_tune_your_folder": "test images are classified correctly",
    "look_inside": "parameters, (20, 20) pixels",
    "masked_patches": "masked first: ",
}


def cells(notebook, kind):
    read = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in read["cells"] if cell["cell_type"] == kind]


def test_there_are_notebooks():
    assert [notebook.stem for notebook in NOTEBOOKS] == sorted(SAID)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs_and_paths(notebook):
    for cell in cells(notebook, "code"):
        assert cell["outputs"] == [] and cell["execution_count"] is None
    assert "/home/" not in notebook.read_text() and "/work" not in notebook.read_text()


#: A duration in a notebook, and what it is where the notebook is only to run.
DURATION, SHORT = r'(total_(epochs|steps)"?(?: =|=|:) ?)[\d.]+', {"epochs": "3", "steps": "60"}


@pytest.mark.parametrize(
    "shortened",
    [pytest.param(True, marks=pytest.mark.slow), pytest.param(False, marks=pytest.mark.long)],
    ids=["shortened", "whole"],
)
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(notebook, shortened, tmp_path):
    source = "\n".join("".join(cell["source"]) + "\n" for cell in cells(notebook, "code"))
    if shortened:
        source, found = re.subn(DURATION, lambda m: m[1] + SHORT[m[2]], source)
        assert found
    script = tmp_path / f"{notebook.stem}.py"
    script.write_text(source)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg", "JAX_NUM_CPU_DEVICES": "1"}
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert SAID[notebook.stem] in done.stdout
