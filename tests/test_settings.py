"""The table of settings: every row refuses what cannot be, and speaks of what there is."""

import inspect
import math
from pathlib import Path

import pytest

from vit_jax import config as configuration, settings
from vit_jax.data import transforms
from vit_jax.errors import UserError
from vit_jax.models import vit_config
from vit_jax.numerics import remat
from vit_jax.objectives import losses
from vit_jax.settings import SETTINGS
from vit_jax.training import optim

ROOT = Path(__file__).parents[1]
FUNCTIONS = {
    "augment": transforms.TRAIN,
    "eval_preprocess": transforms.EVAL,
    "loss": losses.LOSSES,
    "optimizer": optim.OPTIMIZERS,
}
NUMBERS = [
    key for key, row in SETTINGS.items() if not isinstance(row.default, (str, bool)) and "number" in
    row.kind.text
]  # fmt: skip


def with_value(key, value):
    flat = {"batch_size": 8, key: value}
    settings.check(flat)


@pytest.mark.parametrize("key", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -7, "many", True, 2**40, []])
def test_unusual_numbers_are_refused(key, value):
    """But those that mean something: any finite number, or an empty sequence."""
    kind = SETTINGS[key].kind
    if value == [] and kind.type is tuple and kind.holds(()):
        return
    if key == "model.head_bias" and value == -7:
        return
    if key == "model.remat" and value is True:
        return
    with pytest.raises(UserError, match=rf"^config\.{key}="):
        with_value(key, value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("checkpoint_every_steps", 0),
        ("log_every_steps", 0),
        ("log_every_steps", 2.5),
        ("eval_every_steps", 0),
        ("keep_checkpoints", 0),
        ("data.num_threads", 0),
        ("data.num_threads", 100_000),
        ("model.channels", 513),  # OpenCV resizes 512
        ("model.patch_size", 0),
        ("model.patch_size", (4, 0)),
        ("model.image_size", (32, 32, 3)),
        ("model.num_heads", 0),
        ("gradient_clip_norm", 0.0),
        ("polyak_decay", 1.0),
        ("polyak_decay", 2),
        ("schedule.learning_rate", 0.0),
        ("schedule.warmup_percent", 100),
        ("loss.label_smoothing", 1.0),
        ("optimizer.beta2", 1.0),
        ("optimizer.momentum", 1.0),
        ("optimizer.accumulator_dtype", "float17"),
        ("augment.area", (0.5, 0.1)),
        ("augment.area", (0.0, 1.0)),
        ("model.remat", "some"),
        ("mesh.data", 0),
        ("memory", None),
        ("seed", None),
        ("total_epochs", 0),
        ("wandb", 1),
        ("data.dataset", 3),
        ("profile_steps", (3,)),
        ("pretrain", "quickstart"),
    ],
)
def test_values_at_the_edge_of_a_range(key, value):
    with pytest.raises(UserError, match=rf"^config\.{key}="):
        with_value(key, value)


def test_valid_settings_pass():
    settings.check(
        {
            "model.image_size": (224, 384), "model.remat": True,
            "model.representation_size": "hidden",
            "augment.area": [0.05, 1], "profile_steps": (3, 9), "mesh.data": -1, "seed": 2**31 - 1,
            "schedule.learning_rate": 1, "model.patch_size": 16, "polyak_decay": None,
        }
    )  # fmt: skip


def test_the_nearest_word_is_suggested():
    with pytest.raises(UserError, match="Did you mean 'bfloat16'"):
        settings.check({"compute_dtype": "bf16float"})


def test_the_stage_before_is_checked_by_its_own_name():
    config = configuration.load("configs/quickstart.py")
    config.pretrain.batch_size = 0
    with pytest.raises(UserError, match=r"^config\.pretrain\.batch_size=0 must be"):
        configuration.check(config)
    config = configuration.load("configs/quickstart.py")
    with config.pretrain.unlocked():
        config.pretrain.model.hiden_size = 3
    with pytest.raises(UserError, match=r"config\.pretrain\.model\.hiden_size .* 'hidden_size'"):
        configuration.check(config)


def test_defaults_are_legal():
    configuration.check(configuration.default())


@pytest.mark.parametrize("section", FUNCTIONS)
def test_every_option_of_every_function_has_its_row(section):
    for function in FUNCTIONS[section].values():
        for name, parameter in inspect.signature(function).parameters.items():
            if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
                continue
            row = SETTINGS[f"{section}.{name}"]
            if parameter.default not in (inspect.Parameter.empty, None):
                assert row.kind.holds(parameter.default), (function, name)


def test_words_are_those_of_the_models():
    for key, words in {
        "classifier": vit_config.CLASSIFIERS,
        "position_embedding": vit_config.POSITION_EMBEDDINGS,
        "position_embedding_at": vit_config.POSITION_EMBEDDING_PLACES,
        "attention": vit_config.ATTENTIONS,
        "remat": tuple(remat.POLICIES),
    }.items():
        kind = SETTINGS[f"model.{key}"].kind
        assert all(map(kind.holds, words)), key
        assert not kind.holds("another")
    for key, table in FUNCTIONS.items():
        for name in table:
            assert name in SETTINGS[f"{key}.name"].meaning
    for decay in optim.DECAYS:
        assert decay in SETTINGS["schedule.decay"].meaning


def test_the_documentation_is_the_table():
    """Made by: python -m vit_jax.settings > docs/settings.md"""
    assert (ROOT / "docs" / "settings.md").read_text() == settings.document()
