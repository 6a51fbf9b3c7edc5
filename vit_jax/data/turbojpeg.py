"""Decodes only the region of a JPEG that a crop keeps: the same pixels in less time.

Rows and columns outside need no inverse DCT and no colour conversion, and what is below is not read
at all, so damage there is not noticed. It needs TurboJPEG 3, a system library (libjpeg-turbo 3) or
from `pip install 'vit_jax[turbojpeg]'`. Without it images are decoded whole, to the same pixels.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import numpy as np

Image = np.ndarray
Box = tuple[int, int, int, int]  # top, left, height, width

#: From turbojpeg.h: a decompressor instance, parameters, and the pixel format RGB.
DECOMPRESS, STOP_ON_WARNING, FAST_DCT, RGB = 1, 0, 10, 0
#: Width of a block in pixels by chroma subsampling; a region begins at a multiple of it.
BLOCK_WIDTH = {"444": 8, "Gray": 8, "422": 16, "420": 16}


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("left", "top", "width", "height")]


SIGNATURES = {
    "tj3Init": (ctypes.c_void_p, ctypes.c_int),
    "tj3Set": (ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int),
    "tj3DecompressHeader": (ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t),
    "tj3SetCroppingRegion": (ctypes.c_int, ctypes.c_void_p, _Region),
    "tj3Decompress8": (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p,
        ctypes.c_int, ctypes.c_int,
    ),
    "tj3GetErrorStr": (ctypes.c_char_p, ctypes.c_void_p),
    "tj3Destroy": (None, ctypes.c_void_p),
}  # fmt: skip


def candidates() -> Iterator[str]:
    """Candidate TurboJPEG libraries: the package's, then the system's."""
    package = importlib.util.find_spec("turbojpeg")
    if package is not None and package.origin:
        beside = Path(package.origin).parent
        for pattern in ("turbojpeg.libs/libturbojpeg*.so*", "turbojpeg.dylibs/libturbojpeg*.dylib"):
            yield from map(str, beside.glob(pattern))
    system = ctypes.util.find_library("turbojpeg")
    if system:
        yield system


@functools.cache
def library() -> ctypes.CDLL | None:
    """The first TurboJPEG 3 whose regions equal the whole decoded image, or None."""
    for name in candidates():
        try:
            found = ctypes.CDLL(name)
            for function, (result, *arguments) in SIGNATURES.items():
                getattr(found, function).restype = result
                getattr(found, function).argtypes = arguments
        except (OSError, AttributeError):  # for another machine, or TurboJPEG 2
            continue
        if _is_exact(found):
            return found
    return None


def _is_exact(found: ctypes.CDLL) -> bool:
    """Whether regions equal the same part decoded by simplejpeg, for each subsampling."""
    import simplejpeg

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (75, 99, 3)).astype(np.uint8)
    for subsampling in BLOCK_WIDTH:
        data = simplejpeg.encode_jpeg(pixels, 90, "RGB", subsampling)
        whole = simplejpeg.decode_jpeg(data, colorspace="RGB", fastdct=True)
        for box in ((17, 33, 21, 40), (0, 0, 75, 99), (16, 16, 32, 32)):
            top, left, height, width = box
            wanted = whole[top : top + height, left : left + width]
            try:
                if not np.array_equal(_decode(found, data, subsampling, 99, box), wanted):
                    return False
            except ValueError:
                return False
    return True


def decode_box(data: bytes, subsampling: str, width: int, box: Box) -> Image:
    """The pixels (h, w, 3) uint8 RGB of a box, equal to `decode(data)[box]`.

    Args:
      subsampling: a key of BLOCK_WIDTH; width: of the whole image, in pixels.

    Raises:
      ValueError: the file is damaged in or above the box.
    """
    found = library()
    assert found is not None
    return _decode(found, data, subsampling, width, box)


def _decode(found: ctypes.CDLL, data: bytes, subsampling: str, image_width: int, box: Box) -> Image:
    top, left, height, width = box
    # Chroma is interpolated between columns: a margin of one on the left and two on the right, so
    # that the edge of the region is not treated as the edge of the image.
    block = BLOCK_WIDTH[subsampling]
    begin, end = max(0, (left - 1) // block * block), min(image_width, left + width + 2)
    pixels = np.empty((height, end - begin, 3), np.uint8)
    instance = found.tj3Init(DECOMPRESS)
    try:
        if (
            found.tj3Set(instance, STOP_ON_WARNING, 1)
            or found.tj3DecompressHeader(instance, data, len(data))
            or found.tj3Set(instance, FAST_DCT, 1)
            or found.tj3SetCroppingRegion(instance, _Region(begin, top, end - begin, height))
            or found.tj3Decompress8(instance, data, len(data), pixels.ctypes.data, 0, RGB)
        ):
            raise ValueError(found.tj3GetErrorStr(instance).decode(errors="replace"))
    finally:
        found.tj3Destroy(instance)
    return pixels[:, left - begin : left - begin + width]
