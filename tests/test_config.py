"""Configurations: typed overrides, arguments, durations, and keys that nobody reads."""

import pytest

from vit_jax import config
from vit_jax.errors import UserError

FILE = """
from vit_jax import config
def get_config(argument=""):
    c = config.default()
    a = config.arguments(argument, variant="B/16", epochs=3, flip=True)
    c.model.variant, c.total_epochs = a["variant"], float(a["epochs"])
    return c
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "experiment.py"
    path.write_text(FILE)
    return str(path)


def test_arguments_by_position_and_by_name(file):
    assert config.load(file).model.variant == "B/16"
    assert config.load(f"{file}:L/16,7").total_epochs == 7.0
    assert config.load(f"{file}:epochs=9").total_epochs == 9.0


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("seed", "3", 3),
        ("schedule.learning_rate", "1e-3", 1e-3),
        ("model.image_size", "384", 384),
        ("model.image_size", "(32, 48)", (32, 48)),
        ("model.remat", "true", True),
        ("model.remat", "products", "products"),
        ("wandb", "true", True),
        ("total_epochs", "None", None),
        ("augment.pad", "4", 4),
        ("data.dataset", "folder:/a=b", "folder:/a=b"),
    ],
)
def test_overrides_take_the_type_of_the_setting(file, key, text, value):
    found = config.load(file, {key: text})
    for part in key.split("."):
        found = found[part]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("source", "overrides", "message"),
    [
        ("", {"sede": "1"}, "--config.sede is no setting. Did you mean 'seed'"),
        ("", {"modl.remat": "1"}, "--config.modl.remat is no setting. Did you mean 'model.remat'"),
        ("", {"seed": "x"}, "--config.seed='x' is no int"),
        ("", {"wandb": "maybe"}, "is no bool"),
        (":a,1,true,b", {}, "'b' is one too many"),
        (":epoch=1", {}, "'epoch' does not exist. Did you mean 'epochs'"),
        (":L/16,many", {}, "epochs='many' is no int"),
        (":L/16,1,perhaps", {}, "must be true or false"),
    ],
)
def test_bad_settings_are_one_clear_line(file, source, overrides, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")) as error:
        config.load(file + source, overrides)
    assert "\n" not in str(error.value)


def test_missing_file_names_the_nearest():
    with pytest.raises(UserError, match=r"Did you mean 'configs/quickstart\.py'"):
        config.load("configs/quickstrat.py")


def test_shipped_configs_are_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load("configs/quickstart.py").pretrain is not None


def test_a_key_that_nobody_reads_is_an_error():
    c = config.default()
    with c.unlocked():
        c.learning_rate = 0.1
    with pytest.raises(UserError, match=r"config\.learning_rate is a setting that nobody reads"):
        config.check_keys(c)


def test_an_option_that_the_function_does_not_take_is_an_error():
    def adam(*, beta1=0.9):
        return beta1

    table = {"adam": adam}
    assert config.call(table, "config.optimizer", {"name": "adam", "beta1": 0.5}) == 0.5
    with pytest.raises(UserError, match=r"config\.optimizer\.beta is a setting that adam does not"):
        config.call(table, "config.optimizer", {"name": "adam", "beta": 0.5})
    with pytest.raises(UserError, match=r"config\.optimizer\.name='adm' does not exist"):
        config.call(table, "config.optimizer", {"name": "adm"})


def test_durations():
    of = config.duration
    assert of({"total_steps": 7, "total_epochs": 3}, "total", steps_per_epoch=10) == 7
    assert of({"total_steps": None, "total_epochs": 2.5}, "total", steps_per_epoch=10) == 25
    assert of({"warmup_percent": 10}, "warmup", total_steps=200) == 20
    assert of({}, "warmup") is None


def test_differences_ignore_what_changes_no_result():
    a = {"seed": 0, "log_every_steps": 50, "data": {"dataset": "digits", "num_threads": 1}}
    b = {"seed": 1, "log_every_steps": 10, "data": {"dataset": "digits", "num_threads": 4}}
    assert config.differences(a, b) == {"seed": (0, 1)}
