"""From a source to batches, with Grain. The order of operations makes resuming exact.

Shuffle, repeat and augment come first and depend on the global record index alone; then each host
takes its rows of every global batch. So a batch is a function of (seed, step), independent of the
number of hosts, threads and workers, and seeking to any step is free.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np

from vit_jax.data import workers
from vit_jax.data.labels import NO_LABEL
from vit_jax.data.source import Record, Source
from vit_jax.data.transforms import Transform
from vit_jax.errors import UserError

Example = dict[str, np.ndarray | np.generic]
Batch = dict[str, np.ndarray]
#: An int32; for multi-label data (k,) int8.
Label = np.int32 | np.ndarray
#: Seconds without a batch after which the input is declared hung.
TIMEOUT = 300.0
#: Seconds within which a closed pipeline must end.
CLOSING = 5.0


def read(
    source: Source,
    index: int,
    transform: Transform,
    rng: np.random.Generator | None = None,
    *,
    labelled: bool = True,
) -> tuple[np.ndarray, Label]:
    """Decodes and transforms a record: image (h, w, 3) uint8 and label.

    labelled: False: the label may be withheld.

    Raises:
      UserError: it cannot be read or decoded, or its label is invalid; names the record.
    """
    record = source[index]
    label = label_of(record, source.num_classes, labelled)
    exif = record.get("exif", True)  # whether EXIF orientation applies in this source
    return transform.read(record["image"], record["name"], rng, exif=exif), label


def label_of(record: Record, num_classes: int, labelled: bool = True) -> Label:
    """The label of a record, or (k,) of several; a UserError names the record if it is invalid."""
    label = record["label"]
    hidden = not labelled and np.all(np.equal(label, NO_LABEL))
    if isinstance(label, np.ndarray):
        if not hidden and (label.shape != (num_classes,) or not np.isin(label, (0, 1)).all()):
            raise UserError(
                f"The record {record['name']} has labels for {num_classes} classes that are "
                "withheld, or not 0 or 1."
            )
        return label.astype(np.int8)
    if not hidden and (label is None or not 0 <= label < num_classes):
        raise UserError(
            f"The record {record['name']} has the label {label}, outside 0..{num_classes - 1}."
        )
    return np.int32(label)


class BadImages:
    """Called with the error of an unreadable record: prints each once, up to a limit.

    setting: the name of the limit.

    Raises:
      UserError: there are more than `limit`.
    """

    def __init__(self, limit: int, setting: str = "config.data.max_bad_images"):
        self.limit, self.setting, self.messages = limit, setting, set[str]()

    def __call__(self, message: str) -> None:
        if message in self.messages:
            return
        self.messages.add(message)
        if len(self.messages) > self.limit:
            raise UserError(
                f"{message} Set {self.setting}={len(self.messages)} to continue without it "
                f"(it is {self.limit})."
            )
        print(f"skipped ({len(self.messages)} of at most {self.limit}): {message}", flush=True)


#: Consecutive unreadable records after which the data set, not a record, is at fault.
IN_A_ROW = 100


class _Example(grain.transforms.RandomMap):
    """Reads, decodes, augments and checks the training record of an index.

    tolerant: an unreadable record is replaced by the next readable one, and its index is returned
    as "unread" (otherwise -1). So a batch stays a function of (seed, step).
    """

    def __init__(self, source: Source, transform: Transform, tolerant: bool):
        self.source, self.transform, self.tolerant = source, transform, tolerant

    def random_map(self, index: int, rng: np.random.Generator) -> Example:
        if not self.tolerant:
            image, label = read(self.source, index, self.transform, rng)
            return {"image": image, "label": label}
        for distance in range(IN_A_ROW):
            try:
                other = (index + distance) % len(self.source)
                image, label = read(self.source, other, self.transform, rng)
            except UserError as error:
                problem = error
                continue
            return {
                "image": image,
                "label": label,
                "unread": np.int64(index if distance else -1),
            }
        raise UserError(f"{IN_A_ROW} consecutive records cannot be read; the last: {problem}")


class _Balanced(grain.transforms.MapWithIndex):
    """Balanced sampling: draw d is of class d mod k, for the k classes that have records.

    Each class is shuffled separately, and all its records are drawn before any repeats. An epoch
    is n draws for n records, reshuffled: about n / k of every class.
    """

    def __init__(self, source: Source, seed: int):
        """source: its labels are known, (n,)."""
        assert source.labels is not None and source.labels.ndim == 1
        self.size = len(source)
        order = np.argsort(source.labels, kind="stable")
        starts = np.flatnonzero(np.diff(source.labels[order], prepend=-1))
        self.records = np.split(order, starts[1:])
        seeds = np.random.SeedSequence(seed).generate_state(len(self.records))
        self.orders = [
            grain.MapDataset.range(len(mine)).seed(int(own)).shuffle().repeat(None)
            for mine, own in zip(self.records, seeds, strict=True)
        ]

    def map_with_index(self, index: int, element: int) -> int:
        draw = index // self.size * self.size + element
        number, which = divmod(draw, len(self.records))
        return int(self.records[which][self.orders[which][number]])


class _HostRows(grain.MapDataset):
    """The rows of every global batch that this host feeds to its devices."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: np.ndarray):
        super().__init__(parent)
        self.batch_size, self.rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * len(self.rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self.rows))
        return self._parent[batch * self.batch_size + int(self.rows[row])]


def batches_ahead(num_threads: int) -> int:
    """Maximum number of prefetched batches in a pipeline, which bounds its memory."""
    return _buffer(num_threads) + 2  # plus one in the queue and one held by the feeder


def _buffer(num_threads: int) -> int:
    """Batches in Grain's prefetch buffer, in progress or done."""
    return max(2, 2 * num_threads)


def train_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    rows: np.ndarray | None = None,
    num_threads: int = 4,
    num_workers: int = 0,
    on_bad: Callable[[str], None] | None = None,
    balanced: bool = False,
) -> Batches:
    """Endless training batches of this host: "image" (b, h, w, 3) uint8, "label" (b,) int32.

    Multi-label data have labels (b, k) int8, 1 for each class of an image.

    Args:
      transform: from `make_transform`.
      batch_size: global.
      rows: (b,), the rows of each batch that this host feeds; None: all of them.
      start_step: the step of the first batch; seeking is free.
      num_threads: each works on one batch; up to `batches_ahead` are held in memory.
      num_workers: additional processes; threads are enough below about eight cores.
      on_bad: called with the error of an unreadable record, which is replaced by the next readable
        one; None: raise it.
      balanced: draw every class equally often, see `_Balanced`.

    Raises:
      UserError: while iterating, a bad record.
    """
    rows = np.arange(batch_size) if rows is None else rows
    dataset = grain.MapDataset.range(len(source)).seed(seed).shuffle().repeat(None)
    if balanced:
        dataset = dataset.map_with_index(_Balanced(source, seed))
    dataset = dataset.random_map(_Example(source, transform, on_bad is not None))
    dataset = _HostRows(dataset, batch_size, rows)
    dataset = dataset.batch(len(rows), drop_remainder=True)[start_step:]
    stream = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=_buffer(num_threads))
    )
    if num_workers:
        workers.mark_flags_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
            worker_init_fn=workers.protect,
        )
    if on_bad is None:
        return Batches(stream, num_workers=num_workers)

    def report(batch: Batch) -> None:
        for index in batch.pop("unread"):
            if index >= 0:  # read again here: the error stayed in the worker
                try:
                    read(source, int(index), transform, np.random.default_rng(0))
                    on_bad(f"Record {int(index)} of {source.spec} could not be read once.")
                except UserError as error:
                    on_bad(str(error))

    return Batches(stream, report, num_workers)


class Batches(Iterator[Batch]):
    """An iterator with `close`. Errors in a record are re-raised as they were.

    A feeder thread prefetches one batch; it also bounds the wait for workers that hang.
    """

    def __init__(
        self,
        stream: grain.IterDataset,
        report: Callable[[Batch], None] = lambda batch: None,
        num_workers: int = 0,
    ):
        """report: called with each batch before it is returned."""
        self._workers = workers.Watched(num_workers)
        self._iterator = iter(stream)
        self._report = report
        self._queue: queue.Queue = queue.Queue(maxsize=1)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)
        self._thread.start()

    def _feed(self) -> None:
        try:
            for batch in self._iterator:
                if not self._put(batch):
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> bool:
        while not self._closed.is_set():
            try:
                self._queue.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def __iter__(self) -> Batches:
        return self

    def __next__(self) -> Batch:
        item = self._workers.next_item(self._queue, TIMEOUT)
        if isinstance(item, BaseException):
            self._closed.set()
            raise _original(item)
        self._report(item)
        return item

    def close(self) -> None:
        """Stops reading. Safe to call twice."""
        self._closed.set()
        self._workers.closed.set()
        self._thread.join(timeout=CLOSING)
        if self._thread.is_alive():
            self._workers.end()
            self._thread.join(timeout=CLOSING)
        if self._thread.is_alive():  # a worker was killed in the middle of a message: the thread
            return  # holds Grain's queue for good, and closing it would wait for the thread
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def _original(error: BaseException) -> BaseException:
    """The UserError that Grain or a worker wrapped, otherwise the original exception."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    marker = "vit_jax.errors.UserError: "
    if marker in str(error):  # from a worker process: only the text is passed on
        return UserError(str(error).split(marker, 1)[1].split("\n")[0].strip())
    if isinstance(error, RuntimeError):
        reason = (str(error).strip() or "no reason given").split("\n")[0]
        return UserError(f"A data worker died ({reason}); run the same command again.")
    return error


class _Padded:
    """A source with `padding` dummy records at the end, which are never read."""

    def __init__(
        self,
        source: Source,
        transform: Transform,
        total: int,
        on_bad: Callable[[str], None] | None,
        labelled: bool,
    ):
        self.source, self.transform, self.total, self.on_bad = source, transform, total, on_bad
        self.labelled = labelled

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> Example:
        index = int(index)
        if index < len(self.source):
            try:
                found = read(self.source, index, self.transform, labelled=self.labelled)
                return _row(*found, True, index)
            except UserError as error:
                if self.on_bad is None:
                    raise
                self.on_bad(str(error))
        several = getattr(self.source, "multilabel", False)
        label = np.zeros(self.source.num_classes, np.int8) if several else np.int32(0)
        return _row(
            np.zeros((*self.transform.size, self.transform.channels), np.uint8), label, False, index
        )

    def __repr__(self) -> str:
        return f"_Padded({self.source!r}, {self.total})"


def _row(image: np.ndarray, label: Label, mask: bool, index: int) -> Example:
    return {
        "image": image,
        "label": label,
        "mask": np.bool_(mask),
        "index": np.int32(index),
    }


def num_eval_steps(num_examples: int, batch_size: int) -> int:
    """Number of batches of an evaluation, the same on every host."""
    return -(-num_examples // batch_size)


def eval_batches(
    source: Source,
    transform: Transform,
    *,
    batch_size: int,
    rows: np.ndarray | None = None,
    num_threads: int = 4,
    on_bad: Callable[[str], None] | None = None,
    labelled: bool = True,
) -> Batches:
    """Every example exactly once across all hosts; as `train_batches`, with "mask" and "index".

    The last global batch is padded with rows whose mask is False; all hosts take the same number of
    steps. "index" (b,) int32 is the record's index in the source. Unreadable records are masked
    too if `on_bad` is given, which is called with the error. labelled: see `read`.
    """
    rows = np.arange(batch_size) if rows is None else rows
    total = num_eval_steps(len(source), batch_size) * batch_size
    dataset = grain.MapDataset.source(_Padded(source, transform, total, on_bad, labelled))
    dataset = _HostRows(dataset, batch_size, rows)
    dataset = dataset.batch(len(rows), drop_remainder=True)
    return Batches(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
        )
    )
