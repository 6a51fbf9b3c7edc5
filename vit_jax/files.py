"""Atomic replacement of files; JSON in and out; calling functions of a Python file."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import json
import os
import re
import runpy
import stat
import sys
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vit_jax.errors import UserError, nearest

#: Whether checksums in a file of weights are verified when it is read.
VERIFY = contextvars.ContextVar("verify", default=True)


def check_regular(file: Path) -> None:
    """Raises UserError unless it is a regular file: a FIFO, a device or a socket may never end."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise UserError(
            f"{file} is not a regular file, but a FIFO, a device, a socket or a folder."
        )


def check_new(file: Path) -> None:
    """Raises UserError for an existing file, or a link of its name; and as `check_above`."""
    if os.path.lexists(file):
        raise UserError(f"{file} exists and would be overwritten; choose another place.")
    check_above(file)


def check_directory(path: Path) -> None:
    """Raises UserError for an output directory that is something else; and as `check_above`."""
    if os.path.lexists(path) and not path.is_dir():
        raise UserError(f"{path} is a file; give a directory with --out.")
    check_above(path, "; give another one with --out")


def check_above(path: Path, advice: str = "") -> None:
    """Raises UserError if nothing can be written to a path, a file or a directory.

    One of the directories above is a file, or the nearest that exists is read-only for this user.
    """
    places = (path.absolute(), *path.absolute().parents)
    above = next(place for place in places if os.path.exists(place))
    if above == places[0] and not above.is_dir():
        above = above.parent
    if not above.is_dir():
        raise UserError(f"{path} cannot be written: {above} is not a directory{advice}.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise UserError(f"{path} cannot be written: {above} is read-only for this user{advice}.")


def user_cache() -> Path:
    """$XDG_CACHE_HOME, or ~/.cache.

    Raises:
      UserError: this user has no home directory, as in some containers.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        raise UserError("This user has no home directory; set HOME or XDG_CACHE_HOME.") from None


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """A temporary path beside `file`, which replaces it, synced to disk, on success.

    On failure the old file stays, and the partial one is removed.

    Raises:
      UserError: the disk is full, or the file cannot be written for another reason.
    """
    partial = file.with_name(file.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    except BaseException as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        if reason := why_not_written(error, partial):
            raise UserError(f"{file} cannot be written ({reason}).") from error
        raise


@contextlib.contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A temporary directory beside `target`, to make it in; removed at the end.

    Raises:
      UserError: the disk is full, or nothing can be written there for another reason.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".making-") as scratch:
        try:
            yield Path(scratch)
        except Exception as error:
            cause = error.__cause__ if isinstance(error, UserError) else error  # of `replacing`
            if reason := why_not_written(cause, Path(scratch)):
                raise UserError(f"{target} cannot be written ({reason}).") from error
            raise


def why_not_written(error: BaseException | None, place: Path) -> str:
    """Why `place`, or what is in it, cannot be written; "" for an error of something else.

    A full disk often names no file, and safetensors has an error of its own for it.
    """
    if isinstance(error, OSError):
        where = Path(str(error.filename or place))
        return (error.strerror or str(error)) if where.is_relative_to(place) else ""
    found = re.search(r"I/O error: (.+) \(os error \d+\)", str(error))
    return found[1] if found else ""


def reserve(file: Path) -> None:
    """Allocates the disk space of a file to map into memory: a full disk would raise SIGBUS later.

    Raises:
      OSError: there is not enough.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, os.fstat(opened.fileno()).st_size)


def write_text(file: Path, text: str) -> None:
    """Writes UTF-8, atomically. Invalid bytes of paths become \\udcff."""
    with replacing(file) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(file: Path, values: object) -> None:
    """Writes indented JSON, atomically."""
    write_text(file, json.dumps(values, indent=2) + "\n")


def read_json(file: Path) -> Any:
    """The content of a JSON file; None if there is no such file.

    Raises:
      UserError: it cannot be read, is not JSON, or has a key twice.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) < len(pairs):
            key = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
            raise UserError(f"{file} has the key {key!r} twice; keep one.")
        return found

    try:
        return json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=once)
    except UserError:
        raise
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not JSON ({error}).") from error


def runs_in(place: Path) -> str:
    """A hint where a run is needed and its parent folder was given; "" if it holds no run."""
    inside = sorted(place.glob("*/metrics.jsonl"))
    return f" It contains runs: name one, such as {inside[-1].parent}." if inside else ""


def call_in(path: str, function: str, *arguments: object) -> object:
    """Calls a function of a Python file, which may import modules beside it.

    Raises:
      UserError: any error in the file, with its line.
    """
    with _naming_lines(path):
        called = runpy.run_path(path).get(function)
        if called is None:
            example = "quickstart" if function == "get_config" else "studies/shape"
            raise UserError(f"{path} does not define {function}(); see configs/{example}.py.")
        return called(*arguments)


def values_in(path: str) -> dict[str, Any]:
    """The names that a Python file defines; it may import modules beside it.

    Raises:
      UserError: any error in the file, with its line.
    """
    with _naming_lines(path):
        return runpy.run_path(path)


def defined_in(path: str, name: str) -> Any:
    """A plug-in: the object `name` of a Python file outside the package.

    The file is imported once, as a module of its own name, so that worker processes find it too.

    Raises:
      UserError: there is no such file or name, or any error in the file, with its line.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise UserError(f"There is no file {path} that defines {name}.")
    module_name = Path(path).stem
    with _naming_lines(path):
        module = importlib.import_module(module_name)
        if os.path.realpath(getattr(module, "__file__", None) or "") != os.path.realpath(path):
            raise UserError(
                f"{path} has the name of another module, {module.__name__!r}; rename it."
            )
        if not hasattr(module, name):
            raise UserError(f"{path} does not define {name}.{nearest(name, vars(module))}")
    if os.path.dirname(path) not in sys.path:
        sys.path.append(os.path.dirname(path))
    return getattr(module, name)


@contextlib.contextmanager
def _naming_lines(path: str) -> Iterator[None]:
    """Turns errors in a Python file into UserError with its line; adds its folder to the path."""
    beside = os.path.dirname(os.path.abspath(path))
    sys.path.insert(0, beside)
    try:
        yield
    except UserError:
        raise
    except SystemExit as error:
        raise UserError(
            f"{path} ends the program (exit {error.code}) instead of a config."
        ) from error
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""  # without, if it is not text
        raise UserError(f"{error.filename or path}{where}: {error.msg}.") from error
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == path]
        where = f"{path}, line {lines[-1]}" if lines else path
        text = str(error).strip().split("\n")[0]
        raise UserError(f"{where}: {type(error).__name__}: {text}") from error
    finally:
        sys.path.remove(beside)
