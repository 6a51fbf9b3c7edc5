"""Batches: a function of (seed, step) alone, whatever the hosts, threads and workers."""

import io
import threading
import time

import numpy as np
import PIL.Image
import psutil
import pytest

from vit_jax import data
from vit_jax.data import batches
from vit_jax.data.source import ArraySource
from vit_jax.errors import UserError

SIZE = (8, 8)
CROP = data.make_transform(name="inception_crop", size=SIZE, train=True)
RESIZE = data.make_transform(name="resize", size=SIZE, train=False)


def numbered(count):
    """Record i is a noise image seeded by i, with label i % 7."""
    shape = (12, 14, 3)
    images = [np.random.default_rng(i).integers(0, 256, shape, np.uint8) for i in range(count)]
    return ArraySource(np.stack(images), np.arange(count) % 7)


def take(batches, count):
    """The first `count` batches, stacked."""
    try:
        taken = [next(batches) for _ in range(count)]
    finally:
        batches.close()
    return {key: np.stack([batch[key] for batch in taken]) for key in taken[0]}


def train(source, count, **options):
    options = {"batch_size": 8, "seed": 3, **options}
    return take(data.train_batches(source, CROP, **options), count)


def same(a, b):
    return all(np.array_equal(a[key], b[key]) for key in a)


def test_shapes_and_types():
    got = train(numbered(20), 2)
    assert got["image"].shape == (2, 8, 8, 8, 3) and got["image"].dtype == np.uint8
    assert got["label"].shape == (2, 8) and got["label"].dtype == np.int32


def test_the_same_seed_gives_the_same_batches_and_another_does_not():
    source = numbered(20)
    first = train(source, 4)
    assert same(first, train(source, 4))
    assert same(first, train(source, 4, num_threads=1))
    assert not same(first, train(source, 4, seed=4))


def test_every_epoch_has_every_example_once_in_another_order():
    source = numbered(16)
    plain = data.make_transform(name="resize_flip", size=SIZE, train=True, flip=False)
    got = take(data.train_batches(source, plain, batch_size=8, seed=0), 4)["image"]
    whole = [plain(source[i]["image"], np.random.default_rng(0)).tobytes() for i in range(16)]
    orders = []
    for epoch in range(2):
        images = got[2 * epoch : 2 * epoch + 2].reshape(16, *SIZE, 3)
        orders.append([whole.index(image.tobytes()) for image in images])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(16))
    assert orders[0] != orders[1] != list(range(16))


def test_augmentation_differs_between_epochs():
    source = numbered(8)
    images = train(source, 2)["image"]
    assert not {i.tobytes() for i in images[0]} & {i.tobytes() for i in images[1]}


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_at_any_step_gives_the_same_batches(start):
    source = numbered(20)
    whole = train(source, 9)
    rest = train(source, 9 - start, start_step=start)
    assert all(np.array_equal(whole[key][start:], rest[key]) for key in whole)


def test_ten_million_steps_are_skipped_without_reading_them():
    class Counting(ArraySource):
        reads = 0

        def __getitem__(self, index):
            Counting.reads += 1
            return super().__getitem__(index)

    base = numbered(20)
    source = Counting(base.images, base.labels)
    train(source, 1, start_step=10_000_000, num_threads=1)
    assert Counting.reads < 100


@pytest.mark.parametrize("threads", [1, 3])
def test_read_ahead_is_bounded(threads):
    class Counting(ArraySource):
        reads, lock = 0, threading.Lock()

        def __getitem__(self, index):
            with Counting.lock:
                Counting.reads += 1
            return super().__getitem__(index)

    base = numbered(20)
    batches = data.train_batches(
        Counting(base.images, base.labels), CROP, batch_size=8, seed=0, num_threads=threads
    )
    try:
        for taken in range(1, 6):
            next(batches)
            before = -1
            while Counting.reads != before:  # until it waits for the consumer
                before = Counting.reads
                time.sleep(0.2)
            assert Counting.reads <= (taken + data.batches_ahead(threads)) * 8
        assert Counting.reads > (5 + threads) * 8  # it does read ahead
    finally:
        batches.close()


def test_memory_does_not_grow():
    large = data.make_transform(name="resize_flip", size=(96, 96), train=True)
    batches = data.train_batches(numbered(20), large, batch_size=32, seed=0, num_threads=2)
    size = 32 * 96 * 96 * 3
    try:
        for _ in range(40):
            next(batches)
        before = psutil.Process().memory_info().rss
        for _ in range(120):
            next(batches)
        grown = psutil.Process().memory_info().rss - before
    finally:
        batches.close()
    assert grown < 20 * size  # one byte in six that went through


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_together_read_the_batch_of_one(hosts):
    source = numbered(20)
    whole = train(source, 3)
    size = whole["label"].shape[1]
    parts = [train(source, 3, rows=rows) for rows in np.split(np.arange(size), hosts)]
    joined = {key: np.concatenate([part[key] for part in parts], axis=1) for key in whole}
    assert same(whole, joined)


@pytest.mark.slow
def test_worker_processes_change_nothing(tmp_path):
    source = data.open_source("digits")
    whole = train(source, 5)
    assert same(whole, train(source, 5, num_workers=2))
    assert all(
        np.array_equal(whole[key][2:], train(source, 3, num_workers=2, start_step=2)[key])
        for key in whole
    )


@pytest.mark.parametrize("batch_size", [1, 4, 7, 64])
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_evaluation_counts_every_example_exactly_once(batch_size, hosts):
    if batch_size % hosts:
        pytest.skip("a global batch divides by its hosts")
    source = numbered(23)
    steps, seen = set(), []
    for host in range(hosts):
        batches = list(
            data.eval_batches(
                source,
                RESIZE,
                batch_size=batch_size,
                rows=np.split(np.arange(batch_size), hosts)[host],
            )
        )
        steps.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (batch_size // hosts, 8, 8, 3)
            for row in range(len(batch["mask"])):
                if batch["mask"][row]:
                    index = int(batch["index"][row])
                    record = source[index]
                    np.testing.assert_array_equal(batch["image"][row], RESIZE(record["image"]))
                    assert batch["label"][row] == record["label"]
                    seen.append(index)
    assert sorted(seen) == list(range(23))
    assert len(steps) == 1  # otherwise a collective would hang


def broken(count=20, bad=11):
    """A folder-like source with one damaged image."""
    file = io.BytesIO()
    PIL.Image.new("RGB", (12, 12)).save(file, "PNG")
    images = [file.getvalue()] * count
    images[bad] = images[bad][:40]

    class Files:
        spec, num_classes, class_names, fingerprint = "files", 2, ("a", "b"), "0"

        def __len__(self):
            return count

        def __getitem__(self, i):
            return {"image": images[i], "label": 0, "name": f"cats/{i}.png"}

        def __repr__(self):
            return "files"

    return Files()


def test_a_damaged_image_is_named_in_training_and_evaluation():
    with pytest.raises(UserError, match=r"^The image cats/11\.png cannot be decoded"):
        train(broken(), 5)
    with pytest.raises(UserError, match=r"^The image cats/11\.png cannot be decoded"):
        list(data.eval_batches(broken(), RESIZE, batch_size=4))


def test_a_label_out_of_range_is_named():
    source = numbered(20)
    source.num_classes = 5
    with pytest.raises(UserError, match=r"^The record arrays/\d+ has the label [56], outside 0..4"):
        train(source, 5)
    with pytest.raises(UserError, match=r"^The record arrays/5 has the label 5, outside 0..4"):
        list(data.eval_batches(source, RESIZE, batch_size=6, num_threads=1))


def test_closing_does_not_wait_for_a_locked_queue(monkeypatch):
    """As by a worker that is killed in the middle of a message: Grain's `close` wants the lock."""
    monkeypatch.setattr(batches, "CLOSING", 0.05)
    lock, reading = threading.Lock(), threading.Event()

    class Stream:
        def __iter__(self):
            return self

        def __next__(self):
            lock.acquire()
            reading.set()
            threading.Event().wait()

        def close(self):
            lock.acquire()

    stream = batches.Batches(Stream())
    reading.wait()
    closing = threading.Thread(target=stream.close, daemon=True)
    closing.start()
    closing.join(timeout=5)
    assert not closing.is_alive()
