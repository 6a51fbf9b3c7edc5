"""`evaluation.html`: the numbers, pictures and tables of a directory, and the paper's row."""

import json
import re

import numpy as np
import PIL.Image
import pytest

from vit_jax.errors import UserError
from vit_jax.evaluation.result import Result, write
from vit_jax.pages import evaluation as page

RECORD = {
    "checkpoint": "B/16-imagenet", "variant": "B/16", "image_size": [384, 384],
    "data": "tfds:imagenet2012[validation]", "accuracy": 0.8453, "top5_accuracy": 0.97,
    "loss": 0.6, "calibration_error": 0.0123, "num_examples": 50_000,
}  # fmt: skip


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"classification": RECORD}))
    PIL.Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / "evaluation_confusion.png")
    (tmp_path / "evaluation_classification_per_class.csv").write_text("label\n")
    return tmp_path


def test_contents_of_the_page(directory):
    html = page.write(directory).read_text()
    for text in ("84.53%", "1.23%", "50,000", "Confusion matrix"):
        assert text in html
    assert 'href="evaluation_classification_per_class.csv"' in html
    assert html.count("data:image/png;base64,") == 1
    # Pre-trained on ImageNet-21k, as its name says: one row of Table 5.
    assert "<td>83.97%</td><td>+0.56</td><td>Table 5, B/16</td><td>87.54±0.02</td>" in html
    assert not re.search(r'(src|href)="(https?:)?//', html)


def test_rows_of_results_have_a_line_each(directory):
    rows = [
        {"data": "digits", "shots": k, "accuracy": k / 100, "std": 0.001, "seeds": 3, "l2": 1024.0}
        for k in (5, 25)
    ]
    (directory / "evaluation.json").write_text(json.dumps({"fewshot": {"results": rows}}))
    html = page.render(directory)
    assert "<th scope=row>digits, shots 5, seeds 3, l2 1024</th><td>5.00% ± 0.10</td>" in html
    assert "25.00% ± 0.10" in html and "Beside the paper" not in html


def test_names_are_escaped(directory):
    bad = {"<b>": {"checkpoint": "<i>x", "data": "<u>", "accuracy": 0.5}}
    (directory / "evaluation.json").write_text(json.dumps(bad))
    html = page.render(directory)
    assert not re.search(r"<b>|<i>|<u>", html)


def test_each_protocol_rewrites_the_page(tmp_path):
    for name in ("classification", "knn"):
        write(tmp_path, name, {"accuracy": 0.25}, Result({}, [], {}))
    html = (tmp_path / "evaluation.html").read_text()
    assert "Classification" in html and "Nearest neighbours" in html


def test_without_an_evaluation_there_is_no_page(tmp_path):
    with pytest.raises(UserError, match=r"has no evaluation\.json"):
        page.write(tmp_path)
    assert not (tmp_path / "evaluation.html").exists()
