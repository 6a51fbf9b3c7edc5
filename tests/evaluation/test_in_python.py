"""vit_jax.predict and vit_jax.variants."""

import json
import re

import numpy as np
import PIL.Image
import pytest

import vit_jax
from vit_jax import models
from vit_jax.cli import main
from vit_jax.errors import UserError


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model with random classifier, and three photographs of different kinds."""
    directory = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    model = vit_jax.create_model("debug", num_classes=3, image_size=16, patch_size=4)
    params = models.get_params(model)
    params["head/kernel"] = rng.normal(size=(64, 3)).astype(np.float32)
    labels = dict(labels=("ant", "bee", "cat"))
    config = models.replace(model.config, **labels)
    vit_jax.save_model(models.set_params(models.build(config), params), directory / "model")
    pixels = rng.integers(0, 256, (3, 20, 30, 3), np.uint8)
    for i, image in enumerate(pixels):
        PIL.Image.fromarray(image).save(directory / f"{i}.png")
    return directory, pixels


def test_predict_returns_what_the_command_prints(place, capsys):
    directory, pixels = place
    model = vit_jax.load_model(directory / "model")
    files = [str(directory / f"{i}.png") for i in range(3)]
    found = vit_jax.predict(model, [files[0], PIL.Image.open(files[1]), pixels[2]], top_k=2)
    assert (
        main(["predict", f"--checkpoint={directory / 'model'}", "--json", "--top_k=2", *files]) == 0
    )
    wanted = [json.loads(line)["predictions"] for line in capsys.readouterr().out.splitlines()]
    assert [[row["class"] for row in rows] for rows in found] == [
        [row["class"] for row in rows] for rows in wanted
    ]
    for rows, said in zip(found, wanted, strict=True):
        assert len(rows) == 2 and rows[0]["probability"] >= rows[1]["probability"] > 0
        assert rows[0]["probability"] == pytest.approx(said[0]["probability"], rel=1e-5)


def test_a_name_cannot_rewrite_the_terminal(place, tmp_path, capsys):
    directory, _ = place
    model = vit_jax.load_model(directory / "model")
    model.config = models.replace(model.config, labels=("a\nb", "\x1b[31mred", "cat"))
    vit_jax.save_model(model, tmp_path / "model")
    capsys.readouterr()
    assert main(["predict", f"--checkpoint={tmp_path / 'model'}", f"{directory}/0.png"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 4 and r"%  a\nb" in out and r"%  \x1b[31mred" in out


def test_multilabel_probabilities_are_independent(place):
    directory, pixels = place
    model = vit_jax.load_model(directory / "model")
    model.config = models.replace(model.config, multilabel=True, thresholds=(0.0, 1.0, 0.5))
    (rows,) = vit_jax.predict(model, pixels[0])
    by_class = {row["class"]: row for row in rows}
    assert by_class["ant"]["chosen"] and not by_class["bee"]["chosen"]
    logits = np.asarray(model(vit_jax.preprocess(model, pixels[0])))[0]
    assert by_class["cat"]["probability"] == pytest.approx(1 / (1 + np.exp(-logits[2])), rel=1e-5)


def test_invalid_arguments_are_refused(place):
    directory, pixels = place
    model = vit_jax.load_model(directory / "model")
    assert vit_jax.predict(model, []) == []
    assert len(vit_jax.predict(model, pixels[0], np.int64(2))[0]) == 2
    for given, top_k, text in (
        (model, 0, "top_k=0 must be"),
        (model, np.float32(1), r"top_k=np.float32\(1.0\) must be"),
        ("model", 5, "takes a model from load_model, but got a str"),
        (vit_jax.create_model("debug", num_classes=3, image_size=16, patch_size=4), 5, "all zeros"),
    ):
        with pytest.raises(UserError, match=text):
            vit_jax.predict(given, pixels, top_k)


def test_every_variant_has_a_name():
    names = vit_jax.variants()
    assert {"B/16", "H/14", "R50+B/16", "R152x4", "Axial-B/16", "b/32"} <= set(names)
    for name in names:
        models.get_config(name)


@pytest.mark.parametrize(
    ("images", "text"),
    [
        *(
            (np.zeros(shape, np.uint8), rf"{re.escape(str(shape))} is not one image \(h, w, 3\)")
            for shape in ((3, 20, 30), (20, 30, 2), (2, 20, 30), (20, 30, 5), (20, 3, 30))
        ),
        (np.zeros((2, 3, 20, 30), np.uint8), r"shape \(3, 20, 30\), .* channels come last"),
        (np.zeros((20, 30, 3)), r"number 0 has dtype float64, not uint8 \(0 to 255\)"),
        (np.zeros((2, 20, 30, 5), np.uint8), r"shape \(20, 30, 5\)"),
        ([np.zeros((20, 0, 3), np.uint8)], r"shape \(20, 0, 3\)"),
        ([b""], r"number 0 is empty"),
        ([bytearray(b"no image")], r"number 0 cannot be decoded \(not a known image format\)"),
        ([None], r"number 0 is a NoneType, not a path"),
        (np.zeros(3, np.uint8), r"number 0 is a uint8, not a path"),
        (["no.png"], r"no\.png cannot be read"),
        (None, "not an image or a list"),
    ],
)
def test_inputs_that_are_not_images_are_refused(place, images, text):
    model = vit_jax.load_model(place[0] / "model")
    for function in (vit_jax.predict, vit_jax.preprocess):
        with pytest.raises(UserError, match=text) as found:
            function(model, images)
        assert "\n" not in str(found.value)


def test_many_are_read_some_at_a_time_with_a_bar(place, capsys):
    directory, pixels = place
    model = vit_jax.load_model(directory / "model")
    many = [pixels[i % 3] for i in range(40)]
    found = vit_jax.predict(model, many, top_k=1, progress=True)
    assert len(found) == 40 and "images" in capsys.readouterr().err
    classes = [rows[0]["class"] for rows in found]
    assert (
        classes == [rows[0]["class"] for rows in vit_jax.predict(model, pixels)] * 13 + classes[:1]
    )
    with pytest.raises(UserError, match="number 36 has dtype"):
        vit_jax.predict(model, [*many[:36], np.zeros((4, 4, 3)), *many[:2]])
    assert vit_jax.predict(model, pixels[:0]) == []


def test_a_notebook_shows_the_report_in_a_frame(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.5}\n')
    page = vit_jax.report(tmp_path)
    assert repr(page) == f"Page('{tmp_path / 'report.html'}')"
    shown = page._repr_html_()
    assert shown.startswith('<iframe srcdoc="&lt;!') and 'sandbox="allow-scripts"' in shown
    assert shown.count('"') == 6  # what is inside has none of its own
    (tmp_path / "empty").mkdir()
    for place, text in (("none", "no working directory"), ("empty", "is not a run")):
        with pytest.raises(UserError, match=text):
            vit_jax.report(tmp_path / place)
    assert not any((tmp_path / "empty").iterdir())
