"""Data sets as random-access sources: len(s), s[i] -> {"image", "label", "name"}.

A spec names one: `digits[train]`, `folder:PATH[test]`, `tfds:NAME[train[:98%]]`,
`vtab:TASK[train800val200]`, `hf:ORG/NAME[validation]`. The split is in TFDS syntax. Nothing here
imports TensorFlow.
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vit_jax.data.kinds import vtab
from vit_jax.errors import UserError, nearest

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jfif")
)
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
EVAL_ORDER = ("test", "validation")


class Source(Protocol):
    """What the pipeline reads: picklable, any order, any number of times."""

    spec: str
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> dict[str, Any]: ...


class ArraySource:
    """Images that are in memory: (n, h, w[, c]) uint8 and integer labels (n,)."""

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int],
        class_names: Sequence[str] | None = None,
        *,
        spec: str = "arrays",
        names: Sequence[str] | np.ndarray | None = None,
    ):
        self.images, self.labels = np.asarray(images), np.asarray(labels, np.int32)
        if len(self.images) != len(self.labels):
            raise UserError(f"{spec}: {len(self.images)} images but {len(self.labels)} labels.")
        count = int(self.labels.max(initial=-1)) + 1
        self.class_names = tuple(class_names or map(str, range(count)))
        self.names = np.asarray(names if names is not None else range(len(self.labels)), np.str_)
        self.spec, self.num_classes = spec, len(self.class_names)
        self.fingerprint = digest(self.images.tobytes(), self.labels.tobytes())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "label": int(self.labels[index]),
            "name": f"{self.spec}/{self.names[index]}",
        }

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


class FileSource:
    """Image files below a folder: their relative paths and labels, read when they are asked for."""

    def __init__(
        self,
        root: str,
        paths: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        spec: str,
    ):
        self.root, self.paths, self.labels = root, paths, labels
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.spec = spec
        self.fingerprint = digest("\n".join(paths).encode(), labels.tobytes())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        path = str(self.paths[index])
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                data = file.read()
        except OSError as error:
            raise UserError(
                f"The image {os.path.join(self.root, path)} cannot be read ({error.strerror})."
            ) from error
        return {"image": data, "label": int(self.labels[index]), "name": path}

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


class TableSource:
    """A TFDS or Hugging Face table: rows by number, with functions that find image and label."""

    def __init__(
        self,
        rows: Any,
        read: Callable[[Any], tuple[Any, int]],
        class_names: Sequence[str],
        *,
        spec: str,
        version: str,
    ):
        self.rows, self.read = rows, read
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.spec = spec
        self.fingerprint = digest(f"{spec} {version} {len(rows)}".encode())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        image, label = self.read(self.rows[int(index)])
        return {"image": image, "label": label, "name": f"{self.spec}/{int(index)}"}

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


class Subset:
    """Some records of a source, in a given order."""

    def __init__(self, source: Any, indices: np.ndarray, spec: str):
        self.source, self.indices, self.spec = source, np.asarray(indices, np.int64), spec
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self.fingerprint = digest(source.fingerprint.encode(), self.indices.tobytes())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[int(self.indices[index])]

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


class Without:
    """A source without some of its records; it keeps the few that are gone, not the many left.

    removed: their numbers in the source, (r,) int64, in order, each once.
    """

    def __init__(self, source: Any, removed: np.ndarray):
        self.source, self.spec = source, source.spec
        self.class_names, self.num_classes = source.class_names, source.num_classes
        # Of the records left, how many come before each gap.
        self.left_before = removed - np.arange(len(removed))
        self.fingerprint = digest(source.fingerprint.encode(), b"without", removed.tobytes())

    def __len__(self) -> int:
        return len(self.source) - len(self.left_before)

    def position(self, index: int) -> int:
        """The number in the source of the `index`-th record that is left."""
        return int(index) + int(np.searchsorted(self.left_before, index, side="right"))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.source[self.position(index)]

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


def digest(*parts: bytes) -> str:
    """A fingerprint of some bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:16]


# --- specs and splits ---------------------------------------------------------------------------


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


def slice_split(split: str, sizes: dict[str, int], spec: str) -> list[tuple[str, range]]:
    """ "train[:90%]+test" as [("train", range(...)), ("test", range(...))].

    Bounds are percents or counts and may be negative, as in TFDS; percents are rounded.

    Raises:
      UserError: no such split, or bounds that make no sense.
    """
    parts = []
    for part in split.split("+"):
        match = re.fullmatch(r"\s*(\w+)\s*(?:\[(-?\d+%?)?:(-?\d+%?)?\])?\s*", part)
        if not match:
            raise UserError(f"{spec}: the split {part!r} is not NAME or NAME[a:b] (with % or not).")
        name = match[1] if match[1] in sizes else SPLIT_NAMES.get(match[1], match[1])
        if name not in sizes:
            raise UserError(
                f"{spec} has no split {match[1]!r}; there are {', '.join(sizes)}."
                f"{nearest(match[1], sizes)}"
            )
        size = sizes[name]

        def bound(text: str | None, default: int, size: int = size) -> int:
            if text is None:
                return default
            value = round(int(text[:-1]) / 100 * size) if text.endswith("%") else int(text)
            return min(max(value + size if value < 0 else value, 0), size)

        parts.append((name, range(bound(match[2], 0), bound(match[3], size))))
    return parts


def open_source(spec: str, *, data_dir: str | None = None, exclude: str | None = None) -> Any:
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


def drop_records(source: Any, exclude: str) -> Without:
    """`source` without the records that the file `exclude` names, one a line."""
    try:
        unwanted = {line.strip() for line in Path(exclude).read_text().splitlines() if line.strip()}
    except OSError as error:
        raise UserError(f"Cannot read config.data.exclude={exclude} ({error.strerror}).") from error
    removed = positions(source, unwanted)
    if unwanted and not len(removed):
        raise UserError(
            f"config.data.exclude={exclude} names no record of {source.spec}; "
            f"records have names like {source[0]['name']!r}."
        )
    return Without(source, removed)


def positions(source: Any, names: set[str]) -> np.ndarray:
    """Numbers of the records that have one of `names`, in order; memory for those alone."""
    if isinstance(source, Union):
        starts = [0, *source.ends[:-1]]
        parts = zip(starts, source.sources, strict=True)
        return np.concatenate([start + positions(part, names) for start, part in parts])
    if isinstance(source, TableSource):  # its names are numbers, which are read instead of made
        prefix = f"{source.spec}/"
        rows = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        numbers = {int(row) for row in rows if row.isdecimal() and str(int(row)) == row}
        return np.array(sorted(n for n in numbers if n < len(source)), np.int64)
    found = [i for i, name in enumerate(record_names(source)) if name in names]
    return np.array(found, np.int64)


def record_names(source: Any) -> list[str]:
    """The names of all records, without reading any image where the source knows them."""
    if isinstance(source, Without):
        inner = record_names(source.source)
        return [inner[source.position(i)] for i in range(len(source))]
    if isinstance(source, Subset):
        inner = record_names(source.source)
        return [inner[i] for i in source.indices]
    if isinstance(source, Union):
        return [name for part in source.sources for name in record_names(part)]
    if isinstance(source, FileSource):
        return [str(path) for path in source.paths]
    if isinstance(source, ArraySource):
        return [f"{source.spec}/{name}" for name in source.names]
    return [f"{source.spec}/{i}" for i in range(len(source))]


class Splits:
    """The named splits of a data set: call it with a split expression to get a source."""

    def __init__(self, base: str, splits: dict[str, Any]):
        self.base, self.splits = base, splits

    def names(self) -> list[str]:
        return list(self.splits)

    def __call__(self, split: str) -> Any:
        sizes = {name: len(source) for name, source in self.splits.items()}
        parts = slice_split(split, sizes, self.base)
        pieces = [
            Subset(self.splits[name], np.arange(rows.start, rows.stop), f"{self.base}[{split}]")
            for name, rows in parts
        ]
        if len(pieces) == 1:
            name, rows = parts[0]
            whole = self.splits[name]
            return whole if len(rows) == len(whole) else pieces[0]
        return Union(pieces, f"{self.base}[{split}]")


class Union:
    """Several sources of the same classes, one after the other."""

    def __init__(self, sources: Sequence[Any], spec: str):
        self.sources, self.spec = list(sources), spec
        self.class_names, self.num_classes = sources[0].class_names, sources[0].num_classes
        self.ends = np.cumsum([len(source) for source in sources])
        self.fingerprint = digest(*(source.fingerprint.encode() for source in sources))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        which = int(np.searchsorted(self.ends, index, side="right"))
        start = int(self.ends[which - 1]) if which else 0
        return self.sources[which][int(index) - start]

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


# --- digits -------------------------------------------------------------------------------------


def open_digits(name: str, data_dir: str | None) -> Splits:
    """scikit-learn's 1,797 handwritten digits, 8x8: every fifth is a test digit, 360 in all."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.repeat((digits.images * 255 / 16).round().astype(np.uint8)[..., None], 3, axis=-1)
    labels = digits.target.astype(np.int32)
    is_test = np.arange(len(labels)) % 5 == 0
    names = tuple(map(str, range(10)))
    return Splits(
        "digits",
        {
            split: ArraySource(
                images[rows],
                labels[rows],
                names,
                spec=f"digits[{split}]",
                names=np.flatnonzero(rows).astype(str),
            )
            for split, rows in (("train", ~is_test), ("test", is_test))
        },
    )


# --- folders and CSV files ----------------------------------------------------------------------


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


# --- TFDS ---------------------------------------------------------------------------------------


class TfdsSplits:
    """The splits of a prepared TFDS data set, read from ArrayRecord without TensorFlow."""

    def __init__(self, name: str, data_dir: str | None):
        import tensorflow_datasets as tfds

        self.tfds, self.name = tfds, name
        self.base = f"tfds:{name}"
        where = os.path.expanduser(
            data_dir or os.environ.get("TFDS_DATA_DIR") or tfds.core.constants.DATA_DIR
        )
        try:
            self.builder = tfds.builder(name, data_dir=data_dir)
        except Exception as error:
            raise UserError(
                f"There is no prepared TFDS data set {name!r} in {where}; "
                f"run `vit-jax prepare tfds:{name}`, or set config.data.data_dir."
            ) from error
        if not self.builder.info.splits:
            raise UserError(
                f"The TFDS data set {name!r} is not prepared in {where}; "
                f"run `vit-jax prepare tfds:{name}`, or set config.data.data_dir."
            )
        use_array_record(self.builder.info)
        keys = self.builder.info.supervised_keys or ("image", "label")
        self.image_key, self.label_key = keys[0], keys[1]

    def names(self) -> list[str]:
        return list(self.builder.info.splits)

    def __call__(self, split: str) -> TableSource:
        spec, info = f"{self.base}[{split}]", self.builder.info
        rows = self.rows(split)
        feature: Any = dict(info.features.items()).get(self.label_key)
        if not getattr(feature, "num_classes", None):
            raise UserError(
                f"{spec} has no class label {self.label_key!r}; it has {', '.join(info.features)}."
            )
        names = getattr(feature, "names", None) or list(map(str, range(feature.num_classes)))
        read = Columns(self.image_key, self.label_key)
        return TableSource(rows, read, names, spec=spec, version=str(info.version))

    def rows(self, split: str) -> Any:
        """The records of a split as they are stored, images still encoded."""
        spec, info = f"{self.base}[{split}]", self.builder.info
        for part in re.split(r"\+", re.sub(r"\[[^\]]*\]", "", split)):
            if part.strip() not in info.splits:
                raise UserError(
                    f"{spec}: there is no split {part.strip()!r}; there are "
                    f"{', '.join(info.splits)}.{nearest(part, info.splits)}"
                )
        encoded = {
            key: self.tfds.decode.SkipDecoding()
            for key, feature in info.features.items()
            if isinstance(feature, self.tfds.features.Image)
        }
        try:
            rows = self.builder.as_data_source(split, decoders=encoded)
        except NotImplementedError as error:
            raise UserError(
                f"{spec} is stored as TFRecord, which needs TensorFlow to read; "
                f"run `vit-jax prepare tfds:{self.name}` once to convert it to ArrayRecord."
            ) from error
        check_shards(self.instructions(split), spec)
        return rows

    def instructions(self, split: str) -> Iterable[Any]:
        """The ArrayRecord files of a split, and how many records each should hold."""
        return self.builder.info.splits[split].file_instructions


def use_array_record(info: Any) -> bool:
    """Makes TFDS read ArrayRecord where a data set is stored in several formats, if it is one."""
    # Builders that TFDS has code for forget the alternative formats of dataset_info.json.
    formats = {info.file_format.value, *info.as_proto.alternative_file_formats}
    if "array_record" in formats and info.file_format.value != "array_record":
        info.set_file_format("array_record", override=True, override_if_initialized=True)
    return "array_record" in formats


def check_shards(instructions: Iterable[Any], spec: str) -> None:
    """Raises UserError for a local ArrayRecord file that is missing or holds other than promised.

    TFDS believes its metadata, so a truncated file would fail in the middle of a run.
    """
    from array_record.python import array_record_module

    for shard in instructions:
        file = str(shard.filename)
        if "://" in file:
            continue
        try:
            reader = array_record_module.ArrayRecordReader(file)
            held = reader.num_records()
            reader.close()
        except Exception as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{spec}: {file} cannot be read ({reason}); prepare it again."
            ) from error
        if held != shard.examples_in_shard:
            raise UserError(
                f"{spec}: {file} should hold {shard.examples_in_shard} examples and holds {held}; "
                "prepare the data set again."
            )


class Columns:
    """Picks image and label out of a row; picklable."""

    def __init__(self, image: str, label: str):
        self.image, self.label = image, label

    def __call__(self, row: dict) -> tuple[Any, int]:
        image = row[self.image]
        if isinstance(image, dict):  # Hugging Face: {"bytes": ..., "path": ...}
            image = image["bytes"] or Path(image["path"]).read_bytes()
        return image, int(row[self.label])


# --- VTAB-1k ------------------------------------------------------------------------------------


def open_vtab(name: str, data_dir: str | None) -> Splits:
    """A task of VTAB-1k by its name, from the TFDS data set that it takes its examples of."""
    task = vtab.find_task(name)
    stored = TfdsSplits(task.dataset, data_dir)
    missing = {"train", task.validation[0], task.test[0]} - set(stored.names())
    if missing:
        raise UserError(
            f"vtab:{name}: tfds:{task.dataset} has no split {', '.join(sorted(missing))}; "
            "prepare it again."
        )
    version, names = str(stored.builder.info.version), None
    if isinstance(task.label, str):
        names = getattr(stored.builder.info.features[task.label], "names", None)
    names = names or list(map(str, range(task.num_classes)))
    if len(names) != task.num_classes:
        raise UserError(
            f"vtab:{name}: tfds:{task.dataset} {version} has {len(names)} classes and the "
            f"benchmark {task.num_classes}; prepare the version of the benchmark."
        )
    read, opened = vtab.ReadExample(name), {}

    def table(split: str) -> TableSource:
        if split not in opened:
            opened[split] = TableSource(
                stored.rows(split),
                read,
                names,
                spec=f"tfds:{task.dataset}[{split}]",
                version=version,
            )
        return opened[split]

    splits: dict[str, Any] = {}
    sizes = {split: info.num_examples for split, info in stored.builder.info.splits.items()}
    for split, parts in vtab.ranges(task, sizes).items():
        spec = f"vtab:{name}[{split}]"
        pieces = [
            Subset(table(part), np.arange(rows.start, rows.stop), spec) for part, rows in parts
        ]
        splits[split] = pieces[0] if len(pieces) == 1 else Union(pieces, spec)
    return Splits(f"vtab:{name}", splits)


# --- Hugging Face -------------------------------------------------------------------------------


def open_hf(name: str, data_dir: str | None) -> Splits:
    """A data set of the Hugging Face hub (its cache serves offline) or a local directory of one."""
    try:
        import datasets
    except ImportError:
        raise UserError("hf: data needs the extra packages: pip install 'vit_jax[hf]'.") from None
    try:
        if os.path.isdir(name) and not os.path.exists(os.path.join(name, "dataset_dict.json")):
            splits = datasets.load_dataset(name)
        elif os.path.isdir(name):
            splits = datasets.load_from_disk(name)
        else:
            splits = datasets.load_dataset(name)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"hf:{name} cannot be loaded ({reason}).") from error
    opened = {}
    for split, table in splits.items():
        features = table.features
        image = next((k for k, f in features.items() if isinstance(f, datasets.Image)), None)
        label = next((k for k, f in features.items() if isinstance(f, datasets.ClassLabel)), None)
        if image is None or label is None:
            raise UserError(
                f"hf:{name} needs an image column and a class-label column; "
                f"it has {', '.join(f'{key} ({type(f).__name__})' for key, f in features.items())}."
            )
        rows = table.cast_column(image, datasets.Image(decode=False))
        key = SPLIT_NAMES.get(split, split)
        opened[key] = TableSource(
            rows,
            Columns(image, label),
            features[label].names,
            spec=f"hf:{name}[{key}]",
            version=str(table._fingerprint),
        )
    return Splits(f"hf:{name}", opened)


KINDS: dict[str, Callable[[str, str | None], Any]] = {
    "digits": open_digits,
    "folder": open_folder,
    "tfds": TfdsSplits,
    "vtab": open_vtab,
    "hf": open_hf,
}
