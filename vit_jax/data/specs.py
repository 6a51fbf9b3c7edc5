"""Data specs: `digits[train]`, `folder:PATH[test]`, `tfds:NAME[train[:98%]]`,
`vtab:TASK[train800val200]`, `hf:ORG/NAME?image=img&label=fine_label[validation]`. The split is in
TFDS syntax; options are written as in a URL. `FILE.py:NAME` is a kind of your own.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import NamedTuple, Protocol
from urllib.parse import unquote

from vit_jax import files
from vit_jax.data.image_files import shown
from vit_jax.data.kinds.digits import open_digits
from vit_jax.data.kinds.folder import open_folder
from vit_jax.data.kinds.huggingface import open_hf
from vit_jax.data.kinds.tfds import TfdsSplits
from vit_jax.data.kinds.vtab import open_vtab
from vit_jax.data.multilabel import MULTILABEL, SEPARATOR, withheld as hidden_ones
from vit_jax.data.remarks import check_labelled, withheld
from vit_jax.data.source import Source, Without
from vit_jax.data.splits import HELD_OUT, KEPT, last_tenth_is_stratified
from vit_jax.errors import UserError, nearest


class AllSplits(Protocol):
    """The splits of a data set: their names, and a source for a split expression."""

    def names(self) -> list[str]: ...

    def __call__(self, split: str) -> Source: ...


KINDS: dict[str, Callable[[str, str | None, Mapping[str, str]], AllSplits]] = {
    "digits": open_digits,
    "folder": open_folder,
    "tfds": TfdsSplits,
    "vtab": open_vtab,
    "hf": open_hf,
}
#: Options after the name, as ?key=value&key=value.
OPTIONS = {
    "folder": ("image", "label", "split", "encoding", MULTILABEL, SEPARATOR),
    "tfds": ("image", "label", MULTILABEL),
    "hf": ("image", "label", "config", MULTILABEL, SEPARATOR),
}
#: A kind of data defined in a Python file: "FILE.py:NAME", with `open_splits` as those above.
PLUG_IN = re.compile(r"(?P<file>[^:\[\]]+\.py):(?P<name>.+)", re.DOTALL)
MATCH = "match"  # for every kind: match=number ignores the names of classes
PATH_KINDS = ("folder", "hf")
TRAIN_NAMES = ("train", "train800val200")
EVAL_ORDER = ("test", "validation")


def split_specs(text: str) -> tuple[str, ...]:
    """Data specs separated by commas; only a comma before KIND: or digits separates."""
    return tuple(
        part.strip()
        for part in re.split(r",(?=\s*(?:[a-z]+:|[^,:]+\.py:|digits\s*(?:[,\[?]|$)))", text)
        if part.strip()
    )


def parse_spec(spec: str) -> tuple[str, str, str]:
    """ "folder:/a[train[:9%]]" as ("folder", "/a", "train[:9%]"); the split may be "".

    The split is the last bracket, at the end. If the path exists as written, brackets are part of
    it. Options stay with the name, see `parse_name`.

    Raises:
      UserError: an unknown kind, nothing after the colon, or an unfinished bracket.
    """
    text = spec.strip()
    kind, _, path = text.partition(":")
    if kind in PATH_KINDS and path and os.path.exists(os.path.expanduser(path)):
        return kind, path, ""
    text, split = _cut_split(text)
    if not split.strip() and spec.strip() != text:
        raise UserError(f"The data spec {spec!r} names no split; leave the brackets out.")
    if plug_in := PLUG_IN.fullmatch(text):
        return plug_in["file"], plug_in["name"], split
    match = re.fullmatch(r"(?P<kind>[a-z]\w*)(?P<colon>:?)(?P<name>.*)", text, re.DOTALL)
    kind, name = (match["kind"], match["name"]) if match else (text, "")
    if re.search(r"[\[\]]", text) and kind not in PATH_KINDS:
        raise UserError(
            f"The data spec {spec!r} is not KIND:NAME[SPLIT], e.g. folder:/data[train]."
        )
    if kind not in KINDS or not ((match and match["colon"]) or kind == "digits"):
        path = f" Did you mean 'folder:{text}'?" if os.path.exists(text) else nearest(kind, KINDS)
        raise UserError(
            f"The data spec {spec!r} has an unknown kind; there are digits, folder:PATH, "
            f"tfds:NAME, vtab:TASK and hf:ORG/NAME.{path}"
        )
    if kind != "digits" and not name:
        raise UserError(f"The data spec {spec!r} has nothing after {kind}:.")
    return kind, name, split


def _cut_split(text: str) -> tuple[str, str]:
    """ "a[b][train[:9%]]" as ("a[b]", "train[:9%]")."""
    depth = 0
    for position in range(len(text) - 1, -1, -1) if text.endswith("]") else ():
        depth += {"]": 1, "[": -1}.get(text[position], 0)
        if not depth:
            return text[:position], text[position + 1 : -1]
    return text, ""


def parse_name(kind: str, name: str) -> tuple[str, dict[str, str]]:
    """ "NAME?image=img&label=fine" as ("NAME", {"image": "img", "label": "fine"}).

    %26 is an & in a value. A path that exists as written has no options.

    Raises:
      UserError: an option that this kind of data does not take.
    """
    if kind in PATH_KINDS and os.path.exists(os.path.expanduser(name)):
        return name, {}
    name, mark, query = name.rpartition("?")
    if not mark or "=" not in query:
        return f"{name}{mark}{query}", {}
    options: dict[str, str] = {}
    known = (*OPTIONS.get(kind, ()), MATCH)
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if key not in known or not value or key in options:
            raise UserError(
                f"{kind}:{shown(name)}: ?{pair} is not an option; there are "
                f"{' and '.join(f'{key}=...' for key in known)}, each once, joined by &."
                f"{nearest(key, known)}"
            )
        options[key] = unquote(value)
    if options.get(MATCH, "number") != "number":
        raise UserError(f"{kind}:{shown(name)}: {MATCH}={options[MATCH]} must be {MATCH}=number.")
    return name, options


def open_splits(
    spec: str, data_dir: str | None = None, *, flat: bool = False
) -> tuple[str, AllSplits, str]:
    """Resolves a spec: (the spec without a split, its splits, the split or "").

    flat: a folder of images needs no class folders.
    """
    kind, name, split = parse_spec(spec)
    base = f"{kind}{name}" if kind == "digits" else f"{kind}:{name}"
    known, key = _listed.get({}), (base, data_dir, flat)
    if key not in known:
        name, options = parse_name(kind, name)
        by_number = options.pop(MATCH, None) is not None
        open_splits_of = KINDS[kind] if kind in KINDS else files.defined_in(kind, "open_splits")
        if flat and kind == "folder":
            open_splits_of = functools.partial(open_folder, flat=True)
        splits = open_splits_of(name, data_dir, options)
        known[key] = Numbered(splits) if by_number else splits
    return base, known[key], split


#: The data sets that are open, within `listed_once`.
_listed: ContextVar[dict[tuple, AllSplits]] = ContextVar("listed")


@contextlib.contextmanager
def listed_once() -> Iterator[None]:
    """A context in which a data set that is opened twice (to check, then to use) is listed once."""
    before = _listed.set({})
    try:
        yield
    finally:
        _listed.reset(before)


class Numbered:
    """Splits whose classes are named by their indices: match=number."""

    def __init__(self, splits: AllSplits):
        self.splits, self.names = splits, splits.names

    def __call__(self, split: str) -> Source:
        source = copy.copy(self.splits(split))
        source.class_names = tuple(map(str, range(source.num_classes)))
        return source


def open_source(
    spec: str,
    *,
    data_dir: str | None = None,
    exclude: str | None = None,
    labelled: bool | None = None,
) -> Source:
    """Opens a data set.

    Args:
      spec: see the module; without a split it is the training split.
      data_dir: the directory of TFDS data sets (default: TFDS's own).
      exclude: a file with one record name per line, to leave out.
      labelled: True: refuse records without a label. False: a folder needs no class folders.

    Raises:
      UserError: it does not exist, is empty or not usable; says what there is.
    """
    _, splits, split = open_splits(spec, data_dir, flat=labelled is False)
    source = splits(split or "train")
    if not len(source):
        raise UserError(f"{spec} has no examples.")
    source = drop_records(source, exclude) if exclude else source
    if labelled:
        check_labelled(source)
    return source


class Choice(NamedTuple):
    """Which parts of a data set are used, as specs, and notes on the choice."""

    train: str
    evaluation: str
    notes: list[str]


def choose_splits(
    spec: str, *, data_dir: str | None = None, watch: bool = False, labelled: bool = True
) -> Choice:
    """The training and the evaluation split of a data set.

    Evaluation is on test, or validation if there is no test; with neither, on a tenth held out of
    the training split. For ImageNet it is validation. Splits with withheld labels are not chosen.

    Args:
      watch: prefer validation for evaluation during training, and leave test for the end.
      labelled: False: labels are not read; splits without labels are chosen too.

    Raises:
      UserError: there is no training split.
    """
    base, splits, split = open_splits(spec, data_dir, flat=not labelled)
    if split:
        raise UserError(
            f"{spec}: name the data set without a split, or set both config.data.train_split and "
            "config.data.eval_split."
        )
    names = splits.names()
    order: tuple[str, ...] = EVAL_ORDER[::-1] if watch else EVAL_ORDER
    if base.startswith("tfds:imagenet2012"):
        order = ("validation",)
    hidden = [name for name in order if labelled and name in names and withheld(splits(name))]
    found = [name for name in order if name in names and name not in hidden]
    notes = [f"{shown(base)}[{s}] is not used: its labels are withheld" for s in hidden]
    train = next((name for name in TRAIN_NAMES if name in names), None)
    if train is None:
        raise UserError(
            f"{base} has no split train; it has {', '.join(names)}: choose with "
            "config.data.train_split and config.data.eval_split."
        )
    if watch and len(found) > 1:
        notes.append(
            f"training is evaluated on validation; test is for the end: vit-jax evaluate "
            f"--data='{shown(base)}[test]'"
        )
    if train == "train" and (others := [n for n in names if n not in (*EVAL_ORDER, train)]):
        notes.append(f"unused splits: {', '.join(others)}")
    if found:
        return Choice(f"{base}[{train}]", f"{base}[{found[0]}]", notes)
    kept, held_out = a_tenth(splits, train)
    return Choice(f"{base}[{kept}]", f"{base}[{held_out}]", notes)


def a_tenth(splits: AllSplits, train: str = "train") -> tuple[str, str]:
    """The training split without a stratified tenth, and that tenth."""
    labels = splits(train).labels
    if labels is None or hidden_ones(labels).any() or last_tenth_is_stratified(labels):
        return f"{train}[:90%]", f"{train}[90%:]"
    return KEPT, HELD_OUT


def own_validation(spec: str, *, data_dir: str | None = None) -> tuple[str, str] | None:
    """The splits for training and validation, if evaluation would be on test data; else None.

    Models must not be selected on test data.
    """
    base, splits, split = open_splits(spec, data_dir)
    names = splits.names()
    if split or "train" not in names or base.startswith("vtab:"):
        return None
    if "validation" in names and not withheld(splits("validation")):
        return None
    return a_tenth(splits)


def default_splits(spec: str, *, data_dir: str | None = None) -> tuple[str, str]:
    """The training and the evaluation split of a data set, as two specs; see `choose_splits`."""
    return choose_splits(spec, data_dir=data_dir)[:2]


def evaluation_spec(spec: str, *, data_dir: str | None = None, watch: bool = False) -> str:
    """The spec itself if it names a split; otherwise with the evaluation split.

    That is the one of `choose_splits`, or the only one.
    """
    base, splits, split = open_splits(spec, data_dir)
    if split:
        return spec
    names = splits.names()
    if not set(names) & set(TRAIN_NAMES):  # evaluation only
        known = [name for name in (EVAL_ORDER[::-1] if watch else EVAL_ORDER) if name in names]
        if known or len(names) == 1:
            return f"{base}[{(known or names)[0]}]"
    return choose_splits(spec, data_dir=data_dir, watch=watch).evaluation


def drop_records(source: Source, exclude: str) -> Without:
    """`source` without the records named in the file `exclude`, one per line."""
    try:
        text = Path(exclude).expanduser().read_bytes().decode("utf-8", "backslashreplace")
    except OSError as error:
        raise UserError(f"Cannot read config.data.exclude={exclude} ({error.strerror}).") from error
    unwanted = {shown(line.strip()) for line in text.splitlines() if line.strip()}
    removed = source.find(unwanted)
    if len(removed) == len(source):
        raise UserError(
            f"config.data.exclude={exclude} removes all {len(source)} records of {source.spec}."
        )
    if unwanted and not len(removed):
        raise UserError(
            f"config.data.exclude={exclude} matches no record of {source.spec}; "
            f"records have names like {source.name(0)!r}."
        )
    return Without(source, removed, missing=len(unwanted) - len(removed))
