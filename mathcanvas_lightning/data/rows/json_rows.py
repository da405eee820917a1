"""Rows of a JSON file, found by their first byte: JSON lines, or the items of one array."""

import re
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from mathcanvas_lightning.common.file_kinds import START_BYTES, kind_of

CHUNK_BYTES = 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_TOKENS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|["\[\]{},]', re.DOTALL)
"""A whole string, a quote whose string is not complete yet, or a mark of the structure."""


class NoRowsError(ValueError):
    """A file that is neither JSON lines nor an array.

    Args:
        found: What it is instead.
        remedy: What to do.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"{found}. {remedy}")
        self.found, self.remedy = found, remedy


def iter_rows(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yields the rows of a file with the offsets of their first bytes.

    Args:
        file: JSON lines, or an array; read only as far as needed.
        start: Offset of the first row to read.

    Yields:
        Offset and bytes of a row, whose JSON is not checked.

    Raises:
        NoRowsError: If an array has no end, something is behind it, or the file is not JSON.
    """
    file.seek(0)
    head = file.read(START_BYTES)
    if (kind := kind_of(head)) is not None:
        raise NoRowsError(kind.name, f"{kind.remedy[0].upper()}{kind.remedy[1:]}.")
    is_array = head.removeprefix(BYTE_ORDER_MARK).lstrip().startswith(b"[")
    if is_array and start == 0:
        start = head.index(b"[") + 1
    file.seek(start)
    return _items(file, start) if is_array else _lines(file, start)


def read_rows(file: BinaryIO, start: int, count: int) -> list[bytes]:
    """Reads some rows from an offset on; fewer at the end of the file."""
    return [row for _, row in islice(iter_rows(file, start), count)]


def _lines(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    for line in file:
        if line.strip():
            yield offset, line
        offset += len(line)


def _items(file: BinaryIO, offset: int) -> Iterator[tuple[int, bytes]]:
    """The items of an array; `offset` is inside the array, before an item."""
    buffer, scanned, depth = b"", 0, 0  # the buffer starts with an item
    while chunk := file.read(CHUNK_BYTES):
        buffer += chunk
        begin = 0
        for token in _TOKENS.finditer(buffer, scanned):
            mark = token[0]
            if mark == b'"':
                break  # the next chunk completes the string
            scanned = token.end()
            depth += (mark in (b"[", b"{")) - (mark in (b"]", b"}"))
            if depth < 0 or (depth == 0 and mark == b","):
                if item := buffer[begin : token.start()].strip():
                    yield offset + begin, item
                begin = token.end()
            if depth < 0:
                _require_end(buffer[begin:] + file.read(CHUNK_BYTES))
                return
        buffer, scanned, offset = buffer[begin:], scanned - begin, offset + begin
    raise NoRowsError("an array without its end", "The file is cut short: copy it again.")


def _require_end(rest: bytes) -> None:
    if rest := rest.strip():
        found = f"something behind the end of its array ({rest[:20]!r})"
        raise NoRowsError(found, "Write all rows into one array, or each row on one line.")
