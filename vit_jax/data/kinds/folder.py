"""`folder:PATH`: class folders, split folders of class folders, or tables that list images."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vit_jax.data import multilabel
from vit_jax.data.image_files import (
    encoded,
    images_below,
    passed_over,
    shown,
    subfolders,
)
from vit_jax.data.kinds import label_table, table
from vit_jax.data.labels import check_case
from vit_jax.data.source import FileSource
from vit_jax.data.splits import Splits, one_each, split_of
from vit_jax.errors import UserError, nearest

#: gs://bucket/data, also as gs:/bucket/data
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def open_folder(
    path: str, data_dir: str | None, options: Mapping[str, str], *, flat: bool = False
) -> Splits:
    """Class folders, split folders of class folders, or tables; all splits share their classes.

    Records are sorted by a hash of their path, so a slice is a random sample of every class.

    Args:
      options: "image", "label" and "split", the columns of a table if named otherwise; "encoding"
        of tables in neither UTF nor Windows-1252; "multilabel" and "separator", see multilabel.py.
      flat: accept images without class folders, in split folders or not, as one class; for
        objectives that read no labels.
    """
    if ADDRESS.match(path):
        raise UserError(f"folder: reads file systems, not {shown(path)}. Mount or copy it.")
    root = os.path.abspath(os.path.expanduser(path))
    query = "&".join(f"{key}={value}" for key, value in options.items())
    base = shown(f"folder:{path}{'?' if query else ''}{query}")
    if not os.path.exists(root):
        if os.path.islink(root):
            raise UserError(f"{shown(root)} is a broken link.")
        parent, last = os.path.split(root)
        siblings = os.listdir(parent) if os.path.isdir(parent) else []
        raise UserError(f"There is no folder {shown(root)}.{nearest(last, map(shown, siblings))}")
    try:
        if os.path.isfile(root):
            return _open_tables(os.path.dirname(root), base, [("train", root)], options, [])
        tables = table.find_tables(root, options, base)
        if tables.files:
            return _open_tables(root, base, tables.files, options, tables.notes)
        problem = next((why for why in tables.passed if isinstance(why, UserError)), None)
        if options:
            raise problem or UserError(
                f"{base}: options are for tables, and {root} has none that lists images and their "
                "labels."
            )
        try:
            return _open_classes(root, base, tables.notes)
        except UserError as error:
            images = _open_flat(root, base, tables.notes) if flat and not problem else None
            if images is None:
                raise (problem or error) from None
            return images
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}).") from error


def _open_tables(
    root: str,
    base: str,
    files: Sequence[tuple[str, str]],
    options: Mapping[str, str],
    notes: Sequence[str],
) -> Splits:
    read = label_table.read_all if multilabel.asked(options, base) else table.read_all
    listed = read(files, options, base, notes)
    return Splits(
        base,
        {
            split: file_source(root, records, listed.class_names, f"{base}[{split}]", listed.notes)
            for split, records in listed.records.items()
        },
    )


def _open_classes(root: str, base: str, notes: Sequence[str]) -> Splits:
    """Class folders, in split folders or not."""
    skipped: Counter = Counter()
    folders = subfolders(root, skipped)
    split_folders = one_each(
        (name for name in folders if subfolders(os.path.join(root, name))), shown(root)
    )
    notes = list(notes)
    if split_folders:
        beside = [shown(name) for name in folders if name not in split_folders.values()]
        if beside:
            used = ", ".join(map(shown, split_folders.values()))
            notes.append(f"skipped beside {used}: {', '.join(beside)} (without class folders)")
    elif len({split_of(name) for name in folders} - {None}) > 1:
        flat = [name for name in folders if split_of(name)]
        raise UserError(
            f"{shown(root)} has {' and '.join(flat)}, which are splits, not classes, and hold "
            "images instead of class folders; make it FOLDER/train/CLASS/image.jpg, or list the "
            "images in FOLDER/train.csv."
        )
    found = {
        split: _classes_below(root, split, folder, skipped)
        for split, folder in (split_folders or {"train": ""}).items()
    }
    for split in [split for split in found if split != "train" and found.get("train")]:
        if found[split] and not set(found[split]) & set(found["train"]):
            notes.append(
                f"skipped the split {split}: its folders ({', '.join(sorted(found[split]))}) "
                "are not classes of train"
            )
            del found[split]
    class_names = sorted({name for classes in found.values() for name in classes})
    if not class_names:
        raise UserError(
            f"{shown(root)} has no class folders; it must be FOLDER/CLASS/image.jpg or "
            "FOLDER/train/CLASS/image.jpg, or hold train.csv."
            + "".join(f" ({line})" for line in passed_over(skipped))
        )
    first = {name: files[0] for classes in found.values() for name, files in classes.items()}
    check_case(class_names, lambda name: shown(os.path.join(root, os.path.dirname(first[name]))))
    notes += passed_over(skipped) + _too_high(base, found)
    position = {name: label for label, name in enumerate(class_names)}
    return Splits(
        base,
        {
            split: file_source(
                root,
                [(file, position[name]) for name, files in classes.items() for file in files],
                class_names,
                f"{base}[{split}]",
                notes,
            )
            for split, classes in found.items()
        },
    )


def _open_flat(root: str, base: str, notes: Sequence[str]) -> Splits | None:
    """All images below a folder, or below its split folders, as one class; None without any."""
    skipped: Counter = Counter()
    folders = one_each(subfolders(root, skipped), shown(root))
    found = {
        split: images_below(root, folder, skipped)
        for split, folder in (folders or {"train": ""}).items()
    }
    if not all(found.values()):
        return None
    name = shown(os.path.basename(root) or root)
    return Splits(
        base,
        {
            split: file_source(
                root,
                [(file, 0) for file in files],
                [name],
                f"{base}[{split}]",
                [*notes, *passed_over(skipped)],
            )
            for split, files in found.items()
        },
    )


def _classes_below(root: str, split: str, folder: str, skipped: Counter) -> dict[str, list[str]]:
    """{class: paths of its images relative to `root`} for the class folders in a folder."""
    names = subfolders(os.path.join(root, folder), skipped if folder else None)
    if folder and len(names) == 1 and split_of(names[0]) == split:  # test_set/test_set/CLASS
        return _classes_below(root, split, os.path.join(folder, names[0]), skipped)
    if folder and names and all(map(split_of, names)):
        raise UserError(
            f"{shown(os.path.join(root, folder))} has {' and '.join(names)} instead of class "
            "folders; use one level of split folders."
        )
    classes: dict[str, list[str]] = {}
    for name in names:
        where, passed = os.path.join(root, folder, name), Counter[str]()
        files = images_below(root, os.path.join(folder, name), passed)
        if not files:
            raise UserError(
                f"The class folder {shown(where)} has no images"
                f"{''.join(f' ({line})' for line in passed_over(passed))}; add some or remove the "
                "folder. Images are .jpg, .png, .webp, .tif and the other formats of Pillow."
            )
        if classes.setdefault(shown(name), files) is not files:
            raise UserError(
                f"{shown(where)} exists twice, in two Unicode forms of its name; merge them."
            )
        skipped.update(passed)
    return classes


def _too_high(base: str, found: Mapping[str, Mapping[str, Sequence[str]]]) -> list[str]:
    """A line if no class has images in its own folder: probably the wrong level was given."""
    inner: dict[str, set[str]] = {}
    for classes in found.values():
        for name, files in classes.items():
            for file in files:
                parts = [shown(part) for part in file.split(os.sep)]
                below = parts[parts.index(name) + 1 :]
                if len(below) == 1:
                    return []
                inner.setdefault(name, set()).add(below[0])
    if any(len(folders) < 2 for folders in inner.values()) and len(inner) > 1:
        return []
    name = min(inner)
    few = ", ".join(sorted(inner[name])[:4]) + (", ..." if len(inner[name]) > 4 else "")
    return [
        f"the images of the class {name!r} are in subfolders ({few}); if those are the classes or "
        f"the splits, give the folder that contains them: {base}/{name}"
    ]


def file_source(
    root: str,
    records: Iterable[tuple[str, table.Numbers]],
    class_names: Sequence[str],
    spec: str,
    notes: Sequence[str] = (),
) -> FileSource:
    """The source of (path below `root`, label or set of labels), sorted by a hash of the paths."""
    ordered = sorted(records, key=lambda record: hashlib.md5(encoded(record[0])).digest())
    paths = np.array([path for path, _ in ordered], np.str_)
    found = [label for _, label in ordered]
    numbers = [label for label in found if isinstance(label, int)]
    if len(numbers) == len(found):
        labels = np.array(numbers, np.int32)
    else:
        several = [None if isinstance(label, int) else label for label in found]
        labels = multilabel.matrix(several, len(class_names), spec)
    return FileSource(root, paths, labels, class_names, spec, notes)
