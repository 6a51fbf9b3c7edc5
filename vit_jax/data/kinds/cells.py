"""Cells of a text table; encoding and delimiter are detected."""

from __future__ import annotations

import codecs
import csv
import io
import re
from pathlib import Path
from typing import NamedTuple

from vit_jax import files
from vit_jax.data.image_files import shown
from vit_jax.data.labels import normal
from vit_jax.errors import UserError

DELIMITERS = ",;\t|"
#: Stripped from cells besides blanks: zero-width space, word joiner, BOM.
INVISIBLE = "\u200b\u2060\ufeff"
#: First bytes of other files that are given as tables, and what to do.
ARCHIVE = "an archive; unpack it, and give the folder"
OTHERS = {
    b"PAR1": "Parquet, which is read as hf:{file}",
    b"PK\3\4": "an archive, or a spreadsheet; unpack it, or save it as CSV",
    b"\x1f\x8b": ARCHIVE, b"BZh": ARCHIVE, b"\xfd7zXZ": ARCHIVE, b"7z\xbc\xaf": ARCHIVE,
    b"Rar!": ARCHIVE, b"(\xb5/\xfd": ARCHIVE, b"ustar": ARCHIVE,
}  # fmt: skip


class Table(NamedTuple):
    """rows: (line in the file, cells). encoding: in which paths are tried as well."""

    file: str
    columns: list[str]
    rows: list[tuple[int, list[str]]]
    encoding: str
    notes: list[str]


def read_text(file: str, encoding: str = "") -> tuple[str, str, bool]:
    """The text of a file, its encoding, and whether the encoding is a guess.

    Args:
      encoding: Python's name of it; "" tries UTF-8, UTF-16 and Windows-1252.

    Raises:
      UserError: it cannot be read, is not text, or the encoding does not exist.
    """
    try:
        files.check_regular(Path(file))
        check_kind(file)
        content = Path(file).read_bytes()
    except OSError as error:
        raise UserError(f"{shown(file)} cannot be read ({error.strerror}).") from error
    if encoding:
        try:
            return content.decode(encoding), encoding, False
        except LookupError as error:
            raise UserError(
                f"encoding={encoding} is unknown; there are utf-8, cp1251, shift_jis, gb18030, "
                "euc_kr and the others of Python's codecs."
            ) from error
        except ValueError as error:
            raise UserError(f"{shown(file)} is not encoded as {encoding} ({error}).") from error
    marks = (
        (codecs.BOM_UTF8, "utf-8-sig"),
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    )
    encodings = [name for mark, name in marks if content.startswith(mark)][:1]
    if not encodings and 8 * content.count(0) > len(content):  # half of plain text in UTF-16
        even, odd = content[::2].count(0), content[1::2].count(0)
        encodings = ["utf-16-le" if odd > even else "utf-16-be"]
    for encoding in encodings or ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if not re.search(r"[\0-\x08\x0e-\x1f\ufffe]", text):
            return text, encoding, encoding == "cp1252"
    raise UserError(
        f"{shown(file)} is not text in UTF-8, UTF-16 or Windows-1252; save it as CSV in UTF-8, or "
        "name its encoding, e.g. ?encoding=shift_jis."
    )


def check_kind(file: str) -> None:
    """Raises UserError for a file of another kind, such as an archive, by its first bytes."""
    with open(file, "rb") as opened:
        start = opened.read(262)
    for mark, what in OTHERS.items():
        if start.startswith(mark) or (mark == b"ustar" and start.endswith(mark)):
            what = what.format(file=shown(file))
            raise UserError(f"{shown(file)} is {what}.")


def read_table(file: str, encoding: str = "") -> Table:
    """The columns and rows of a file with a header line.

    Encoding (unless given) and delimiter (comma, semicolon, tab or bar) are detected. Empty rows
    are skipped.

    Raises:
      UserError: not a table; names the file and, where possible, the line.
    """
    text, encoding, guessed = read_text(file, encoding)
    name, notes = shown(file), []
    declared = re.match(r"sep=([,;\t|])\r?\n", text)  # what Excel writes and reads
    text = text[declared.end() :] if declared else text
    first = text.lstrip("\r\n").partition("\n")[0]
    delimiter = declared[1] if declared else max(DELIMITERS, key=_outside_quotes(first).count)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=delimiter != "\t"
    )
    rows = []
    try:
        for cells in reader:
            cells = [cell.strip().strip(INVISIBLE).strip() for cell in cells]
            if any(cells):
                rows.append((reader.line_num + bool(declared), cells))
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}.") from error
    if not rows:
        raise UserError(f"{name} is empty.")
    columns = [normal(cell) for cell in rows[0][1]]
    while columns and not columns[-1]:
        columns.pop()
    for line, cells in rows:
        if any("\n" in cell or "\r" in cell for cell in cells):
            raise UserError(f"{name}, line {line}: a quote is not closed.")
        if any(cells[len(columns) :]):
            raise UserError(
                f"{name}, line {line}: {len(cells)} cells, but the first line has "
                f"{len(columns)} columns; put quotes around a cell with {delimiter!r} in it."
            )
    if guessed:
        odd = next((cell for _, cells in rows for cell in cells if not cell.isascii()), "")
        notes.append(
            f"{name} is not UTF-8: read as Windows-1252 ({odd!r}); set another by ?encoding="
        )
    return Table(file, columns, rows[1:], encoding, notes)


def _outside_quotes(line: str) -> str:
    return re.sub(r'"[^"]*"', "", line)
