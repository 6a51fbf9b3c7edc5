"""From a data set to a run: the facts that `vit-jax train folder:/data/pets` collects.

What follows from them is in `configs/own.py`, a config like any other, so that a command with
`--config` does the same.
"""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from vit_jax import config as configuration
from vit_jax.config import ConfigDict
from vit_jax.data import specs
from vit_jax.data.decode import image_size
from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.interop import load, published
from vit_jax.runtime.distributed import say
from vit_jax.training.workdir import changes, finished_metrics

CONFIG = "configs/own.py"
#: In order of preference, by Table 5 and cost: an L/16 is three times as slow as a B/16. On a CPU
#: patches of 32 pixels come first, with a quarter of the tokens.
PREFERRED = ("B/16", "L/16", "B/32", "L/32", "H/14", "R50+B/16")
ON_CPU = ("B/32", "L/32", "B/16", "L/16", "R50+B/16", "H/14")
LOOKED_AT = 32  # images sampled for their size


class Recipe(NamedTuple):
    """argument: of CONFIG. overrides: {setting: text} on top of it. notes: the decisions."""

    argument: str
    overrides: dict[str, str]
    notes: list[str]

    def config(self) -> ConfigDict:
        return configuration.load(f"{CONFIG}:{self.argument}", self.overrides)

    def command(self, workdir: str) -> list[str]:
        """The equivalent command with `--config`, as a list of words."""
        settings = [f"--config.{key}={value}" for key, value in self.overrides.items()]
        return [
            *("vit-jax", "train", f"--config={CONFIG}:{self.argument}"),
            f"--workdir={workdir}",
            *settings,
        ]


def recipe(spec: str, given: Mapping[str, str], name: str = "paper") -> Recipe:
    """Chooses the settings for the data `spec`; `given` settings take precedence.

    Args:
      name: of RECIPES in CONFIG.

    Raises:
      UserError: the data cannot be opened, or are given twice.
    """
    if "data.dataset" in given:
        raise UserError(
            f"The data are given twice, {spec} and --config.data.dataset={given['data.dataset']}; "
            "leave one out."
        )
    overrides, notes = {"data.dataset": spec}, list[str]()
    source = training_part(spec, given, overrides, notes)
    facts: dict[str, object] = {
        "images": len(source),
        "pixels": shorter_side(source),
        **weights(given, overrides, notes),
        "accelerator": jax.default_backend() != "cpu",
        "multilabel": source.multilabel,
        "flip": spec.split("[")[0] != "digits",  # a mirrored digit is not a digit
    }
    if name != "paper":
        facts["recipe"] = name
    left = dict(given)
    if left.get("model.image_size", "").isdigit():
        facts["resolution"] = left.pop("model.image_size")
    left.pop("model.variant", None)  # it is among the facts
    for period in ("total", "eval_every"):
        if f"{period}_epochs" in left and f"{period}_steps" not in left:
            overrides[f"{period}_steps"] = "None"  # which would take precedence
    if "memory" not in left and left.keys() & {"accumulation_steps", "model.remat"}:
        overrides["memory"] = "as_configured"
    if "objective.name" in left and "keep_best" not in left:
        overrides["keep_best"] = ""  # another objective has other metrics
    argument = ",".join(f"{key}={as_text(value)}" for key, value in facts.items())
    return Recipe(argument, overrides | left, notes)


def whole(spec: str, given: Mapping[str, str], name: str = "paper") -> ConfigDict:
    """The configuration of `recipe` for all training images: a sweep holds out its own."""
    chosen = recipe(spec, given, name)
    for line in chosen.notes:
        if not line.startswith("validation:"):
            say(f"  {line}")
    for key in ("data.train_split", "data.eval_split"):
        if key not in given:
            chosen.overrides.pop(key, None)
    return chosen.config()


def as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def training_part(
    spec: str, given: Mapping[str, str], overrides: dict[str, str], notes: list[str]
) -> Source:
    """The training data; without a validation split a part of it is held out."""
    data_dir = given.get("data.data_dir")
    own = None
    if not {"data.train_split", "data.eval_split"} & given.keys():
        own = specs.own_validation(spec, data_dir=data_dir)
    if own is not None:
        overrides["data.train_split"], overrides["data.eval_split"] = own
        notes.append("validation: a tenth of the training images is held out")
        notes += specs.choose_splits(spec, data_dir=data_dir).notes  # splits that are not used
    train = given.get("data.train_split") or (own[0] if own else "")
    named = f"{spec}[{train}]" if train else specs.choose_splits(spec, data_dir=data_dir).train
    exclude = given.get("data.exclude") or None
    return specs.open_source(named, data_dir=data_dir, exclude=exclude)


def shorter_side(source: Source) -> int:
    """The median of the shorter sides of sampled images, in pixels."""
    sides = []
    for number in np.unique(np.linspace(0, len(source) - 1, LOOKED_AT).astype(int)):
        try:
            record = source[int(number)]
            image = record["image"]
            size = image_size(image, record["name"])
        except UserError:  # reported when it is read for training
            continue
        sides.append(min(size))
    return int(np.median(sides)) if sides else 224


def weights(
    given: Mapping[str, str], overrides: dict[str, str], notes: list[str]
) -> dict[str, object]:
    """The facts of the initial weights: given, or published ones on this machine."""
    wanted, place = given.get("model.variant", ""), given.get("init_from")
    if place:
        config, _ = load.read(place)
        size = min(config.image_size)
        taken = [
            what
            for key, what in (("model.variant", "variant"), ("model.image_size", "image size"))
            if not given.get(key)
        ]
        sets = f"; it sets the {' and the '.join(taken)}" if taken else ""
        notes.append(f"weights: {place}, {config.variant} at {size} pixels{sets}")
        return {"pretrained": True, "variant": wanted or "checkpoint", "size": size}
    if place is None and (name := at_hand(wanted)):
        overrides["init_from"] = name
        entry = published.PUBLISHED[name]
        notes.append(f"weights: {name}, found on this machine")
        return {"pretrained": True, "variant": entry.variant, "size": entry.image_size}
    name = next((n for n in names_of([wanted] if wanted else order())), "")
    how = f"; `vit-jax weights get {name}` downloads some" if name and place is None else ""
    notes.append(
        f"weights: {'none, as requested' if place == '' else f'no published ones found{how}'}"
    )
    notes.append(
        "from scratch: a ViT learns little from few images, so expect much lower accuracy than "
        "from published weights (Figure 3 of the paper)"
    )
    return {"pretrained": False, **({"variant": wanted} if wanted else {})}


def order() -> tuple[str, ...]:
    return ON_CPU if jax.default_backend() == "cpu" else PREFERRED


def names_of(variants: Iterable[str]) -> list[str]:
    """Published ViTs, those of ImageNet-21k first: the paper fine-tunes these."""
    kinds = ("imagenet21k", "imagenet")
    found = [f"{variant}-{kind}" for kind in kinds for variant in variants]
    return [name for name in found if name in published.PUBLISHED]


def at_hand(variant: str = "") -> str:
    """The published weights on this machine to start from; "" if there are none."""
    names = names_of([variant] if variant else order())
    return next((name for name in names if load.at_hand(name) is not None), "")


def show(chosen: Recipe, workdir: str | Path, note: str) -> None:
    """Prints the decisions, the workdir, and the equivalent command."""
    for line in chosen.notes:
        say(f"  {line}")
    say(f"  {note} {workdir}")
    say(f"equivalent to: {shlex.join(chosen.command(str(workdir)))}")


def show_next(workdir: Path) -> None:
    """Prints the commands that evaluate a finished classifier, and that classify with it."""
    checkpoint = shlex.quote(f"--checkpoint={workdir.expanduser().resolve()}")
    say(f"evaluate: vit-jax evaluate {checkpoint}")
    say(f"classify images: vit-jax predict {checkpoint} IMAGE")


def name_of(spec: str) -> str:
    """The name of a run on the data: "folder:/data/pets.csv?label=x" gives pets."""
    kind, name, _ = specs.parse_spec(spec)
    name, _ = specs.parse_name(kind, name)
    if kind == "tfds":
        name = name.split(":")[0]
    last = Path(name or kind).name
    stem = Path(last).stem if Path(last).suffix.lower() in (".csv", ".tsv", ".txt") else last
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or kind


def find_workdir(
    config: ConfigDict, spec: str, *, new: bool, base: Path = Path("runs")
) -> tuple[Path, str]:
    """The newest unfinished run of the same data and settings below `base`, or a new one; a note.

    Args:
      new: always a new one.
    """
    note = "run in"
    newest_first = sorted(base.glob("*/config.json"), key=lambda p: -p.stat().st_mtime)
    for found in newest_first if not new else ():
        unfinished = is_unfinished(found.parent, config)
        if unfinished:
            return found.parent, "resumes in"
        if unfinished is False:
            note = f"{found.parent} has finished with these settings; a new run in"
    name = f"{name_of(spec)}-{datetime.date.today():%Y-%m-%d}"
    place, number = base / name, 1
    while place.exists():
        number += 1
        place = base / f"{name}-{number}"
    return place, note


def is_unfinished(workdir: Path, config: ConfigDict) -> bool | None:
    """Whether a run of this configuration is unfinished; None if its configuration differs."""
    try:
        return None if changes(workdir, config) else finished_metrics(workdir) is None
    except (UserError, OSError, ValueError):  # damaged: not to be resumed
        return None
