"""A checksum inside a file, of all its bytes and of the files that belong to it.

The name `checksum`, in JSON, ONNX metadata or XML, is followed by the first 16 digits of the
SHA-256 of everything, computed with zeros in their place. Other programs read the file as before;
one that modifies it invalidates the checksum.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterable
from pathlib import Path

from vit_jax import files
from vit_jax.errors import UserError

NAME = "checksum"
#: The placeholder that `seal` replaces.
OPEN = "0" * 16
PLACE = re.compile(rb'checksum(?:": "|\x12\x10|&quot;: &quot;)(.{16})', re.DOTALL)


def seal(file: Path, beside: Iterable[Path] = ()) -> None:
    """Writes the checksum into a file with the placeholder OPEN, over it and the files beside it.

    Raises:
      ValueError: there is no placeholder.
    """
    place, found = digest(file, beside)
    if place is None:
        raise ValueError(f"{file} has no placeholder for a checksum")
    with open(file, "r+b") as written:
        written.seek(place[0])
        written.write(found.encode())


def check(file: Path, beside: Iterable[Path] = ()) -> bool:
    """Whether there is a checksum; verifies it, unless `files.VERIFY` is off.

    Raises:
      UserError: it does not match, or a file cannot be read.
    """
    try:
        place, found = digest(file, beside)
        if place is None or not files.VERIFY.get():
            return place is not None
        with open(file, "rb") as opened:
            opened.seek(place[0])
            written = opened.read(16)
    except OSError as error:
        where = error.filename or file
        raise UserError(f"{where} cannot be read ({error.strerror or error}).") from error
    if written != found.encode():
        raise UserError(
            f"{file} is damaged: its checksum does not match. Copy or export it again "
            "(--verify=false reads it as it is)."
        )
    return True


def checksum(file: Path) -> str:
    """The first 16 digits of the SHA-256 of a file."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def find(file: Path, text: bytes) -> bool:
    """Whether a file contains a text."""
    with open(file, "rb") as opened:
        if not file.stat().st_size:
            return False
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0


def digest(file: Path, beside: Iterable[Path]) -> tuple[tuple[int, int] | None, str]:
    """(position of the digits or None, their correct value)."""
    found = hashlib.sha256()
    place = None
    with open(file, "rb") as opened:
        if Path(file).stat().st_size:
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                match = PLACE.search(content)
                if match is None:
                    return None, ""
                place = match.span(1)
                del match
                add(found, opened, place[0])
                found.update(OPEN.encode())
                opened.seek(place[1])
        add(found, opened)
    for path in sorted(beside):
        with open(path, "rb") as opened:
            found.update(f"{path.name} {path.stat().st_size}".encode())
            add(found, opened)
    return place, found.hexdigest()[:16]


def add(found, opened, size: int | None = None) -> None:
    """Hashes this many bytes, or the rest."""
    left = size
    while chunk := opened.read(2**20 if left is None else min(left, 2**20)):
        found.update(chunk)
        left = None if left is None else left - len(chunk)
