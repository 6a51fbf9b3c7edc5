"""The memory of a process that computes on CPUs: freed pages are kept for the next step.

How much of it there is: what the process holds now, and the most that it held.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import os
import platform
import time

# Of glibc's malloc.h, and its defaults.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
BYTES_TO_TRIM, BYTES_TO_MAP, MAPPINGS = 128 << 10, 128 << 10, 65_536
ALIGNMENT, SPARE = 4 << 10, 64 << 20  # more than it takes; what else may be free
PIECES = 8  # that are occupied at most

#: What JAX finds an accelerator through.
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")

_kept = False
_occupied: list[int] = []  # addresses


def keep_freed_pages() -> bool:
    """Makes malloc keep what is freed, where JAX will compute on CPUs. Returns whether it does.

    XLA asks for the memory of a step, gigabytes in one piece, at every step anew; glibc gives it
    back to the system each time, which then clears it again, page by page. Kept, a training step
    of B/16 causes no page faults instead of half a million (docs/performance.md). Call before JAX
    is used; other systems than Linux with glibc are left alone.
    """
    global _kept
    if platform.libc_ver()[0] != "glibc" or _end_of_heap() is None or not _on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Pieces of this size can only be kept in the main arena, and only if they are not mapped.
    _kept = all(
        mallopt(option, value)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    )
    return _kept


def freed_pages_are_kept() -> bool:
    """Whether `keep_freed_pages` holds."""
    return _kept


def let_go(seconds: float) -> None:
    """Waits for XLA to free the memory of a step that took so many seconds, on a CPU: 2 ms at most.

    It does so a moment after the results are there; a step that begins within it takes memory of
    its own, gigabytes beside those that are about to be free.
    """
    time.sleep(min(0.002, seconds / 200))


def give_back_freed_pages() -> None:
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
    """Gives back what is free now."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def make_room(size: int) -> None:
    """Sees to it that a piece of `size` bytes will find its pages at the end of the heap.

    A step of B/16 at batch 8 takes 1.8 GiB of temporaries in one piece (addresses rise to the
    right; `#` has pages):

        [state ####][temporaries ############]      a step runs
        [state ####][free        ############]      it is over, and the next takes the same pages
        [state ####][free        ############][x#]  or something small, x, has come to lie behind:
                                                    the next step takes 1.8 GiB more, at the end
        [state ####][held                    ][x#][temporaries ############]
                                                    so the pages before x are given back, and their
                                                    addresses held, or malloc would prefer them

    If x goes, the end is too large, and given back as well. Takes 3 ms, so small pieces are left
    alone.
    """
    if size < 2 * SPARE:
        return
    room = 0
    for wait in (0, 0.005, 0.02):  # while it is about to be free
        time.sleep(wait)
        room = _end_of_heap() or 0
        if size + ALIGNMENT <= room <= 1.25 * size + SPARE:
            return
    trim()
    if room < size + ALIGNMENT:
        libc = ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        if len(_occupied) == PIECES:
            while _occupied:
                libc.free(_occupied.pop())
        piece = libc.malloc(size - SPARE)
        if piece:
            _occupied.append(piece)


def stay_below(limit: int) -> None:
    """Gives freed pages back if the process holds more than `limit` bytes."""
    if (resident_bytes() or 0) > limit:
        trim()


def resident_bytes() -> int | None:
    """What the process holds; None where Linux does not say."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def peak_bytes() -> int | None:
    """The most that the process held since `begin_peak`; None where Linux does not say."""
    try:
        with open("/proc/self/status") as file:
            rows = dict(line.split(":", 1) for line in file)
    except OSError:
        return None
    return 1024 * int(rows["VmHWM"].split()[0]) if "VmHWM" in rows else None


def begin_peak() -> None:
    """`peak_bytes` forgets what was, where Linux allows that."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


class _Malloc(ctypes.Structure):
    """Of glibc's malloc.h, from 2.33 on."""

    _fields_ = [(f"field_{i}", ctypes.c_size_t) for i in range(9)] + [("keepcost", ctypes.c_size_t)]


def _end_of_heap() -> int | None:
    """Free bytes at the end of the heap; None where malloc does not say."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None:
        return None
    mallinfo2.restype = _Malloc
    return mallinfo2().keepcost


def _on_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not (platforms or any(map(importlib.util.find_spec, PLUGINS)))
