"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A path to write to, beside `file`; it takes its place, on the disk, when all went well.

    Otherwise what was there before stays, and the half-written file goes.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_text(file: Path, text: str) -> None:
    """Writes UTF-8; the file appears whole or not at all. Of a path, odd bytes become \\udcff."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: Path, values: Any) -> None:
    """Writes indented JSON; the file appears whole or not at all."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
      UserError: it cannot be read or is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}).") from error
