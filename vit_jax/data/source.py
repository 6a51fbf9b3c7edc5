"""Data sets as random-access sources: len(s), s[i] -> {"image", "label", "name"}.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from typing import NotRequired, Protocol, TypedDict

import numpy as np

from vit_jax.data.image_files import encoded, read_image_file, shown
from vit_jax.errors import UserError

#: An encoded file, or pixels (h, w[, c]) uint8.
Stored = bytes | np.ndarray


class Record(TypedDict):
    """A record of a source. label: class index; for multi-label data (k,) int8, see multilabel.py.

    exif: whether EXIF orientation may be applied; default True.
    """

    image: Stored
    label: int | np.ndarray
    name: str
    exif: NotRequired[bool]


class Source(Protocol):
    """Random access to picklable records, in any order and any number of times.

    By default records are named by their index in the source. A withheld label is NO_LABEL.

    labels: of all records, (n,) or, if `multilabel`, (n, k), where known without reading records;
      otherwise None.
    notes: for the plan, such as skipped files.
    """

    spec: str
    num_classes: int
    class_names: tuple[str, ...]
    fingerprint: str
    labels: np.ndarray | None = None
    multilabel: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record: ...

    def names(self) -> list[str]:
        """The names of all records, without reading any image."""
        return [f"{self.spec}/{i}" for i in range(len(self))]

    def name(self, index: int) -> str:
        """The name of one record."""
        return self[index]["name"]

    def find(self, names: set[str]) -> np.ndarray:
        """Indices of the records with one of `names`, in order."""
        return np.array([i for i, name in enumerate(self.names()) if name in names], np.int64)

    def origins(self) -> list[tuple[str, np.ndarray]]:
        """Where its records are stored: (name of the store, indices there), in order."""
        return [(self.fingerprint, np.arange(len(self)))]

    def holds(self, store: str, numbers: np.ndarray) -> np.ndarray:
        """Which of these records of a store this source contains, (n,) bool."""
        found = np.zeros(len(numbers), bool)
        for name, own in self.origins():
            if name == store:
                found |= np.isin(numbers, own)
        return found

    def __repr__(self) -> str:
        return f"{self.spec} ({len(self)} examples, {self.fingerprint})"


class ArraySource(Source):
    """Images in memory: (n, h, w[, c]) uint8 and integer labels (n,) or (n, k) of 0, 1."""

    labels: np.ndarray

    def __init__(
        self,
        images: np.ndarray,
        labels: Sequence[int] | np.ndarray,
        class_names: Sequence[str] | None = None,
        *,
        spec: str = "arrays",
        names: Sequence[str] | np.ndarray | None = None,
    ):
        self.images, self.multilabel = np.asarray(images), np.ndim(labels) == 2
        self.labels = np.asarray(labels, np.int8 if self.multilabel else np.int32)
        if len(self.images) != len(self.labels):
            raise UserError(f"{spec}: {len(self.images)} images but {len(self.labels)} labels.")
        last = self.labels.max(initial=-1)
        count = self.labels.shape[1] if self.multilabel else int(last) + 1
        self.class_names = tuple(class_names or map(str, range(count)))
        self.keys = np.asarray(names if names is not None else range(len(self.labels)), np.str_)
        self.spec, self.num_classes = spec, len(self.class_names)
        self.fingerprint = digest(self.images.tobytes(), self.labels.tobytes())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        return {
            "image": self.images[index],
            "label": self.labels[index] if self.multilabel else int(self.labels[index]),
            "name": f"{self.spec}/{self.keys[index]}",
        }

    def names(self) -> list[str]:
        return [f"{self.spec}/{key}" for key in self.keys]


class FileSource(Source):
    """Image files below a folder, by relative path and label; read lazily."""

    labels: np.ndarray

    def __init__(
        self,
        root: str,
        paths: np.ndarray,
        labels: np.ndarray,
        class_names: Sequence[str],
        spec: str,
        notes: Sequence[str] = (),
    ):
        self.root, self.paths, self.labels = root, paths, labels
        self.multilabel = labels.ndim == 2
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.spec, self.notes = spec, tuple(notes)
        self.fingerprint = digest(encoded("\n".join(paths)), labels.tobytes())

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Record:
        path = str(self.paths[index])
        try:
            data = read_image_file(os.path.join(self.root, path))
        except OSError as error:
            raise UserError(
                f"The image {shown(os.path.join(self.root, path))} cannot be read "
                f"({error.strerror})."
            ) from error
        label = self.labels[index] if self.multilabel else int(self.labels[index])
        return {"image": data, "label": label, "name": shown(path)}

    def names(self) -> list[str]:
        return [shown(str(path)) for path in self.paths]

    def name(self, index: int) -> str:
        return shown(str(self.paths[index]))

    def origins(self) -> list[tuple[str, np.ndarray]]:
        paths = (os.path.realpath(os.path.join(self.root, path)) for path in self.paths)
        hashes = (hashlib.md5(os.fsencode(path)).digest()[:8] for path in paths)
        return [("files", np.frombuffer(b"".join(hashes), np.int64))]


class Rows(Protocol):
    """A table by rows: {column: value}."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict: ...


class TableSource(Source):
    """A TFDS or Hugging Face table: rows by index, and a function that finds image and label."""

    def __init__(
        self,
        rows: Rows,
        read: Callable[[dict], tuple[Stored, int | np.ndarray]],
        class_names: Sequence[str],
        *,
        spec: str,
        version: str,
        stored: Sequence[tuple[str, range]] = (),
        labels: np.ndarray | None = None,
        notes: Sequence[str] = (),
        exif: bool = False,
        multilabel: bool = False,
    ):
        """stored: the stores of the rows, and their indices there; (): a store of its own.

        exif: whether EXIF orientation applies, as in `datasets`; not in TFDS.
        """
        self.rows, self.read, self.stored, self.exif = rows, read, tuple(stored), exif
        self.class_names, self.num_classes = tuple(class_names), len(class_names)
        self.spec, self.labels, self.notes = spec, labels, tuple(notes)
        self.multilabel = multilabel
        self.fingerprint = digest(f"{spec} {version} {len(rows)}".encode())

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Record:
        image, label = self.read(self.rows[int(index)])
        return {"image": image, "label": label, "name": self.name(index), "exif": self.exif}

    def name(self, index: int) -> str:
        return f"{self.spec}/{int(index)}"

    def find(self, names: set[str]) -> np.ndarray:
        # Names are indices: parsing the wanted ones avoids building all names.
        prefix = f"{self.spec}/"
        rows = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        numbers = {int(row) for row in rows if row.isdecimal() and str(int(row)) == row}
        return np.array(sorted(n for n in numbers if n < len(self)), np.int64)

    def origins(self) -> list[tuple[str, np.ndarray]]:
        if not self.stored:
            return super().origins()
        return [(store, np.arange(rows.start, rows.stop)) for store, rows in self.stored]

    def holds(self, store: str, numbers: np.ndarray) -> np.ndarray:
        mine = self.stored or ((self.fingerprint, range(len(self))),)
        found = np.zeros(len(numbers), bool)
        for name, rows in mine:  # without an array of all rows: there may be 300 million
            if name == store:
                found |= (numbers >= rows.start) & (numbers < rows.stop)
        return found


class Subset(Source):
    """Some records of a source, in a given order."""

    def __init__(self, source: Source, indices: np.ndarray, spec: str):
        self.source, self.indices, self.spec = source, np.asarray(indices, np.int64), spec
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self.notes, self.multilabel = source.notes, source.multilabel
        self.fingerprint = digest(source.fingerprint.encode(), self.indices.tobytes())

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Record:
        return self.source[int(self.indices[index])]

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]  # computed, not stored
        return None if self.source.labels is None else self.source.labels[self.indices]

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))

    def names(self) -> list[str]:
        inner = self.source.names()
        return [inner[i] for i in self.indices]

    def origins(self) -> list[tuple[str, np.ndarray]]:
        stores, starts = self.source.origins(), 0
        found = []
        for store, numbers in stores:
            mine = self.indices[(self.indices >= starts) & (self.indices < starts + len(numbers))]
            found.append((store, numbers[mine - starts]))
            starts += len(numbers)
        return found


class Without(Source):
    """A source without some records; stores the removed indices, not the remaining ones.

    removed: their indices in the source, (r,) int64, sorted, unique.
    missing: number of names to remove that the source does not have.
    """

    def __init__(self, source: Source, removed: np.ndarray, missing: int = 0):
        self.removed, self.missing = removed, missing
        self.source, self.spec, self.notes = source, source.spec, source.notes
        self.class_names, self.num_classes = source.class_names, source.num_classes
        self.multilabel = source.multilabel
        # The number of remaining records before each gap.
        self.left_before = removed - np.arange(len(removed))
        self.fingerprint = digest(source.fingerprint.encode(), b"without", removed.tobytes())

    def __len__(self) -> int:
        return len(self.source) - len(self.left_before)

    def position(self, index: int) -> int:
        """The index in the source of the `index`-th remaining record."""
        return int(index) + int(np.searchsorted(self.left_before, index, side="right"))

    def __getitem__(self, index: int) -> Record:
        return self.source[self.position(index)]

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]  # computed, not stored
        found = self.source.labels
        return None if found is None else np.delete(found, self.removed, axis=0)

    def name(self, index: int) -> str:
        return self.source.name(self.position(index))

    def names(self) -> list[str]:
        inner = self.source.names()
        return [inner[self.position(i)] for i in range(len(self))]

    def origins(self) -> list[tuple[str, np.ndarray]]:
        left = np.delete(np.arange(len(self.source)), self.removed)
        return Subset(self.source, left, self.spec).origins()

    def holds(self, store: str, numbers: np.ndarray) -> np.ndarray:
        gone = Subset(self.source, self.removed, self.spec).holds(store, numbers)
        return self.source.holds(store, numbers) & ~gone


class Union(Source):
    """Several sources of the same classes, one after the other."""

    def __init__(self, sources: Sequence[Source], spec: str):
        self.sources, self.spec, self.multilabel = list(sources), spec, sources[0].multilabel
        self.class_names, self.num_classes = sources[0].class_names, sources[0].num_classes
        self.notes = tuple(dict.fromkeys(note for source in sources for note in source.notes))
        self.ends = np.cumsum([len(source) for source in sources])
        self.fingerprint = digest(*(source.fingerprint.encode() for source in sources))

    def __len__(self) -> int:
        return int(self.ends[-1])

    def find_part(self, index: int) -> tuple[Source, int]:
        """The source of a record, and the record's index there."""
        which = int(np.searchsorted(self.ends, index, side="right"))
        return self.sources[which], int(index) - (int(self.ends[which - 1]) if which else 0)

    def __getitem__(self, index: int) -> Record:
        source, number = self.find_part(index)
        return source[number]

    @property
    def labels(self) -> np.ndarray | None:  # type: ignore[override]  # computed, not stored
        parts = (source.labels for source in self.sources)
        found = [labels for labels in parts if labels is not None]
        return np.concatenate(found) if len(found) == len(self.sources) else None

    def name(self, index: int) -> str:
        source, number = self.find_part(index)
        return source.name(number)

    def names(self) -> list[str]:
        return [name for part in self.sources for name in part.names()]

    def find(self, names: set[str]) -> np.ndarray:
        starts = [0, *self.ends[:-1]]
        parts = zip(starts, self.sources, strict=True)
        return np.concatenate([start + part.find(names) for start, part in parts])

    def origins(self) -> list[tuple[str, np.ndarray]]:
        return [origin for part in self.sources for origin in part.origins()]

    def holds(self, store: str, numbers: np.ndarray) -> np.ndarray:
        return np.logical_or.reduce([part.holds(store, numbers) for part in self.sources])


def shared_records(train: Source, evaluation: Source) -> int:
    """Number of records of the second that are also in the first, by where they are stored."""
    return sum(int(train.holds(*origin).sum()) for origin in evaluation.origins())


def digest(*parts: bytes) -> str:
    """A short hash of bytes."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
        found.update(b"\0")
    return found.hexdigest()[:16]
