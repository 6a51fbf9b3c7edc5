"""Where Linux and glibc are missing (macOS, musl): nothing is asked of them, and nothing fails."""

import builtins
import ctypes
import multiprocessing
import os
import platform
import subprocess
import sys
import time
import types
from pathlib import Path

import psutil
import pytest

from vit_jax.bench import worker
from vit_jax.data import turbojpeg
from vit_jax.doctor import machine
from vit_jax.runtime import host_memory

ROOT = Path(__file__).parents[2]


def as_on_macos(monkeypatch):
    """No glibc, no symbol of Linux in the C library, and no /proc."""
    opened, listed = builtins.open, Path.glob

    def open_(file, *args, **kwargs):
        if str(file).startswith("/proc"):
            raise FileNotFoundError(2, "No such file or directory", file)
        return opened(file, *args, **kwargs)

    def glob(path, pattern):
        return iter(()) if str(path).startswith("/proc") else listed(path, pattern)

    memory = psutil.virtual_memory()  # psutil has other means there
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(builtins, "open", open_)
    monkeypatch.setattr(Path, "glob", glob)
    monkeypatch.setattr(platform, "libc_ver", lambda *_: ("", ""))
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: types.SimpleNamespace())


def test_memory_is_left_to_a_system_that_is_not_glibc(monkeypatch):
    as_on_macos(monkeypatch)
    assert not host_memory.keep_freed_pages()
    host_memory.return_freed_pages()
    host_memory.trim()
    host_memory.begin_peak()
    host_memory.trim_above(1)
    assert host_memory.resident_bytes() is None and host_memory.peak_bytes() is None


def test_doctor_knows_no_holders_without_proc(monkeypatch):
    as_on_macos(monkeypatch)
    monkeypatch.setattr(machine, "LIBTPU_LOCK", Path("/nowhere"))
    assert list(machine.holders()) == []


def test_peak_memory_is_in_bytes_everywhere(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=types.SimpleNamespace(
        is_available=lambda: False)))  # fmt: skip
    monkeypatch.delitem(sys.modules, "jax")
    linux = worker.peak_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert 1000 < linux / worker.peak_memory() < 1100


@pytest.mark.parametrize(
    "name", ["turbojpeg.libs/libturbojpeg-dd.so.0.3.0", "turbojpeg.dylibs/libturbojpeg.0.3.0.dylib"]
)
def test_turbojpeg_is_found_in_the_wheels_of_linux_and_macos(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    spec = types.SimpleNamespace(origin=str(tmp_path / "turbojpeg.so"))
    monkeypatch.setattr(turbojpeg.importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setattr(turbojpeg.ctypes.util, "find_library", lambda _: None)
    assert list(turbojpeg.candidates()) == [str(tmp_path / name)]


PARENT = """
import ctypes, multiprocessing, os, sys, time, types
from pathlib import Path
from vit_jax.data import workers

def work(told, way):
    if way == "thread":
        ctypes.CDLL = lambda name: types.SimpleNamespace()
    workers.protect(0, 1)
    Path(told).write_text(str(os.getpid()))
    time.sleep(60)

if __name__ == "__main__":
    multiprocessing.get_context("spawn").Process(target=work, args=sys.argv[1:]).start()
    time.sleep(60)
"""


@pytest.mark.parametrize("way", ["prctl", "thread"])
def test_a_data_worker_outlives_no_parent(tmp_path, way):
    script, told = tmp_path / "parent.py", tmp_path / "pid"
    script.write_text(PARENT)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, script, told, way], cwd=ROOT, env=env) as parent:
        try:
            wait_for(lambda: told.exists() and told.read_text())
        finally:
            parent.kill()
    child = int(told.read_text())
    wait_for(lambda: not is_alive(child))


def wait_for(condition, seconds=30.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.slow
def test_a_run_needs_neither_linux_nor_glibc(tmp_path, monkeypatch):
    from vit_jax.cli import main

    as_on_macos(monkeypatch)
    words = ["--config=configs/quickstart.py", "--config.pretrain=None", "--config.total_steps=2"]
    words += ["--config.schedule.warmup_steps=0"]
    assert main(["train", *words, f"--workdir={tmp_path / 'run'}"]) == 0
    assert not multiprocessing.active_children()
