"""Data specs: `digits[train]`, `folder:PATH[test]`, `tfds:NAME[train[:98%]]`,
`vtab:TASK[train800val200]`, `hf:ORG/NAME[validation]`. The split is in TFDS syntax.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vit_jax.data.kinds.digits import open_digits
from vit_jax.data.kinds.folder import open_folder
from vit_jax.data.kinds.huggingface import open_hf
from vit_jax.data.kinds.tfds import TfdsSplits
from vit_jax.data.kinds.vtab import open_vtab
from vit_jax.data.source import Source, Without
from vit_jax.errors import UserError, nearest

KINDS: dict[str, Callable[[str, str | None], Any]] = {
    "digits": open_digits,
    "folder": open_folder,
    "tfds": TfdsSplits,
    "vtab": open_vtab,
    "hf": open_hf,
}
EVAL_ORDER = ("test", "validation")


def split_specs(text: str) -> tuple[str, ...]:
    """Data specs separated by commas, but not by those inside brackets."""
    return tuple(part.strip() for part in re.split(r",(?![^\[]*\])", text) if part.strip())


def parse_spec(spec: str) -> tuple[str, str, str]:
    """ "folder:/a[train[:9%]]" as ("folder", "/a", "train[:9%]"); the split may be "".

    Raises:
      UserError: an unknown kind, nothing after the colon, or an unfinished bracket.
    """
    match = re.fullmatch(r"(?P<data>[^\[\]]+)(?:\[(?P<split>.*)\])?", spec.strip())
    if not match:
        raise UserError(
            f"The data spec {spec!r} is not KIND:NAME[SPLIT], e.g. folder:/data[train]."
        )
    kind, _, name = match["data"].partition(":")
    if kind not in KINDS:
        raise UserError(
            f"The data spec {spec!r} has an unknown kind; there are digits, folder:PATH, "
            f"tfds:NAME, vtab:TASK and hf:ORG/NAME.{nearest(kind, KINDS)}"
        )
    if kind != "digits" and not name:
        raise UserError(f"The data spec {spec!r} names nothing after {kind}:.")
    return kind, name, match["split"] or ""


def open_source(spec: str, *, data_dir: str | None = None, exclude: str | None = None) -> Source:
    """Opens a data set.

    Args:
      spec: see the module; without a split it is the training split.
      data_dir: where TFDS data sets lie (by default where TFDS keeps them).
      exclude: a file with one record name per line; those records are left out.

    Raises:
      UserError: it does not exist, is empty or is not usable; says what there is.
    """
    kind, name, split = parse_spec(spec)
    splits = KINDS[kind](name, data_dir)
    source = splits(split or "train")
    if not len(source):
        raise UserError(f"{spec} has no examples.")
    return drop_records(source, exclude) if exclude else source


def default_splits(spec: str, *, data_dir: str | None = None) -> tuple[str, str]:
    """The training and the evaluation split of a data set, as two specs.

    Evaluation is on test, or validation if there is no test; with neither, on the last tenth of
    the training split, which is then left out of training. ImageNet's is its validation split.
    """
    kind, name, split = parse_spec(spec)
    base = f"{kind}:{name}" if name else kind
    if split:
        raise UserError(
            f"{spec}: name the data set without a split, or set both config.data.train_split and "
            "config.data.eval_split."
        )
    names = KINDS[kind](name, data_dir).names()
    order = ("validation",) if name.startswith("imagenet2012") else EVAL_ORDER
    for held_out in order:
        if held_out in names:
            train = "train" if "train" in names else names[0]
            return f"{base}[{train}]", f"{base}[{held_out}]"
    return f"{base}[train[:90%]]", f"{base}[train[90%:]]"


def drop_records(source: Source, exclude: str) -> Without:
    """`source` without the records that the file `exclude` names, one a line."""
    try:
        unwanted = {line.strip() for line in Path(exclude).read_text().splitlines() if line.strip()}
    except OSError as error:
        raise UserError(f"Cannot read config.data.exclude={exclude} ({error.strerror}).") from error
    removed = source.find(unwanted)
    if len(removed) == len(source):
        raise UserError(
            f"config.data.exclude={exclude} names all {len(source)} records of {source.spec}; "
            "nothing is left to train on."
        )
    if unwanted and not len(removed):
        raise UserError(
            f"config.data.exclude={exclude} names no record of {source.spec}; "
            f"records have names like {source[0]['name']!r}."
        )
    return Without(source, removed, missing=len(unwanted) - len(removed))
