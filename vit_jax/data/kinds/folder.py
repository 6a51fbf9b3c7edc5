"""`folder:PATH`: class folders, split folders of class folders, or CSV files."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from vit_jax.data.source import FileSource
from vit_jax.data.splits import SPLIT_NAMES, Splits
from vit_jax.errors import UserError, nearest

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
)


def open_folder(path: str, data_dir: str | None) -> Splits:
    """Class folders, split folders of class folders, or CSV files; classes are read once for all.

    Records are ordered by a hash of their path, so a slice is a random sample of every class.
    """
    root = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(root):
        parent, last = os.path.split(root)
        siblings = os.listdir(parent) if os.path.isdir(parent) else []
        raise UserError(f"There is no folder {root}.{nearest(last, siblings)}")
    if os.path.isfile(root):
        return _open_csv(path, os.path.dirname(root), {"train": root})
    tables = {
        SPLIT_NAMES.get(stem, stem): os.path.join(root, f"{stem}.csv")
        for stem in sorted(Path(file).stem for file in os.listdir(root) if file.endswith(".csv"))
    }
    if tables:
        return _open_csv(path, root, tables)
    folders = _subfolders(root)
    split_folders = {
        SPLIT_NAMES[name.lower()]: name
        for name in folders
        if name.lower() in SPLIT_NAMES and _subfolders(os.path.join(root, name))
    }
    found: dict[str, dict[str, list[str]]] = {}
    for split, folder in (split_folders or {"train": ""}).items():
        base = os.path.join(root, folder)
        found[split] = {
            name: images_below(root, os.path.join(folder, name)) for name in _subfolders(base)
        }
    class_names = sorted({name for classes in found.values() for name in classes})
    if not class_names:
        raise UserError(
            f"{root} has no class folders; it must be FOLDER/CLASS/image.jpg or "
            "FOLDER/train/CLASS/image.jpg, or hold train.csv."
        )
    for split, classes in found.items():
        for name, files in classes.items():
            if not files:
                where = os.path.join(root, split_folders.get(split, ""), name)
                raise UserError(
                    f"The class folder {where} holds no images ({', '.join(sorted(IMAGE_SUFFIXES))}"
                    "); add some or remove the folder."
                )
    position = {name: label for label, name in enumerate(class_names)}
    return Splits(
        f"folder:{path}",
        {
            split: file_source(
                root,
                [(file, position[name]) for name, files in classes.items() for file in files],
                class_names,
                f"folder:{path}[{split}]",
            )
            for split, classes in found.items()
        },
    )


def _subfolders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))


def images_below(root: str, folder: str) -> list[str]:
    """Relative paths of the images in `folder` and below."""
    found = []
    with os.scandir(os.path.join(root, folder)) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = os.path.join(folder, entry.name)
            if entry.is_dir():
                found += images_below(root, path)
            elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES:
                found.append(path)
    return found


def file_source(
    root: str, records: Iterable[tuple[str, int]], class_names: Sequence[str], spec: str
) -> FileSource:
    ordered = sorted(records, key=lambda record: hashlib.md5(record[0].encode()).digest())
    paths = np.array([path for path, _ in ordered], np.str_)
    labels = np.array([label for _, label in ordered], np.int32)
    return FileSource(root, paths, labels, class_names, spec)


PATH_COLUMNS = ("path", "file", "filename", "image")
LABEL_COLUMNS = ("label", "class")


def _open_csv(path: str, root: str, tables: dict[str, str]) -> Splits:
    """One CSV per split, or one with a `split` column; paths are relative to the CSV."""
    rows: dict[str, list[tuple[str, str, str]]] = {}  # split -> (path, label, where)
    for split, file in tables.items():
        with open(file, newline="", encoding="utf-8-sig") as opened:
            reader = csv.DictReader(opened)
            columns = [column.strip() for column in reader.fieldnames or ()]
            reader.fieldnames = columns
            chosen = []
            for options in (PATH_COLUMNS, LABEL_COLUMNS):
                column = next((name for name in options if name in columns), None)
                if column is None:
                    raise UserError(
                        f"{file} needs a column {' or '.join(options)}; "
                        f"it has {', '.join(columns) or 'none'}."
                    )
                chosen.append(column)
            for row in reader:
                of = SPLIT_NAMES.get(row.get("split") or "", row.get("split") or split)
                where = f"{file}, line {reader.line_num}"
                image, label = ((row[column] or "").strip() for column in chosen)
                if not image or not label:
                    raise UserError(f"{where}: an empty path or label.")
                rows.setdefault(of, []).append((image, label, where))
    labels = {label for split in rows.values() for _, label, _ in split}
    if not labels:
        raise UserError(f"{', '.join(tables.values())} has no rows.")
    if all(re.fullmatch(r"-?\d+", label) for label in labels):
        numbers = sorted(map(int, labels))
        if numbers[0] < 0:
            where = next(w for s in rows.values() for _, label, w in s if int(label) < 0)
            raise UserError(f"{where}: the label {numbers[0]} is negative; labels count from 0.")
        class_names = list(map(str, range(numbers[-1] + 1)))
    else:
        class_names = sorted(labels)
    position = {name: number for number, name in enumerate(class_names)}
    for records in rows.values():
        for image, _, where in records:
            if not os.path.isfile(os.path.join(root, image)):
                raise UserError(f"{where}: there is no file {os.path.join(root, image)}.")
    return Splits(
        f"folder:{path}",
        {
            split: file_source(
                root,
                [(image, position[_plain(label)]) for image, label, _ in records],
                class_names,
                f"folder:{path}[{split}]",
            )
            for split, records in rows.items()
        },
    )


def _plain(label: str) -> str:
    return str(int(label)) if re.fullmatch(r"\d+", label) else label
