"""The memory of a process that computes on CPUs: freed pages are kept for the next step."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import time

# Of glibc's malloc.h, and its defaults.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8
BYTES_TO_TRIM, BYTES_TO_MAP, MAPPINGS = 128 << 10, 128 << 10, 65_536

#: What JAX finds an accelerator through.
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin", "jax_rocm7_plugin", "libtpu")


def keep_freed_pages() -> bool:
    """Makes malloc keep what is freed, where JAX will compute on CPUs. Returns whether it does.

    XLA asks for the memory of a step, gigabytes in one piece, at every step anew; glibc gives it
    back to the system each time, which then clears it again, page by page. Kept, a training step
    of B/16 causes no page faults instead of half a million (docs/performance.md). Call before JAX
    is used; other systems than Linux with glibc are left alone.
    """
    if platform.libc_ver()[0] != "glibc" or not _on_cpu():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Pieces of this size can only be kept in the main arena, and only if they are not mapped.
    return all(
        mallopt(option, value)
        for option, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    )


def let_go(seconds: float) -> None:
    """Waits for XLA to free the memory of a step that took so many seconds, on a CPU: 2 ms at most.

    It does so a moment after the results are there; a step that begins within it takes memory of
    its own, gigabytes beside those that are about to be free.
    """
    time.sleep(min(0.002, seconds / 200))


def give_back_freed_pages() -> None:
    """Undoes `keep_freed_pages`: what is kept fits the next request worse and worse."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, MAPPINGS)
        libc.mallopt(M_MMAP_THRESHOLD, BYTES_TO_MAP)
        libc.mallopt(M_TRIM_THRESHOLD, BYTES_TO_TRIM)
        libc.malloc_trim(0)


def _on_cpu() -> bool:
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return platforms == "cpu" or not (platforms or any(map(importlib.util.find_spec, PLUGINS)))
