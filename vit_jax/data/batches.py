"""From a source to batches, with Grain. The order of operations is what makes resuming exact.

shuffle, repeat and augment come first and depend on the global record number alone; then each host
takes its block of every global batch. So a batch is a function of (seed, step), whatever the number
of hosts, threads and workers, and any step is reached at once.
"""

from __future__ import annotations

import ctypes
import queue
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from vit_jax.errors import UserError

Batch = dict[str, Any]
#: Seconds without a batch after which the input is declared stuck.
TIMEOUT = 300.0


class _Example(grain.transforms.RandomMap):
    """Decodes, augments and checks one training record."""

    def __init__(self, transform: Any, num_classes: int):
        self.transform, self.num_classes = transform, num_classes

    def random_map(self, record: dict[str, Any], rng: np.random.Generator) -> Batch:
        image = read(self.transform, record, rng)
        return {"image": image, "label": check_label(record, self.num_classes)}


def read(transform: Any, record: dict[str, Any], rng: Any = None) -> np.ndarray:
    """A record's image, decoded and transformed; turned upright where both of them say so."""
    exif = record.get("exif", True)
    return transform.read(record["image"], record["name"], rng, exif=exif)


def check_label(record: dict[str, Any], num_classes: int) -> np.int32:
    """The record's label, or a UserError that names the record if it is out of range."""
    label = record["label"]
    if not 0 <= label < num_classes:
        raise UserError(
            f"The record {record['name']} has the label {label}, outside 0..{num_classes - 1}."
        )
    return np.int32(label)


class _HostBlock(grain.MapDataset):
    """The rows [h b, (h + 1) b) of every global batch, for host h of several."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, host: int, hosts: int):
        super().__init__(parent)
        self.batch_size, self.host, self.rows = batch_size, host, batch_size // hosts

    def __len__(self) -> int:
        return len(self._parent) // self.batch_size * self.rows

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, self.rows)
        return self._parent[batch * self.batch_size + self.host * self.rows + row]


def batches_ahead(num_threads: int) -> int:
    """The most batches that a pipeline holds before they are asked for: what bounds its memory."""
    return _buffer(num_threads) + 2  # and one in the queue, one in the feeder's hand


def _buffer(num_threads: int) -> int:
    """Batches that Grain's threads work on or have finished."""
    return max(2, 2 * num_threads)


def train_batches(
    source: Any,
    transform: Any,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    num_workers: int = 0,
) -> Batches:
    """Endless training batches of this host: "image" (b, h, w, 3) uint8, "label" (b,) int32.

    Args:
      transform: from `make_transform`.
      batch_size: global; b is its share of this host.
      start_step: the first batch is that of this step, at no cost.
      num_threads: each works on a batch; up to `batches_ahead` of them are held in memory.
      num_workers: processes besides this one; threads are enough below about eight cores.

    Raises:
      UserError: the batch does not divide by the hosts; or, while iterating, a bad record.
    """
    if batch_size % process_count:
        raise UserError(
            f"config.batch_size={batch_size} does not divide by {process_count} processes."
        )
    dataset = grain.MapDataset.source(source).seed(seed).shuffle().repeat(None)
    dataset = dataset.random_map(_Example(transform, source.num_classes))
    dataset = _HostBlock(dataset, batch_size, process_index, process_count)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)[start_step:]
    stream = dataset.to_iter_dataset(
        grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=_buffer(num_threads))
    )
    if num_workers:
        _mark_flags_as_parsed()
        stream = stream.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
            worker_init_fn=_protect_worker,
        )
    return Batches(stream)


def _mark_flags_as_parsed() -> None:
    """Grain's workers read absl flags, which nobody may have parsed."""
    from absl import flags

    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()


def _protect_worker(index: int, count: int) -> None:
    """A worker outlives no parent, and leaves signals to it (the parent saves on SIGTERM)."""
    del index, count
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    death_signal = 1  # PR_SET_PDEATHSIG
    ctypes.CDLL(None).prctl(death_signal, signal.SIGKILL)


class Batches(Iterator[Batch]):
    """An iterator with `close`. Errors in a record surface as they were raised.

    A feeder thread holds one batch ahead; it also bounds the wait for workers that hang.
    """

    def __init__(self, stream: grain.IterDataset):
        self._iterator = iter(stream)
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

    def _put(self, item: Any) -> bool:
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
        try:
            item = self._queue.get(timeout=TIMEOUT)
        except queue.Empty:
            raise UserError(
                f"No batch came for {TIMEOUT:.0f} s: a data worker hangs or the storage does not "
                "answer. Run the same command again; config.data.num_workers=0 avoids workers."
            ) from None
        if isinstance(item, BaseException):
            self._closed.set()
            raise _original(item)
        return item

    def close(self) -> None:
        """Stops reading. Safe to call twice."""
        self._closed.set()
        self._thread.join(timeout=10)
        if hasattr(self._iterator, "close"):
            self._iterator.close()


def _original(error: BaseException) -> BaseException:
    """The UserError that Grain or a worker wrapped, or else what it raised."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return seen
        seen = seen.__cause__ or seen.__context__
    marker = "vit_jax.errors.UserError: "
    if marker in str(error):  # from a worker process: only the text came back
        return UserError(str(error).split(marker, 1)[1].split("\n")[0].strip())
    if isinstance(error, RuntimeError):
        reason = (str(error).strip() or "no reason given").split("\n")[0]
        return UserError(f"A data worker died ({reason}); run the same command again.")
    return error


class _Padded:
    """A source with `padding` more records that are not real; reading them costs nothing."""

    def __init__(self, source: Any, transform: Any, total: int):
        self.source, self.transform, self.total = source, transform, total

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if index >= len(self.source):
            image = np.zeros((*self.transform.size, 3), np.uint8)
            return _row(image, 0, False, index)
        record = self.source[index]
        label = check_label(record, self.source.num_classes)
        image = read(self.transform, record)
        return _row(image, label, True, index)

    def __repr__(self) -> str:
        return f"_Padded({self.source!r}, {self.total})"


def _row(image: np.ndarray, label: int | np.int32, mask: bool, index: int) -> Batch:
    return {
        "image": image,
        "label": np.int32(label),
        "mask": np.bool_(mask),
        "index": np.int32(index),
    }


def num_eval_steps(num_examples: int, batch_size: int) -> int:
    """Batches that an evaluation takes, the same on every host."""
    return -(-num_examples // batch_size)


def eval_batches(
    source: Any,
    transform: Any,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
) -> Batches:
    """Every example exactly once over all hosts; as `train_batches`, with "mask" and "index".

    The last global batch is filled with rows whose mask is False; all hosts take the same number
    of steps. "index" (b,) int32 is the record's number in the source.
    """
    if batch_size % process_count:
        raise UserError(f"An evaluation batch of {batch_size} does not divide by {process_count}.")
    total = num_eval_steps(len(source), batch_size) * batch_size
    dataset = grain.MapDataset.source(_Padded(source, transform, total))
    dataset = _HostBlock(dataset, batch_size, process_index, process_count)
    dataset = dataset.batch(batch_size // process_count, drop_remainder=True)
    return Batches(
        dataset.to_iter_dataset(
            grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(2, num_threads))
        )
    )
