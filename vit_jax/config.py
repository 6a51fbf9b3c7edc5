"""What an experiment's configuration holds, and how it is read.

A config file in `configs/` defines `get_config(argument="") -> ConfigDict`: it takes `default()`,
changes what the experiment changes, and nothing else. Every key is read by someone: sections are
passed as keyword arguments to the one function that they configure, so a key that nobody takes is
an error which names it and the nearest that exists.
"""

from __future__ import annotations

import ast
import inspect
import json
import math
import os
from collections.abc import Callable, Mapping
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from vit_jax import files
from vit_jax.errors import UserError, nearest

#: What `config.json` and checkpoints are written in; see training/workdir.py for older ones.
FORMAT = 2

#: Keys that may differ when a run is resumed: they change neither the data nor the arithmetic.
FREE_ON_RESUME = (
    "name",
    "mesh",
    "sweep",
    "wandb",
    "log_every_steps",
    "eval_every_steps",
    "eval_every_epochs",
    "eval_batch_size",
    "evaluators",
    "checkpoint_every_steps",
    "keep_checkpoints",
    "max_skipped_steps",
    "watchdog_seconds",
    "profile_steps",
    "memory_limit_gib",
    "data.data_dir",
    "data.max_bad_images",
    "data.num_threads",
    "data.num_workers",
)

#: The package's own evaluators (vit_jax/evaluation/protocols.py), for which a config file may
#: write c.evaluators.knn.data = ...; their options are read there.
EVALUATORS = ("classification", "fewshot", "knn", "probe", "real", "objectnet")

CHECKED_SECTIONS = {f"config.{name}" for name in ("model", "data", "mesh", "schedule", "sweep")}


def default() -> ConfigDict:
    """Every key there is, with its default. None means: decided by the variant or the data set."""
    c = ConfigDict()
    c.name = ""  # shown in reports
    c.seed = 0

    c.model = ConfigDict()  # fields of the variant's configuration, see models/variants.py
    c.model.variant = "B/16"
    c.model.image_size = placeholder(object)  # 224, or (height, width)
    c.model.num_classes = placeholder(int)
    c.model.channels = placeholder(int)
    c.model.patch_size = placeholder(object)
    c.model.hidden_size = placeholder(int)
    c.model.num_layers = placeholder(int)
    c.model.mlp_dim = placeholder(int)
    c.model.num_heads = placeholder(int)
    c.model.representation_size = placeholder(object)  # "hidden": the pre-training head
    c.model.classifier = placeholder(str)
    c.model.position_embedding = placeholder(str)
    c.model.position_embedding_at = placeholder(str)
    c.model.head_bias = placeholder(float)
    c.model.pool_padding = placeholder(str)  # of a ResNet's root: zeros (as released), or lowest
    c.model.dropout_rate = placeholder(float)
    c.model.stochastic_depth_rate = placeholder(float)
    c.model.remat = placeholder(object)  # "none", "products" or "full", see models/remat.py
    c.model.scan = placeholder(bool)
    c.model.attention = placeholder(str)  # auto, xla, or cudnn

    c.init_from = ""  # any checkpoint that load_model reads; "" trains from scratch
    c.keep_head = False  # init_from's classifier stays; otherwise a zero head, section 3.2
    c.pretrain = placeholder(
        ConfigDict
    )  # a stage to run first, in WORKDIR/pretrain; then init_from

    c.data = ConfigDict()
    c.data.dataset = "digits"  # digits, folder:PATH, tfds:NAME, hf:ORG/NAME
    c.data.train_split = ""  # "" is the data set's own; otherwise e.g. "train[:98%]"
    c.data.eval_split = ""
    c.data.data_dir = placeholder(str)
    c.data.orient = True  # photos upright by EXIF, as in folder: and hf: data; TFDS has none
    c.data.exclude = ""  # a file of record names to leave out of training
    c.data.max_bad_images = 0  # that cannot be read: more of them end the run
    c.data.num_threads = 4
    c.data.num_workers = 0

    c.augment = ConfigDict({"name": "inception_crop"})  # and its options, see data/preprocess.py
    c.eval_preprocess = ConfigDict({"name": "resize"})

    c.batch_size = 512  # global: over all devices and accumulation steps
    c.eval_batch_size = placeholder(int)
    c.accumulation_steps = 1
    c.total_steps = placeholder(int)  # a duration: _steps wins over _epochs
    c.total_epochs = placeholder(float)

    c.loss = ConfigDict({"name": "softmax_cross_entropy", "label_smoothing": 0.0})
    c.optimizer = ConfigDict({"name": "sgd"})  # and its options, see optim.py
    c.schedule = ConfigDict({"decay": "cosine", "learning_rate": 0.03})
    c.schedule.final_learning_rate = 0.0
    c.schedule.boundaries_percent = ()  # of a staircase
    c.schedule.warmup_steps = placeholder(int)
    c.schedule.warmup_epochs = placeholder(float)
    c.schedule.warmup_percent = placeholder(float)
    c.sweep = ConfigDict()  # what `vit-jax sweep` chooses the learning rate from, and on how much
    c.sweep.learning_rates = (0.001, 0.003, 0.01, 0.03)
    c.sweep.held_out_percent = 10.0  # of the training split
    c.gradient_clip_norm = placeholder(float)
    c.mixup_alpha = 0.0  # mixes pairs of images by Beta(alpha, alpha); 0: off
    c.polyak_decay = placeholder(float)
    c.polyak_ramp = False  # the decay rises as (1 + t)/(10 + t), instead of being bias-corrected
    c.watchdog_seconds = 1800.0  # a run that stands still for so long is ended; 0: never
    c.max_skipped_steps = 20  # abort after so many non-finite gradients in a row

    c.memory = "as_configured"  # "auto" chooses model.remat and accumulation_steps that fit
    c.memory_limit_gib = placeholder(float)  # of a device that others use too; None: all of it

    c.compute_dtype = "auto"  # bfloat16 on accelerators, float32 on CPU
    c.mesh = ConfigDict({"data": -1, "fsdp": 1, "tensor": 1})  # -1: all devices that are left

    c.log_every_steps = 50
    c.profile_steps = ()  # (first, last): these steps are traced into WORKDIR/profile
    c.eval_every_steps = placeholder(int)
    c.eval_every_epochs = placeholder(float)  # neither: at the end only
    # Protocols on other data while training: {KEY: {name, data, every_steps or every_epochs, and
    # the options of the evaluator}}; off without data, at the end only without an interval.
    c.evaluators = ConfigDict({name: {"data": ""} for name in EVALUATORS})
    c.checkpoint_every_steps = 1000
    c.keep_checkpoints = 2
    c.wandb = False
    return c


def arguments(text: str, **defaults: Any) -> dict[str, Any]:
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
            raise UserError(f"config argument {key}={value!r} is no {kind.__name__}.") from None
    return values


def choose(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`, or a UserError that names the nearest and what there is."""
    if name not in table:
        raise UserError(
            f"config argument {what}={name!r} has no entry; there are {', '.join(table)}."
            f"{nearest(name, table)}"
        )
    return table[name]


def check_keys(config: Mapping, known: Mapping | None = None, where: str = "config") -> None:
    """Raises UserError for a key that `default()` does not have, naming the nearest.

    Sections that are passed on as keyword arguments (`augment`, `loss`, ...) are checked where
    they are passed, see `call`.
    """
    known = default() if known is None else known
    for key in config:
        if key not in known:
            raise UserError(f"{where}.{key} is a setting that nobody reads.{nearest(key, known)}")
        if f"{where}.{key}" in CHECKED_SECTIONS:
            check_keys(config[key], known[key], f"{where}.{key}")


def section(config: Mapping, name: str) -> dict[str, Any]:
    """A section of a config as keyword arguments; settings that are None are left out."""
    return {key: value for key, value in dict(config[name]).items() if value is not None}


def pick(table: Mapping[str, Any], name: str, where: str) -> Any:
    """`table[name]`, or of "FILE.py:NAME", a plug-in, what that file calls NAME.

    Raises:
      UserError: neither; says `where` the name was given, the nearest, and what there is.
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


def call(table: Mapping[str, Callable], where: str, options: Mapping[str, Any], /, **given: Any):
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

    The first that is set counts. Epochs are rounded to whole steps, at least one.
    """
    if config.get(f"{name}_steps") is not None:
        return int(config[f"{name}_steps"])
    if config.get(f"{name}_epochs") is not None:
        return max(1, round(config[f"{name}_epochs"] * steps_per_epoch))
    if config.get(f"{name}_percent") is not None:
        return round(config[f"{name}_percent"] / 100 * total_steps)
    return None


def to_json(config: ConfigDict, format: int = FORMAT) -> str:
    """The whole configuration as JSON text: what `WORKDIR/config.json` holds."""
    values = ({"format": format} if format > 1 else {}) | config.to_dict()
    return json.dumps(values, indent=2, sort_keys=True, default=str) + "\n"


def flatten(tree: Mapping, prefix: str = "") -> dict[str, Any]:
    """{"data.dataset": "digits", ...}: the leaves of a nested mapping by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def differences(old: Mapping, new: Mapping) -> dict[str, tuple[Any, Any]]:
    """{dotted key: (old, new)} where two configurations differ in a way that changes results."""
    a, b = flatten(old), flatten(new)
    free = tuple(f"{p}{key}" for key in ("format", *FREE_ON_RESUME) for p in ("", "pretrain."))
    return {
        key: (a.get(key), b.get(key))
        for key in sorted({*a, *b})
        if a.get(key) != b.get(key)
        and not any(key == name or key.startswith(f"{name}.") for name in free)
    }


#: Sections whose keys are the options of whatever function their `name` chooses.
OPEN_SECTIONS = ("augment", "eval_preprocess", "loss", "optimizer")


def load(source: str, overrides: Mapping[str, str] | None = None) -> ConfigDict:
    """Runs a config file and applies overrides.

    Args:
      source: "configs/finetune.py" or, with an argument for it, "configs/finetune.py:B/16,cifar10".
      overrides: {"schedule.learning_rate": "0.01"}: dotted keys and values as text.

    Raises:
      UserError: no such file, it defines no `get_config`, or a setting or value is not usable.
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


def override(config: ConfigDict, key: str, text: str) -> None:
    """Sets the dotted `key` to `text`, read as the type that the setting has.

    Raises:
      UserError: no such setting (the nearest is named), or `text` is not of its type.
    """
    *sections, name = key.split(".")
    target = config
    for depth, section_name in enumerate(sections):
        if depth and sections[depth - 1] == "evaluators" and section_name not in target:
            target[section_name] = ConfigDict()  # of any key; see training/evaluators.py
        target = target.get(section_name) if section_name in target else None
        if not isinstance(target, ConfigDict):
            raise UserError(
                f"--config.{key} is no setting.{nearest(key, flatten(config.to_dict()))}"
            )
    if sections[-2:-1] == ["evaluators"]:
        with target.ignore_type():  # its evaluator says of which type it is
            target[name] = literal(text)
        return
    if name not in target:
        if not sections or sections[-1] not in OPEN_SECTIONS:
            raise UserError(
                f"--config.{key} is no setting.{nearest(key, flatten(config.to_dict()))}"
            )
        target[name] = literal(text)
        return
    kind = target.get_type(name)
    try:
        target[name] = _as_type(text, kind)
    except (KeyError, ValueError, TypeError):
        raise UserError(f"--config.{key}={text!r} is no {kind.__name__}.") from None


def _as_type(text: str, kind: type) -> Any:
    if text == "None":
        return None
    if kind is bool:
        return {"true": True, "1": True, "false": False, "0": False}[text.lower()]
    if kind in (int, float):
        return kind(text)
    return text if kind is str else literal(text)


def literal(text: str) -> Any:
    """A Python literal or true/false where it is one, otherwise the text itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def find_file(path: str) -> str:
    """A config file's path; `configs/X.py`, `X.py` and `X` are also found in the package.

    Raises:
      UserError: there is no such file.
    """
    if os.path.isfile(path):
        return path
    packaged = os.path.join(os.path.dirname(__file__), "configs")
    if not os.path.isdir(packaged):  # a source checkout
        packaged = os.path.join(os.path.dirname(os.path.dirname(__file__)), "configs")
    name = os.path.basename(path) if path.endswith(".py") else f"{os.path.basename(path)}.py"
    shipped = os.path.join(packaged, name)
    if os.path.dirname(path) in ("", "configs") and os.path.exists(shipped):
        return shipped
    names = [f"configs/{name}" for name in sorted(os.listdir(packaged)) if name.endswith(".py")]
    raise UserError(
        f"There is no config file {path!r}.{nearest(path, names)} There are {', '.join(names)}."
    )


def human(number: float) -> str:
    """1234567 as "1.23M": three significant digits with a suffix."""
    for exponent, suffix in ((18, "E"), (15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(number) >= 10**exponent:
            return f"{number / 10**exponent:.3g}{suffix}"
    return f"{number:.3g}" if not math.isclose(number, round(number)) else f"{round(number)}"
