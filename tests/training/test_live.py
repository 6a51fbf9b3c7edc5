"""The first images that a run is fed, as its page shows them."""

import numpy as np
import PIL.Image
import pytest

from vit_jax.pages import report
from vit_jax.training import live

NAMES = ("ant", "bee")


def batch(labels, count=20, seed=0):
    images = np.random.default_rng(seed).integers(0, 256, (count, 128, 128, 3), np.uint8)
    return {"image": images, "label": np.asarray(labels)}


def test_the_first_images_are_kept_and_shown(tmp_path):
    given = batch([0, 1] * 10)
    live.fed(tmp_path, NAMES, given)
    with PIL.Image.open(tmp_path / "fed.png") as image:
        pixels = np.asarray(image)
        assert image.info["labels"] == ", ".join(["ant, bee"] * 8)
    assert pixels.shape == (2 * 132, 8 * 132, 3)
    assert np.array_equal(pixels[2:130, 2:130], given["image"][0])
    assert np.array_equal(pixels[134:262, 134:262], given["image"][9])
    html = report.render(tmp_path)
    assert "Input of the model" in html and "ant, bee, ant" in html
    before = (tmp_path / "fed.png").read_bytes()
    live.fed(tmp_path, NAMES, batch([1] * 20, seed=1))  # a run that goes on
    assert (tmp_path / "fed.png").read_bytes() == before


@pytest.mark.parametrize(
    "labels, words",
    [([1, -1, 0], "bee, no label, ant"), ([[1, 1], [0, 0], [0, 1]], "ant and bee, no label, bee")],
)
def test_labels_of_all_kinds(tmp_path, labels, words):
    live.fed(tmp_path, NAMES, batch(labels, count=3))
    with PIL.Image.open(tmp_path / "fed.png") as image:
        assert image.info["labels"] == words and image.size == (3 * 132, 132)


@pytest.mark.parametrize("channels, shown", [(1, True), (2, False), (6, False)])
def test_grey_is_shown_and_other_channels_are_not(tmp_path, channels, shown, capsys):
    given = batch([0] * 3, count=3)
    given["image"] = np.repeat(given["image"][..., :1], channels, axis=-1)
    live.fed(tmp_path, NAMES, given)
    assert (tmp_path / "fed.png").exists() == shown and not capsys.readouterr().out
    if shown:
        with PIL.Image.open(tmp_path / "fed.png") as image:
            assert np.array_equal(np.asarray(image)[2:130, 2:130], given["image"][0].repeat(3, -1))


def test_unwritable_pages_do_not_end_the_run(tmp_path, capsys, monkeypatch):
    live.fed(tmp_path / "none", NAMES, batch([0] * 3, count=3))
    assert "fed.png is not written" in capsys.readouterr().out
    assert "Input of the model" not in report.render(tmp_path)

    def fails(*args):
        raise AssertionError  # without a text

    monkeypatch.setattr(live.image_strips, "write_fed", fails)
    live.fed(tmp_path, NAMES, batch([0] * 3, count=3))
    assert "fed.png is not written (AssertionError)" in capsys.readouterr().out
