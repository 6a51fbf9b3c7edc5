"""The configuration of an experiment, and how it is read.

A config file in `configs/` defines `get_config(argument="") -> ConfigDict`: it takes `default()`,
changes what the experiment changes, and nothing else. Sections are passed as keyword arguments to
the function that they configure, so that an unused key is an error, which names it and the nearest
existing one.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
from collections.abc import Callable, Container, Mapping
from typing import Any, TypeVar

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import files, settings
from vit_jax.errors import UserError, nearest
from vit_jax.settings import OPEN_SECTIONS, SETTINGS

T = TypeVar("T")
Value = bool | int | float | str

#: The format of new `config.json` files and checkpoints; see training/workdir.py for older ones.
FORMAT = 2

#: The package's own evaluators (vit_jax/evaluation/protocols.py), so that a config file may write
#: c.evaluators.knn.data = ...; their options are checked there.
EVALUATORS = ("classification", "fewshot", "knn", "probe", "real", "objectnet")


def default() -> ConfigDict:
    """Every key, with its default. None means: decided by the variant or the data set."""
    c = ConfigDict()
    for key, setting in SETTINGS.items():
        *sections, name = key.split(".")
        section_ = c
        for part in sections:
            if part not in section_:
                section_[part] = ConfigDict()
            section_ = section_[part]
        if not setting.option:
            of_its_kind = setting.default is not None
            section_[name] = setting.default if of_its_kind else placeholder(setting.kind.type)
    # Protocols on other data during training: {KEY: {name, data, every_steps or every_epochs, and
    # the options of the evaluator}}; off without data, at the end only without an interval.
    c.evaluators = ConfigDict({name: {"data": ""} for name in EVALUATORS})
    return c


def arguments(text: str, **defaults: Value) -> dict[str, Value]:
    """Parses a config file's argument: `"L/16,imagenet21k"` or `"dataset=imagenet21k"`.

    Values fill `defaults` in order, or by name; each is cast to its default's type.

    Raises:
      UserError: too many values, or a name that is not among `defaults`.
    """
    values = dict(defaults)
    for position, item in enumerate(part for part in text.split(",") if part):
        key, equals, value = item.partition("=")
        if not equals or key not in defaults:
            if equals and "/" not in key and ":" not in key:
                raise UserError(f"config argument {key!r} does not exist.{nearest(key, defaults)}")
            if position >= len(defaults):
                raise UserError(
                    f"config argument {item!r} is one too many; "
                    f"they are, in order: {', '.join(defaults)}."
                )
            key, value = list(defaults)[position], item
        kind = type(defaults[key])
        if kind is bool and value.lower() not in ("true", "false"):
            raise UserError(f"config argument {key}={value!r} must be true or false.")
        try:
            values[key] = value.lower() == "true" if kind is bool else kind(value)
        except ValueError:
            raise UserError(
                f"config argument {key}={value!r} is not of type {kind.__name__}."
            ) from None
    return values


def choose(table: Mapping[str, T], name: str, what: str) -> T:
    """`table[name]`, or a UserError with the nearest and all names."""
    if name not in table:
        raise UserError(
            f"config argument {what}={name!r} has no entry; there are {', '.join(table)}."
            f"{nearest(name, table)}"
        )
    return table[name]


def check(config: ConfigDict, where: str = "config") -> None:
    """Raises UserError for an unknown setting, or an invalid value."""
    check_keys(config, where=where)
    stage = config.pretrain
    values = {key: value for key, value in config.to_dict().items() if key != "pretrain"}
    settings.check(flatten(values), where)
    if isinstance(stage, ConfigDict):
        check(stage, f"{where}.pretrain")
    else:
        settings.check({"pretrain": stage}, where)


def check_keys(config: Mapping, known: Mapping | None = None, where: str = "config") -> None:
    """Raises UserError for a key that `default()` does not have, or lacks.

    Sections that are passed on as keyword arguments (`augment`, ...) are checked by `call`.
    """
    known = default() if known is None else known
    if missing := [key for key in known if key not in config]:
        raise UserError(f"{where}.{missing[0]} is missing; begin with vit_jax.config.default().")
    for key in config:
        if key not in known:
            raise UserError(f"{where}.{key} is not a setting.{nearest(key, known)}")
        if isinstance(known[key], ConfigDict):
            if not isinstance(config[key], ConfigDict):
                raise UserError(f"{where}.{key}={config[key]!r} must be a section of settings.")
            if key not in OPEN_SECTIONS:
                check_keys(config[key], known[key], f"{where}.{key}")
            elif "name" in known[key] and "name" not in config[key]:
                raise UserError(f"{where}.{key}.name must be set.")


def section(config: Mapping, name: str) -> dict[str, Any]:
    """A section of a config as keyword arguments; settings that are None are left out."""
    return {key: value for key, value in dict(config[name]).items() if value is not None}


def pick(table: Mapping[str, T], name: str, where: str) -> T:
    """`table[name]`, or for "FILE.py:NAME" a plug-in: the object NAME of that file.

    Raises:
      UserError: neither; says `where` the name was given, the nearest, and all names.
    """
    path, colon, attribute = str(name).rpartition(":")
    if colon and path.endswith(".py"):
        return files.defined_in(path, attribute)
    if name not in table:
        raise UserError(
            f"{where}={name!r} does not exist; there are {', '.join(table)}."
            f"{nearest(str(name), table)}"
        )
    return table[name]


def call(
    table: Mapping[str, Callable[..., T]], where: str, options: Mapping, /, **given: object
) -> T:
    """Calls `pick(table, options["name"])` with the other options as keywords, and with `given`.

    Raises:
      UserError: a name that is not in the table, or an option that the function does not take.
    """
    options = dict(options)
    name = options.pop("name", None)
    function = pick(table, name, f"{where}.name")
    takes = inspect.signature(function).parameters
    own = [key for key in takes if key not in given]
    for key in options:
        if key not in own:
            raise UserError(
                f"{where}.{key} is a setting that {name} does not read.{nearest(key, own)}"
            )
    return function(**options, **given)


def duration(
    config: Mapping, name: str, *, steps_per_epoch: float = 1, total_steps: int = 0
) -> int | None:
    """`NAME_steps`, `NAME_epochs` or `NAME_percent` of a config, in steps; None if none is set.

    The first that is set applies. Epochs are rounded to whole steps, at least one.
    """
    if config.get(f"{name}_steps") is not None:
        return int(config[f"{name}_steps"])
    if config.get(f"{name}_epochs") is not None:
        return max(1, round(config[f"{name}_epochs"] * steps_per_epoch))
    if config.get(f"{name}_percent") is not None:
        return round(config[f"{name}_percent"] / 100 * total_steps)
    return None


def to_json(config: ConfigDict, format: int = FORMAT) -> str:
    """The whole configuration as JSON text, for `WORKDIR/config.json`."""
    values = ({"format": format} if format > 1 else {}) | config.to_dict()
    return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"


def flatten(tree: Mapping, prefix: str = "") -> dict[str, object]:
    """{"data.dataset": "digits", ...}: the leaves of a nested mapping by dotted names."""
    flat: dict[str, object] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[object, object]]:
    """{dotted key: (old, new)} where two configurations differ in a way that changes results."""
    a, b = flatten(old), flatten(new)
    return {
        key: (a.get(key), b.get(key))
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
        and key.removeprefix("pretrain.") != "format"
        and not settings.is_free(key)
    }


def load(source: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Runs a config file and applies overrides.

    Args:
      source: "configs/finetune.py" or, with an argument for it, "configs/finetune.py:B/16,cifar10".
      overrides: {"schedule.learning_rate": "0.01"}: dotted keys and values as text.

    Raises:
      UserError: no such file, no `get_config` in it, or an invalid setting or value.
    """
    path, colon, argument = source.partition(":")
    path = find_file(path)
    config = files.call_in(path, "get_config", *([argument] if colon else []))
    if not isinstance(config, ConfigDict):
        raise UserError(
            f"{path}: get_config() returns {type(config).__name__} instead of a ConfigDict; "
            "it begins with c = vit_jax.config.default() and ends with return c."
        )
    for key, text in (overrides or {}).items():
        override(config, key, text)
    return config


def from_values(values: Mapping, where: str, given: Container[str] = ()) -> ConfigDict:
    """The configuration of a `config.json`, checked by the table of settings.

    It is data: a Python file named in it is not run, unless the command line names it as well.

    Args:
      values: as written by `to_json`; missing keys have their defaults.
      given: dotted keys that will be overridden.

    Raises:
      UserError: an unknown setting, an invalid value, or a Python file.
    """
    config = default()
    _fill(config, {key: value for key, value in values.items() if key != "format"}, where)
    check(config, where)
    for key, value in flatten(config.to_dict()).items():
        names = key.removeprefix("pretrain.") != "name"  # that is a title
        if names and isinstance(value, str) and ".py:" in value and key not in given:
            raise UserError(
                f"{where}.{key}={value!r} is a program, but {where} is read as data; to run it, "
                f"give --config.{key}={value} as well."
            )
    return config


def _fill(section_: ConfigDict, values: Mapping, where: str) -> None:
    for key, value in values.items():
        if key not in section_:
            raise UserError(f"{where}.{key} is not a setting.{nearest(key, section_)}")
        known = section_[key]
        if key == "pretrain" and isinstance(value, Mapping):
            value = default()
            _fill(value, values[key], f"{where}.{key}")
        elif isinstance(known, ConfigDict) != isinstance(value, Mapping):
            be = "a section of settings" if isinstance(known, ConfigDict) else "one value"
            raise UserError(f"{where}.{key}={str(value)[:80]} must be {be}.")
        elif key in OPEN_SECTIONS:
            value = _as_section(value, f"{where}.{key}")
            value = ConfigDict({**known.to_dict(), **value}) if key == "evaluators" else value
        elif isinstance(known, ConfigDict):
            _fill(known, value, f"{where}.{key}")
            continue
        if isinstance(known, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)  # other programs may write 1 for 1.0
        with section_.ignore_type():
            section_[key] = _as_tuples(value)


def _as_section(values: Mapping, where: str) -> ConfigDict:
    for key in values:
        if not key.isidentifier():
            raise UserError(f"{where}.{key} is not a setting.")
    return ConfigDict(
        {
            key: _as_section(value, f"{where}.{key}")
            if isinstance(value, Mapping)
            else _as_tuples(value)
            for key, value in values.items()
        }
    )


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted `key` to `text`, parsed as the type of the setting.

    Raises:
      UserError: no such setting (names the nearest), or `text` is not of its type.
    """
    *sections, name = key.split(".")
    target = config
    for depth, section_name in enumerate(sections):
        if depth and sections[depth - 1] == "evaluators" and section_name not in target:
            target[section_name] = ConfigDict()  # of any key; see training/evaluators.py
        target = target.get(section_name) if section_name in target else None
        if not isinstance(target, ConfigDict):
            raise UserError(
                f"--config.{key} is not a setting.{nearest(key, flatten(config.to_dict()))}"
            )
    if sections[-2:-1] == ["evaluators"]:
        with target.ignore_type():  # its type is known to the evaluator
            target[name] = literal(text)
        return
    if name not in target:
        if not sections or sections[-1] not in OPEN_SECTIONS:
            raise UserError(
                f"--config.{key} is not a setting.{nearest(key, flatten(config.to_dict()))}"
            )
        target[name] = literal(text)
        return
    kind = target.get_type(name)
    try:
        target[name] = _as_type(text, kind)
    except (KeyError, ValueError, TypeError):
        raise UserError(f"--config.{key}={text!r} is not of type {kind.__name__}.") from None


def _as_type(text: str, kind: type) -> object:
    if text == "None":
        return None
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    return text if kind is str else literal(text)


def literal(text: str) -> object:
    """A Python literal or true/false if possible, otherwise the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return text


def shipped() -> str:
    """The directory of the package's configs, installed or in a checkout."""
    packaged = os.path.join(os.path.dirname(__file__), "configs")
    if os.path.isdir(packaged):
        return packaged
    return os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs")


def find_file(path: str) -> str:
    """The path of a config file; `configs/X.py`, `X.py` and `X` are also found in the package,
    studies as well.

    Raises:
      UserError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    packaged = shipped()
    name = os.path.basename(path) if path.endswith(".py") else f"{os.path.basename(path)}.py"
    folder = os.path.dirname(path)
    sections = ("studies",) if folder in ("studies", "configs/studies") else ("", "studies")
    for below in sections if folder in ("", "configs", "studies", "configs/studies") else ():
        if os.path.exists(found := os.path.join(packaged, below, name)):
            return found
    there = [(b, file) for b in sections for file in sorted(os.listdir(f"{packaged}/{b}"))]
    names = [os.path.join("configs", b, file) for b, file in there if file.endswith(".py")]
    raise UserError(
        f"There is no config file {path!r}.{nearest(path, names)} `vit-jax configs` lists those of "
        "the package."
    )


def human(number: float) -> str:
    """1234567 as "1.23M": three significant digits with a suffix."""
    for exponent, suffix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 0.9995 * 10**exponent:  # as rounded
            return f"{number / 10**exponent:.3g}{suffix}"
    return f"{number:.3g}" if not math.isclose(number, round(number)) else f"{round(number)}"
