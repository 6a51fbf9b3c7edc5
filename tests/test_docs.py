"""The documentation says what the code says: messages, the site's pages, code that runs."""

import ast
import functools
import re
from pathlib import Path

import pytest

import vit_jax
from vit_jax import models
from vit_jax.models import cost, variants

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


@functools.cache
def texts():
    """Every string of the package, with … for what is filled in."""

    def text(node):
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        if isinstance(node, ast.BinOp):
            return text(node.left) + text(node.right)
        return "…"

    found = set()
    for file in sorted((ROOT / "vit_jax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                found.add(text(node))
    return found


TROUBLES = re.findall(
    r"^\*\*`(.+)`\*\*$", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("message", TROUBLES, ids=lambda message: message[:40])
def test_a_message_that_is_explained_exists(message):
    parts = message.strip("…").split("…")

    def in_order(text):
        places = [text.find(part) for part in parts]
        return -1 not in places and places == sorted(places)

    assert any(in_order(text) for text in texts())


def test_messages_are_explained_once():
    assert len(TROUBLES) == len(set(TROUBLES)) >= 30


def test_the_example_of_a_model_size(monkeypatch):
    """The rows of CONTRIBUTING.md make a model of the size that is written there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("### A model size")[2]
    size, row = re.search(r'"M": (\(.*?\)),', text)[1], re.search(r'"M/16": (\(.*?\)),', text)[1]
    monkeypatch.setitem(variants.SIZES, "M", ast.literal_eval(size))
    monkeypatch.setitem(variants.VIT_ROWS, "M/16", ast.literal_eval(row))
    monkeypatch.setitem(variants.VARIANTS, "M/16", variants.VARIANTS["S/16"])
    config = models.get_config("M/16", num_classes=1000)
    assert f"{cost.num_params(config):,}" in text


def test_the_code_of_the_questions_runs():
    text = (DOCS / "questions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) >= 8
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/questions.md", "exec"), names)


def test_the_citation_names_this_version():
    assert f"\nversion: {vit_jax.__version__}\n" in (ROOT / "CITATION.cff").read_text("utf-8")
