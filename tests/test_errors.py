"""The message of an error is one line, whatever it quotes."""

import sys

import pytest

from vit_jax import config as configuration
from vit_jax.bench import peers
from vit_jax.errors import EXTRA_OF, Preempted, UsageError, UserError, nearest, one_line
from vit_jax.evaluation import features
from vit_jax.interop import export
from vit_jax.training.setup import check_settings


@pytest.mark.parametrize(
    ("quoted", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("a\r\tb", r"a\r\tb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\u2028b", r"a\u2028b"),
        ("K\u00e4se \u732b", "K\u00e4se \u732b"),
    ],
)
def test_control_characters_are_shown_and_nothing_else_changes(quoted, shown):
    for kind in (UserError, UsageError, Preempted):
        assert str(kind(f"no image {quoted}.")) == f"no image {shown}."
    assert one_line(UserError(quoted)) == f"vit-jax: error: {shown}"


def test_of_other_errors_the_first_line_counts():
    assert one_line(OSError("a\x1b\nb")).startswith(r"vit-jax: error: OSError: a\x1b (--debug")
    assert one_line(OSError(13, "Denied", "/a")).startswith("vit-jax: error: /a: Denied (--debug")


@pytest.mark.parametrize(
    ("typed", "options", "meant"),
    [
        ("position.py", ["studies/resolution.py", "studies/position_embedding.py"], 1),
        ("resize", ["regime", "resize_crop"], 1),
        ("rate", ["grate_x", "schedule.learning_rate"], 1),
        ("cifar", ["cipher", "cifar10"], 1),
        ("tran", ["train", "transform_of_images"], 0),
        ("sed", ["used_sedan", "seed"], 1),
        ("B/17", ["B/16", "L/17x"], 0),
        ("ab", ["ab_and_more_of_it"], None),
    ],
)
def test_the_nearest_is_one_that_begins_so_or_differs_little(typed, options, meant):
    wanted = "" if meant is None else f" Did you mean {options[meant]!r}?"
    assert nearest(typed, options) == wanted


def exported(form, name, **options):
    return lambda place: export.export("no-checkpoint", place / name, form, **options)


def trained(place):
    config = configuration.default()
    config.wandb = True
    check_settings(config)


MISSING = {
    "onnx": (exported("onnx", "m.onnx"), "--format=onnx needs onnx and onnxruntime", "onnx"),
    "openvino": (exported("openvino", "m.xml"), "needs onnx and openvino", "onnx,openvino"),
    "savedmodel": (exported("savedmodel", "m"), "--format=savedmodel needs", "prepare"),
    "int8": (exported("stablehlo", "m", int8=True), "--int8 needs qwix", "int8"),
    "parquet": (lambda place: features.check(place / "f.parquet"), "Parquet needs pyarrow", "hf"),
    "wandb": (trained, "config.wandb needs wandb", "wandb"),
    **{
        f"bench {name}": (lambda place, name=name: peers.find(name), f"--peers={name} needs", "")
        for name in ("timm-compile", "transformers", "tf.data", "onnx", "savedmodel")
    },
}


@pytest.mark.parametrize("case", MISSING)
def test_a_missing_package_is_named_before_slow_work(case, tmp_path, monkeypatch):
    for package in EXTRA_OF:
        monkeypatch.setitem(sys.modules, package, None)
    ask, said, extras = MISSING[case]
    with pytest.raises(UserError) as error:
        ask(tmp_path)
    assert said in str(error.value) and f"pip install 'vit_jax[{extras}" in str(error.value)
    assert not any(tmp_path.iterdir())
