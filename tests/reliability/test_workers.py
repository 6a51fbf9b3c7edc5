"""Scenarios 12 to 14: a data worker that dies or freezes ends the run with a sentence, in time."""

import collections
import gc
import multiprocessing
import multiprocessing.queues
import os
import queue
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vit_jax import data
from vit_jax.data import batches, workers
from vit_jax.errors import UserError


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_12_13_a_worker_that_stops_or_dies(number, monkeypatch):
    monkeypatch.setattr(batches, "TIMEOUT", 60.0)
    reader = data.train_batches(
        data.open_source("digits[train]"),
        data.make_transform(name="resize_flip", size=(8, 8), train=True),
        batch_size=4,
        seed=0,
        num_workers=1,
    )
    try:
        next(reader)
        monkeypatch.setattr(batches, "TIMEOUT", 2.0)
        running = multiprocessing.active_children()
        for worker in running:
            os.kill(worker.pid, number)
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"(No batch for 2 s|A data worker died)"):
            collections.deque(reader, maxlen=0)
    finally:
        reader.close()
    assert running and time.monotonic() - begin < 12  # the timeout plus ten seconds
    assert not [worker for worker in running if worker.is_alive()]


def test_the_time_of_a_stopped_process_does_not_count(monkeypatch):
    class Stopped(queue.Queue):
        """Whoever waits is stopped for an hour, once."""

        def get(self, timeout):
            if self.empty():
                hour_later = time.monotonic() + 3600
                monkeypatch.setattr(time, "monotonic", lambda: hour_later)
                self.put("batch")
                raise queue.Empty
            return super().get()

    assert workers.Watched(0).next_item(Stopped(), 300.0) == "batch"


def dies_while_it_sends(transform):
    """A transform whose worker dies at the fifth image, with half of a length in its pipe."""

    class Dies:  # of a function, so that it is pickled whole: workers cannot import the tests
        def __init__(self):
            self.count, self.size, self.channels = 0, transform.size, transform.channels

        def read(self, *args, **options):
            self.count += 1
            if self.count == 5:
                time.sleep(0.3)  # the first batch has been sent
                for found in gc.get_objects():
                    if isinstance(found, multiprocessing.queues.Queue) and found._thread:
                        os.write(found._writer.fileno(), b"\0\0")
                os.kill(os.getpid(), signal.SIGKILL)
            return transform.read(*args, **options)

    return Dies()


@pytest.mark.parametrize("busy", [False, True])
def test_12_a_worker_that_dies_in_the_middle_of_a_message(monkeypatch, busy):
    """busy: before the first batch is asked for, as while a step is compiled."""
    monkeypatch.setattr(batches, "CLOSING", 0.1)  # the thread that reads it never ends
    monkeypatch.setattr(batches, "TIMEOUT", 20.0)
    transform = data.make_transform(name="resize_flip", size=(8, 8), train=True)
    reader = data.train_batches(
        data.open_source("digits[train]"), dies_while_it_sends(transform),
        batch_size=4, seed=0, num_threads=1, num_workers=1,
    )  # fmt: skip
    try:
        while busy and (not reader._queue.full() or multiprocessing.active_children()):
            time.sleep(0.1)
        next(reader)
        begin = time.monotonic()
        with pytest.raises(UserError, match=r"A data worker died \(exit code -9\)"):
            collections.deque(reader, maxlen=0)
        assert time.monotonic() - begin < 12
    finally:
        reader.close()


class Child:
    """Stands for a process that has been started."""

    def __init__(self, name, exitcode):
        self.name, self.exitcode, self.killed = name, exitcode, False

    def kill(self):
        self.killed = True


def test_12_13_other_children_of_the_process_are_left_alone(monkeypatch):
    watched = workers.Watched(1)
    mine, other = Child(f"{workers.NAME}-1", None), Child("Process-1", 1)
    monkeypatch.setattr(multiprocessing, "active_children", lambda: [mine, other])
    with pytest.raises(UserError, match="No batch for 0 s: a data worker hangs"):
        watched.next_item(queue.Queue(), 0.3)
    assert mine.killed and not other.killed
    with pytest.raises(UserError, match="s: the storage does not respond"):
        workers.Watched().next_item(queue.Queue(), 0.01)


PARENT = """
import multiprocessing, time
from vit_jax import data
if __name__ == "__main__":  # a worker imports this file again
    reader = data.train_batches(
        data.open_source("digits[train]"),
        data.make_transform(name="resize_flip", size=(8, 8), train=True),
        batch_size=4, seed=0, num_workers=1)
    next(reader)
    print(multiprocessing.active_children()[0].pid, flush=True)
    time.sleep(60)
"""


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_8_14_a_worker_leaves_term_to_its_parent_and_dies_with_it(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        os.kill(worker, signal.SIGTERM)
        time.sleep(0.3)
        assert is_alive(worker)
        parent.kill()
    end = time.monotonic() + 2
    while is_alive(worker) and time.monotonic() < end:
        time.sleep(0.05)
    assert not is_alive(worker)


def test_14_a_process_whose_parent_is_gone_already_ends_at_once():
    code = "from vit_jax.data import workers; workers.end_with_parent({}); print('goes on')"

    def run(parent):
        command = [sys.executable, "-c", code.format(parent)]
        return subprocess.run(command, capture_output=True, text=True)

    assert run(os.getpid()).stdout == "goes on\n"
    gone = run(2**22 + 1)  # more than there can be
    assert (gone.returncode, gone.stdout) == (1, "") and "has ended" in gone.stderr
