"""Checks of the installation and the devices."""

from __future__ import annotations

import fcntl
import importlib.metadata
import importlib.util
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from vit_jax.errors import counted


class Finding(NamedTuple):
    """One line of the report. ok: True, False, or None if it is only information."""

    name: str
    text: str
    ok: bool | None = None


PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "tensorflow-datasets",
    "ml-collections",
)  # fmt: skip
EXTRAS = {
    "gpu": "jax_cuda12_plugin", "gpu13": "jax_cuda13_plugin", "tpu": "libtpu",
    "prepare": "tensorflow", "hf": "datasets", "onnx": "onnx", "openvino": "openvino",
    "int8": "qwix", "turbojpeg": "turbojpeg", "wandb": "wandb", "peers": "timm",
}  # fmt: skip
#: Device files of accelerators; a process that has one open uses the device.
DEVICE_FILES = ("/dev/nvidia", "/dev/accel", "/dev/vfio/")
LIBTPU_LOCK = Path("/tmp/libtpu_lockfile")


def installation() -> Iterator[Finding]:
    """Versions, extras and the system."""
    yield Finding("python", f"{platform.python_version()} on {platform.platform()}")
    versions, missing = [], []
    for name in PACKAGES:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
    yield Finding("packages", ", ".join(versions))
    if missing:
        yield Finding("packages", f"missing: pip install {' '.join(missing)}", False)
    extras = [name for name, module in EXTRAS.items() if importlib.util.find_spec(module)]
    yield Finding("extras", ", ".join(extras) or "none")
    yield Finding("jpeg", jpeg_text())
    for accelerator, module, extra in (
        ("/dev/nvidia0", ("jax_cuda12_plugin", "jax_cuda13_plugin"), "gpu"),
        ("/dev/accel0", ("libtpu",), "tpu"),
    ):
        if os.path.exists(accelerator) and not any(map(importlib.util.find_spec, module)):
            text = f"{accelerator} exists, but JAX cannot use it: pip install 'vit_jax[{extra}]'"
            yield Finding("accelerator", text, False)


def jpeg_text() -> str:
    """Whether crops decode only their region (the pixels are the same)."""
    from vit_jax.data import turbojpeg

    if turbojpeg.library() is None:
        return "decoded whole; to decode only the crop: pip install 'vit_jax[turbojpeg]'"
    return "crops decode only their region (TurboJPEG 3)"


def devices() -> Iterator[Finding]:
    """The devices of this job, by host, and their memory."""
    import jax

    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices():
        by_process.setdefault(device.process_index, []).append(device)
    kinds = sorted({device.device_kind for device in jax.devices()})
    counts = sorted({len(mine) for mine in by_process.values()})
    yield Finding(
        "devices",
        f"{jax.device_count()} ({', '.join(kinds)}): "
        f"{counted(len(by_process), 'process')} x {' or '.join(map(str, counts))}",
        len(counts) == 1,
    )
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        yield Finding("memory", f"{stats['bytes_limit'] / 2**30:.1f} GiB per device")


def collectives() -> Iterator[Finding]:
    """Checks a sum, a gather and an all-to-all over all devices against known results."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.sharding import NamedSharding, PartitionSpec

    from vit_jax.runtime import sharding

    mesh = sharding.make_mesh()
    count = jax.device_count()
    rows = NamedSharding(mesh, PartitionSpec("data"))
    columns = NamedSharding(mesh, PartitionSpec(None, "data"))
    whole = NamedSharding(mesh, PartitionSpec())
    values = np.arange(count * count, dtype=np.float32).reshape(count, count)
    x = jax.make_array_from_callback(values.shape, rows, lambda index: values[index])
    tests = {
        "sum": (lambda x: x.sum(), whole, values.sum()),
        "gather": (lambda x: x, whole, values),
        "all to all": (lambda x: x, columns, values),
    }
    for name, (function, where, wanted) in tests.items():
        begin = time.perf_counter()
        found = jax.jit(function, out_shardings=where)(x)
        right = all(
            np.array_equal(np.asarray(shard.data), np.asarray(wanted)[shard.index])
            for shard in found.addressable_shards
        )
        seconds = time.perf_counter() - begin
        text = f"{seconds:.2f} s over {counted(count, 'device')}"
        yield Finding(f"collective {name}", text, right)
    big = jax.device_put(jnp.ones((count, 1 << 20)), rows)
    reduce = jax.jit(lambda x: x.sum(axis=0), out_shardings=whole)
    reduce(big).block_until_ready()
    begin = time.perf_counter()
    reduce(big).block_until_ready()
    rate = big.nbytes / (time.perf_counter() - begin)
    yield Finding("reduce 4 MiB per device", f"{rate / 1e9:.2f} GB/s")


def holders() -> Iterator[Finding]:
    """Other processes that use an accelerator, and stale lock files."""
    for process in Path("/proc").glob("[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        try:
            opened = {os.readlink(link) for link in (process / "fd").iterdir()}
            command = os.fsdecode((process / "cmdline").read_bytes().replace(b"\0", b" "))
        except OSError:
            continue  # ended, or of another user
        mine = sorted(path for path in opened if path.startswith(DEVICE_FILES))
        if mine:
            text = f"process {process.name} ({command.strip()[:60]}) uses {mine[0]}"
            yield Finding("held", f"{text}; stop it, or wait", False)
    yield from lock_file(LIBTPU_LOCK)


def lock_file(path: Path) -> Iterator[Finding]:
    """The finding on a lock file, if there is one."""
    if not path.exists():
        return
    try:
        with open(path) as opened:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held = isinstance(error, BlockingIOError)
        why = "is held by a running process" if held else f"cannot be opened ({error.strerror})"
        yield Finding("lock", f"{path} {why}", False)
        return
    yield Finding("lock", f"{path} is stale; remove it: rm {path}", False)
