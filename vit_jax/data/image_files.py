"""Which files are images, how they are named, and which are skipped."""

from __future__ import annotations

import functools
import os
import stat
from collections import Counter
from pathlib import Path

from vit_jax.data.labels import normal
from vit_jax.errors import UserError, printable

#: Formats that Pillow opens only with other programs (Ghostscript, Windows), or without a picture.
NO_IMAGES = {"EPS", "WMF", "MPEG", "HDF5", "GRIB", "BUFR", "IPTC"}
#: Formats that need another package, and its name.
PACKAGES = {
    **dict.fromkeys((".heic", ".heif", ".hif"), "pillow-heif"),
    **dict.fromkeys((".avif", ".avifs"), "pillow-avif-plugin"),
    ".jxl": "pillow-jxl-plugin",
}
#: Files that operating systems create.
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"}
ARRAY = ".npy"  # pixels, uint8 (h, w, c)
LOOSE = "images outside of the class folders"
#: Magic bytes of images, for files without a suffix.
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  ")


@functools.cache
def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that Pillow decodes, with the installed plugins."""
    import PIL.features
    import PIL.Image

    names = set(formats())
    if not PIL.features.check("avif") and not _import("pillow_avif"):
        names.discard("AVIF")
    if not PIL.features.check("jpg_2000"):
        names.discard("JPEG2000")
    known = PIL.Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in names)


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read; none runs another program."""
    import PIL.Image

    register_plugins()
    PIL.Image.init()
    return tuple(sorted(set(PIL.Image.OPEN) - NO_IMAGES))


#: Maximum size of an encoded image: 100 million pixels, 16 bits, four channels, uncompressed.
MAX_BYTES = 2**30


def read_image_file(path: str | os.PathLike) -> bytes:
    """The bytes of an image file.

    Raises:
      UserError: it is not a regular file, or is larger than MAX_BYTES.
      OSError: it cannot be read.
    """
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a FIFO without a writer would block
    try:
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"The image {shown(str(path))} is not a regular file; leave it out.")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"The image {shown(str(path))} has {status.st_size:,} bytes, more than "
                f"{MAX_BYTES:,}; leave it out."
            )
        with open(opened, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(opened)


@functools.cache
def register_plugins() -> None:
    """Enables HEIC and JPEG XL in Pillow, where the packages are installed."""
    if _import("pillow_heif"):
        __import__("pillow_heif").register_heif_opener()
    _import("pillow_jxl")


def _import(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def shown(path: str) -> str:
    """A path as text to print and compare: NFC, on one line, invalid bytes as \\xff."""
    if not path.isascii():
        path = normal(encoded(path).decode("utf-8", "backslashreplace"))
    return printable(path)


def encoded(path: str) -> bytes:
    """The bytes of a path in NFC, to hash."""
    return normal(path).encode("utf-8", "surrogateescape")


def is_hidden(name: str) -> bool:
    return name.startswith(".") or name in SYSTEM_FOLDERS


def subfolders(path: str, skipped: Counter | None = None) -> list[str]:
    """Names of the folders in a folder, without hidden ones; other entries are counted."""
    found = []
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir() and not is_hidden(entry.name):
                found.append(entry.name)
            elif skipped is not None:
                suffix = os.path.splitext(entry.name)[1].lower()
                loose = entry.is_file() and not is_hidden(entry.name) and suffix in image_suffixes()
                skipped[LOOSE if loose else _kind(entry)] += 1
    return sorted(found)


def images_below(root: str, folder: str, skipped: Counter | None = None) -> list[str]:
    """Paths relative to `root` of the images in and below `folder`; other entries are counted.

    `.npy` files are returned only if there are no other images, and are skipped beside them.

    Args:
      skipped: receives the kinds of other files, and their numbers.
    """
    skipped = Counter() if skipped is None else skipped
    found = _files_below(root, folder, skipped, _parents(os.path.join(root, folder)))
    images = [path for path in found if not path.lower().endswith(ARRAY)]
    if images and len(images) < len(found):
        skipped[ARRAY] += len(found) - len(images)
    return images or found


def _parents(path: str) -> tuple[tuple[int, int], ...]:
    """(device, inode) of the folders above a path, as it is written and behind its links."""
    places = (os.path.abspath(path), os.path.realpath(path))
    above = {str(parent) for place in places for parent in Path(place).parents}
    return tuple((status.st_dev, status.st_ino) for status in map(os.stat, above))


def _files_below(root: str, folder: str, skipped: Counter, above: tuple) -> list[str]:
    """The images and `.npy` files. above: the parent folders, to which no link is followed."""
    found: list[str] = []
    where = os.path.join(root, folder)
    status = os.stat(where)
    here = (status.st_dev, status.st_ino)
    if here in above:
        skipped["links to a parent folder"] += 1
        return []
    with os.scandir(where) as entries:
        for entry in entries:
            path = os.path.join(folder, entry.name)
            if is_hidden(entry.name):
                skipped[_kind(entry)] += 1
            elif entry.is_dir():
                found += _files_below(root, path, skipped, (*above, here))
            elif entry.is_file() and _is_image(os.path.join(root, path)):
                found.append(path)
            else:
                skipped[_kind(entry)] += 1
    return found


def _is_image(path: str) -> bool:
    """By its suffix, or by magic bytes if it has none (`photo`, `photo.jpg~`, `photo.1`)."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix in image_suffixes() or suffix == ARRAY:
        return True
    if suffix[1:].isalnum() and not suffix[1:].isdecimal():
        return False
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except OSError:
        return False
    return start.startswith(SIGNATURES) or start[8:12] == b"WEBP" or start[4:12] == b"ftypavif"


def _kind(entry: os.DirEntry) -> str:
    """The kind of a skipped file: its suffix, or its name if the operating system created it."""
    if entry.is_dir():
        return f"{shown(entry.name)}/"
    if entry.name.startswith("._"):
        return "._*"
    if not entry.is_file():
        return "broken links" if entry.is_symlink() else "special files"
    if entry.name.startswith("."):
        return shown(entry.name)
    return shown(os.path.splitext(entry.name)[1].lower()) or "without a suffix"


def passed_over(skipped: Counter) -> list[str]:
    """Lines on the skipped files; [] if there are none."""
    loose = [f"skipped: {skipped[LOOSE]:,} {LOOSE}"] if skipped[LOOSE] else []
    kinds = []
    for kind, count in sorted(skipped.items(), key=lambda item: (-item[1], item[0])):
        if kind == LOOSE:
            continue
        package = PACKAGES.get(kind)
        hint = f" (pip install {package} to read them)" if package else ""
        kinds.append(f"{count:,} {kind}{hint}")
    return loose + ([f"skipped, not readable as images: {', '.join(kinds)}"] if kinds else [])
