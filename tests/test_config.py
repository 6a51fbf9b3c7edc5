"""Configurations: typed overrides, arguments, durations, and unknown keys."""

import sys

import pytest

from vit_jax import config
from vit_jax.cli import main
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
        ("model.remat", "{[]: 1}", "{[]: 1}"),  # no literal, so text
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
        ("", {"sede": "1"}, "--config.sede is not a setting. Did you mean 'seed'"),
        (
            "",
            {"modl.remat": "1"},
            "--config.modl.remat is not a setting. Did you mean 'model.remat'",
        ),
        ("", {"seed": "x"}, "--config.seed='x' is not of type int"),
        ("", {"wandb": "maybe"}, "is not of type bool"),
        (":a,1,true,b", {}, "'b' is one too many"),
        (":epoch=1", {}, "'epoch' does not exist. Did you mean 'epochs'"),
        (":L/16,many", {}, "epochs='many' is not of type int"),
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
    with pytest.raises(UserError, match=r"config\.learning_rate is not a setting"):
        config.check(c)


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
    assert of({"total_epochs": 0.01}, "total", steps_per_epoch=10) == 1  # at least one
    assert of({"warmup_percent": 10}, "warmup", total_steps=200) == 20
    assert of({}, "warmup") is None


def test_differences_ignore_what_changes_no_result():
    a = {"seed": 0, "log_every_steps": 50, "data": {"dataset": "digits", "num_threads": 1}}
    b = {"seed": 1, "log_every_steps": 10, "data": {"dataset": "digits", "num_threads": 4}}
    assert config.differences(a, b) == {"seed": (0, 1)}


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config():\n    pass\n", "returns NoneType instead of a ConfigDict"),
        ("def get_config():\n    return {'batch_size': 8}\n", "returns dict instead"),
        ("import json\n\n\ndef get_config():\n    return json.loads('{')\n", "line 5: JSONDecode"),
        ("def get_config():\n    return 1 / 0\n", "line 2: ZeroDivisionError: division by zero"),
        ("import nowhere_at_all\n", "line 1: ModuleNotFoundError: No module named 'nowhere_at"),
        ("def get_config(:\n", "line 1: invalid syntax"),
        ("def get_config(a, b):\n    pass\n", "TypeError: get_config.. missing 2 required"),
        ("x = 1\n", "does not define get_config.*configs/quickstart"),
        ("\0", "own.py: source code string cannot contain null bytes"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_with_its_place(tmp_path, text, message):
    file = tmp_path / "own.py"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config.load(str(file))
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_a_config_imports_modules_beside_it(tmp_path):
    (tmp_path / "shared_by_my_runs.py").write_text("BATCH = 24\n")
    (tmp_path / "own.py").write_text(
        "from vit_jax import config as configuration\nimport shared_by_my_runs\n\n\n"
        "def get_config():\n    c = configuration.default()\n"
        "    c.batch_size = shared_by_my_runs.BATCH\n    return c\n"
    )
    before = list(sys.path)
    assert config.load(str(tmp_path / "own.py")).batch_size == 24
    assert sys.path == before


@pytest.mark.parametrize("name", ["quickstart", "quickstart.py", "configs/quickstart.py"])
def test_a_shipped_config_is_found_by_its_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert config.load(name).pretrain is not None
    (tmp_path / "quickstart").mkdir()  # a workdir of that name is not the config
    assert config.load(name).pretrain is not None


@pytest.mark.parametrize(
    "flag, hint",
    [
        ("--batch_size=64", "--config.batch_size=VALUE"),
        ("--learning_rate=0.1", "--config.schedule.learning_rate=VALUE"),
        ("--config.schedule.lr=0.1", "Did you mean 'schedule.learning_rate'"),
        ("--config.bs=8", "Did you mean 'batch_size'"),
        ("--bach_size=8", "Did you mean 'batch_size'"),
        ("--lr=0.1", "Did you mean 'learning_rate'"),
    ],
)
def test_a_flag_that_is_a_setting_names_it(flag, hint, capsys):
    code = main(["train", "--config=quickstart", "--workdir=/no/where", flag])
    error = capsys.readouterr().err
    assert code in (1, 2) and hint in error and len(error.strip().splitlines()) == 1, error


@pytest.mark.parametrize("ends", ["sys.exit(3)", "raise SystemExit('bye')", "exit()"])
def test_a_config_that_ends_the_program(tmp_path, ends):
    """One line as of any error, and exit code 1, whatever it ends with."""
    file = tmp_path / "mine.py"
    file.write_text(f"import sys\n\n\ndef get_config():\n    {ends}\n")
    with pytest.raises(UserError, match=r"mine\.py ends the program \(exit .*\) instead of a co"):
        config.load(str(file))
