"""Streams the records of a JSON array or of JSON lines; errors give line and column."""

import contextlib
import json
import re
import sys
from collections.abc import Callable, Generator, Iterator
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import ijson

from mathcanvas_lightning.conversion.input.encoding import opened_text
from mathcanvas_lightning.errors import InputError

CHUNK_BYTES = 2**16
LINE_SUFFIXES = (".jsonl", ".ndjson")
_NOT_JSON = re.compile(rb"-?Infinity|NaN")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_ESCAPE = re.compile(
    rb"\\(?:(?P<rest>(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB]..(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?\Z)"
    rb"|u[dD][89abAB]..\\u[dD][c-fC-F]..|(?P<half>u[dD][89a-fA-F]..)|.)",
    re.DOTALL,
)
"""An escape sequence: the start of one, a surrogate pair, half of one, or any other."""
_LONGEST_ESCAPE = 12
_MAX_DIGITS = sys.int_info.default_max_str_digits
_MANY_DIGITS = re.compile(rb"[0-9]{%d}" % (_MAX_DIGITS + 1))
_SAMPLED = 256
_MANY_SAMPLES = re.compile(rb"[0-9]{%d}" % (_MAX_DIGITS // _SAMPLED))
"""What is left of many digits if only each 256th byte is taken; much faster to find."""
_MAX_DEPTH = 2000
"""Levels within some kilobytes, from which on ijson is not used."""
_MARK, _MARKED_HALF = "\ufdd0", "\ud800"
"""Replaces half of a surrogate pair while ijson parses, and the half that is put back after it."""


def read_records(path: Path, place: str) -> Generator[Any]:
    """Yields the values of a JSON array, or of JSON lines, one at a time.

    A file is read as lines if its first character is not `[`, or if its name ends in `.jsonl` or
    `.ndjson` and its first line is a JSON value. A file packed by gzip is unpacked.

    Args:
        path: A local file.
        place: Name of the file in errors.

    Yields:
        JSON values as Python objects.

    Raises:
        InputError: At the first malformed byte, with line and column.
    """
    with opened_text(path, place) as file:
        start = file.tell()
        first_line = next((line for line in file if line.strip()), b"").strip()
        file.seek(start)
        if not first_line:
            return
        is_array = first_line.startswith(b"[")
        if is_array and path.name.lower().removesuffix(".gz").endswith(LINE_SUFFIXES):
            is_array = not _is_json(first_line)
        yield from (_array_items if is_array else _lines)(file, place)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        # A line that nests too deep is complete.
        return isinstance(error, RecursionError)
    return True


def _lines(file: BinaryIO, place: str) -> Iterator[Any]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            reason = f"{error.msg}{_line_hint(error.doc, error.pos)}"
            raise _broken(place, number, error.pos + 1, reason) from None
        except UnicodeDecodeError as error:
            column = len(line[: error.start].decode()) + 1
            raise _broken(place, number, column, f"a byte that is not UTF-8 ({error})") from None
        except (RecursionError, ValueError) as error:
            raise _broken(place, number, 1, str(error)) from None


def _line_hint(line: str, position: int) -> str:
    """What a line is instead of a JSON value, if that is known."""
    before, after = line[:position].strip(), line[position:].lstrip(" \t")
    if not after:
        return "; write each object on one line, or all in an array"
    if after.startswith(("//", "#")):
        return "; JSON has no comments"
    if before and after[0] == ",":
        return "; remove the comma behind the object"
    if "\r" in line[:position]:
        return "; end each line with a line feed"
    if before.endswith(("}", "]")) and after[0] in "{[":
        return "; write each object on a separate line"
    if after[0] == "'":
        return "; JSON has double quotes, Python writes single ones"
    return "" if before else "; a CSV file is named .csv or .tsv"


def _array_hint(file: BinaryIO, offset: int) -> str:
    """The usual mistakes at a byte of an array."""
    start = max(offset - 64, 0)
    file.seek(start)
    before, byte = file.read(offset - start).rstrip(), file.read(1)
    if before.endswith(b",") and byte in (b"]", b"}"):
        return "; remove the comma before the end"
    return "; JSON has double quotes, Python writes single ones" if byte == b"'" else ""


def _array_items(file: BinaryIO, place: str) -> Iterator[Any]:
    start = file.tell()
    marked = _MarkedHalves(_Guarded(file))
    number_read, unsafe = 0, start
    try:
        # Not use_float=True: that refuses integers of more than 64 bits, which JSON allows.
        for item in ijson.items(marked, "item", buf_size=CHUNK_BYTES):
            yield _as_json_reads(item, has_halves=marked.has_halves)
            number_read += 1
        return
    except _UnsafeError as error:
        unsafe = error.offset
    except ArithmeticError:  # an exponent that is too large for a decimal
        pass
    except (ijson.JSONError, ValueError, RecursionError) as error:
        offset = _failing_byte(file, start)
        line, column = _line_and_column(file, offset)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if (name := _number_name(file, offset)) is not None:
            reason = f"{name}, which is no JSON; write null"
        else:
            reason += _array_hint(file, offset)
        raise _broken(place, line, column, reason) from None
    yield from islice(_whole_array(file, start, unsafe, place), number_read, None)


def _whole_array(file: BinaryIO, start: int, unsafe: int, place: str) -> list[Any]:
    """Parses an array at once, by Python's parser, which needs more memory but is always safe.

    Args:
        file: A file with an array.
        start: Offset of the array.
        unsafe: Offset of what ijson can't parse; the place of an error that has no other one.
        place: Name of the file in errors.
    """
    file.seek(start)
    try:
        found: list[Any] = json.loads(file.read(), parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise _broken(place, error.lineno, error.colno, error.msg) from None
    except (RecursionError, ValueError) as error:
        is_deep = isinstance(error, RecursionError)
        reason = "arrays or objects nested hundreds of levels deep" if is_deep else str(error)
        line, column = _line_and_column(file, unsafe)
        raise _broken(place, line, column, reason) from None
    return found


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which is no JSON; write null")


class _UnsafeError(Exception):
    """Bytes that ijson must not parse.

    Args:
        offset: Their offset in the file.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class _Guarded:
    """A file that raises before ijson gets what it can't parse.

    An integer of more digits than Python converts ends the process, and deep nesting needs memory
    that grows with the square of its levels.

    Args:
        file: A JSON file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._before = b""

    def read(self, size: int) -> bytes:
        """Reads some bytes.

        Raises:
            _UnsafeError: If ijson can't parse them.
        """
        data = self._file.read(size)
        joined = self._before + data
        start = self._file.tell() - len(joined)
        if _MANY_SAMPLES.search(joined[::_SAMPLED]) and (digits := _MANY_DIGITS.search(joined)):
            raise _UnsafeError(start + digits.start())
        if _deepest(joined) > _MAX_DEPTH:
            raise _UnsafeError(start)
        self._before = joined[-_MAX_DIGITS:]
        return data


def _number_name(file: BinaryIO, offset: int) -> str | None:
    """The name of a number that Python writes into JSON, if parsing has failed in one."""
    file.seek(max(offset - len("-Infinity"), 0))
    around = file.read(2 * len("-Infinity"))
    found = list(_NOT_JSON.finditer(around))
    before = min(offset, len("-Infinity"))
    return next((m[0].decode() for m in found if m.start() <= before <= m.end()), None)


def _deepest(data: bytes) -> int:
    """The number of open brackets where it is highest, to within 4 KiB; in texts they count too."""
    depth = deepest = 0
    for start in range(0, len(data), 4096):
        piece = data[start : start + 4096]
        depth += sum(map(piece.count, b"[{")) - sum(map(piece.count, b"]}"))
        deepest = max(depth, deepest)
    return deepest


class _MarkedHalves:
    """A file in which a mark replaces each half of a surrogate pair that is an escape sequence.

    ijson would read a question mark, without an error.

    Args:
        file: A JSON file.
    """

    def __init__(self, file: _Guarded) -> None:
        self._file = file
        self._rest = b""
        self.has_halves = False
        """Whether there was such a half."""

    def read(self, size: int) -> bytes:
        """Reads some bytes; none at the end of the file."""
        data = b""
        while not data:
            chunk = self._file.read(size)
            data, self._rest = self._rest + chunk, b""
            if not chunk:
                return data
            if b"\\" in data[-_LONGEST_ESCAPE:] or _HALF.search(data):
                data = _ESCAPE.sub(self._replace, data)
        return data

    def _replace(self, escape: re.Match[bytes]) -> bytes:
        if escape["rest"] is not None:
            self._rest = escape[0]
            return b""
        if escape["half"] is None:
            return escape[0]
        self.has_halves = True
        return json.dumps(_MARK)[1:-1].encode()


def _as_json_reads(value: Any, *, has_halves: bool) -> Any:
    """Converts decimals to floats, and marks to halves of surrogate pairs, as json has them."""
    if isinstance(value, dict):
        items = ((_as_json_reads(n, has_halves=has_halves), v) for n, v in value.items())
        return {name: _as_json_reads(item, has_halves=has_halves) for name, item in items}
    if isinstance(value, list):
        return [_as_json_reads(item, has_halves=has_halves) for item in value]
    if has_halves and isinstance(value, str):
        return value.replace(_MARK, _MARKED_HALF)
    return float(value) if isinstance(value, Decimal) else value


def _failing_byte(file: BinaryIO, start: int) -> int:
    """Finds the byte at which parsing fails: first the chunk, then byte by byte."""
    good = start
    with contextlib.suppress(Exception):
        feed = _parser()
        file.seek(start)
        while chunk := file.read(CHUNK_BYTES):
            feed(chunk)
            good += len(chunk)
    feed = _parser()
    file.seek(start)
    for size in [CHUNK_BYTES] * ((good - start) // CHUNK_BYTES):
        feed(file.read(size))
    with contextlib.suppress(Exception):
        while byte := file.read(1):
            feed(byte)
        return file.tell()  # all bytes are valid: the file ends too early
    return file.tell() - 1


def _parser() -> Callable[[bytes], None]:
    events = ijson.sendable_list()  # never read: only the parser's errors matter
    parser = ijson.basic_parse_coro(events)

    def feed(data: bytes) -> None:
        parser.send(data)
        events.clear()

    return feed


def _line_and_column(file: BinaryIO, offset: int) -> tuple[int, int]:
    file.seek(0)
    line, line_start, position = 1, 0, 0
    while position < offset:
        chunk = file.read(min(CHUNK_BYTES, offset - position))
        if newlines := chunk.count(b"\n"):
            line += newlines
            line_start = position + chunk.rindex(b"\n") + 1
        position += len(chunk)
    file.seek(line_start)
    text = file.read(offset - line_start).decode(errors="replace")
    return line, len(text) + 1


def _broken(place: str, line: int, column: int, reason: str) -> InputError:
    return InputError(
        f"{place}:{line}:{column}",
        found=f"malformed JSON ({reason})",
        wanted="a JSON array of objects, or one JSON object per line, in UTF-8",
        remedy="Fix the file and run again; finished shards stay.",
    )
