"""The digits are scikit-learn's own, without importing it."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from vit_jax import data
from vit_jax.data.kinds import digits
from vit_jax.errors import UserError


def test_digits_equal_those_of_scikit_learn():
    wanted = load_digits()
    images = (wanted.images * 255 / 16).round().astype(np.uint8)
    is_test = np.arange(len(images)) % 5 == 0
    for split, rows in (("train", ~is_test), ("test", is_test)):
        source = data.open_source(f"digits[{split}]")
        assert len(source) == rows.sum()
        np.testing.assert_array_equal(source.images, np.repeat(images[rows][..., None], 3, axis=-1))
        np.testing.assert_array_equal(source.labels, wanted.target[rows])


def test_scikit_learn_is_not_imported():
    code = "import sys; from vit_jax import data; data.open_source('digits[test]'); "
    code += "sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_without_scikit_learn_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits.read_table()
