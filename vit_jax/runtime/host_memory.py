"""Memory of a process that computes on CPUs: malloc retains freed pages for the next step.

Also the resident memory of the process, now and at its peak.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import time

# From glibc's malloc.h, and its defaults.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
BYTES_TO_TRIM, BYTES_TO_MAP, MAPPINGS = 128 << 10, 128 << 10, 65_536
ALIGNMENT, SPARE = 4 << 10, 64 << 20  # tolerated free memory beyond a step's temporaries
PIECES = 8  # maximum number of blocks held

#: Packages by which JAX finds an accelerator.
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")

_kept = False
_held_blocks: list[int] = []  # addresses


def keep_freed_pages() -> bool:
    """Makes malloc retain freed memory if JAX will compute on CPUs. Returns whether it does.

    XLA allocates the temporaries of a step, gigabytes in one block, at every step; glibc returns
    them to the system, which clears every page again. With retained memory a training step of B/16
    causes no page faults instead of half a million (docs/performance.md). Call before JAX is used,
    and before the first thread: what threads of XLA then allocate may be in that thread's arena,
    which cannot hold large blocks. No effect on other systems than Linux with glibc.
    """
    global _kept
    if platform.libc_ver()[0] != "glibc" or _end_of_heap() is None or not _on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Blocks of this size are retained only in the main arena, and only if not mapped.
    _kept = all(
        mallopt(option, value)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    )
    return _kept


def freed_pages_are_kept() -> bool:
    """Whether malloc retains freed memory."""
    return _kept


def wait_for_free(seconds: float) -> None:
    """Waits, for 2 ms at most, until XLA on a CPU has freed the memory of a step.

    XLA frees it shortly after the results are ready; a step that starts before that allocates
    gigabytes in addition to those about to be freed.
    """
    time.sleep(min(0.002, seconds / 200))


def return_freed_pages() -> None:
    """Undoes `keep_freed_pages`."""
    global _kept
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, MAPPINGS)
        libc.mallopt(M_MMAP_THRESHOLD, BYTES_TO_MAP)
        libc.mallopt(M_TRIM_THRESHOLD, BYTES_TO_TRIM)
    _kept = False
    trim()


def trim() -> None:
    """Returns free memory to the system."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def make_room(size: int) -> None:
    """Keeps `size` bytes free at the top of the heap.

    A step of B/16 at batch 8 allocates 1.8 GiB of temporaries in one block (addresses increase to
    the right; `#` is resident):

        [state ####][temporaries ############]      a step runs
        [state ####][free        ############]      it ends, and the next step reuses the pages
        [state ####][free        ############][x#]  or a small block x was allocated behind it: the
                                                    next step would grow the heap by 1.8 GiB
        [state ####][held                    ][x#][temporaries ############]
                                                    so the pages before x are returned, and their
                                                    addresses held, or malloc would prefer them

    When x is freed, the top is too large, and is trimmed. This takes 3 ms, so small blocks are
    ignored.
    """
    if size < 2 * SPARE:
        return
    room = 0
    for wait in (0, 0.005, 0.02):  # it is freed shortly
        time.sleep(wait)
        room = _end_of_heap() or 0
        if size + ALIGNMENT <= room <= 1.25 * size + SPARE:
            return
    trim()
    if room < size + ALIGNMENT:
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        if len(_held_blocks) == PIECES:
            while _held_blocks:
                libc.free(_held_blocks.pop())
        piece = libc.malloc(size - SPARE)
        if piece:
            _held_blocks.append(piece)


def trim_above(limit: int) -> None:
    """Returns freed pages to the system if the process uses more than `limit` bytes."""
    if (resident_bytes() or 0) > limit:
        trim()


def resident_bytes() -> int | None:
    """Resident memory of the process; None if unknown."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_bytes() -> int | None:
    """Peak resident memory since `begin_peak`; None if unknown."""
    try:
        with open("/proc/self/status") as file:
            rows = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return 1024 * int(rows["VmHWM"].split()[0]) if "VmHWM" in rows else None


def begin_peak() -> None:
    """Resets `peak_bytes`, where Linux allows it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class _Malloc(ctypes.Structure):
    """mallinfo2 of glibc's malloc.h, from 2.33 on."""

    _fields_ = [(f"field_{i}", ctypes.c_size_t) for i in range(9)] + [("keepcost", ctypes.c_size_t)]


def _end_of_heap() -> int | None:
    """Free bytes at the top of the heap; None if unknown."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Malloc
    return mallinfo2().keepcost


def _on_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not (platforms or any(map(importlib.util.find_spec, PLUGINS)))
