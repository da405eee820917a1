"""Opens an input file: unpacks gzip, and names what is not JSON in UTF-8."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from mathcanvas_lightning.common.file_kinds import START_BYTES, kind_of
from mathcanvas_lightning.errors import InputError

UTF8_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
WANTED_JSON = "a JSON array or JSON lines in UTF-8, plain or packed by gzip"


@contextlib.contextmanager
def opened_text(path: Path, place: str, wanted: str = WANTED_JSON) -> Iterator[BinaryIO]:
    """Opens a text file, unpacked if it is a gzip file, behind its byte order mark.

    Args:
        path: A local file.
        place: Name of the file in errors.
        wanted: What the file should be, for errors.

    Yields:
        The file, which can be read and sought.

    Raises:
        InputError: If it is something else, or the gzip file is damaged.
    """
    with path.open("rb") as raw:
        is_gzip = raw.read(len(_GZIP)) == _GZIP
        raw.seek(0)
        with contextlib.ExitStack() as stack:
            file: BinaryIO = raw
            if is_gzip:
                unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb"))
                file = cast("BinaryIO", unpacked)
            try:
                start = file.read(START_BYTES)
                file.seek(len(UTF8_MARK) if start.startswith(UTF8_MARK) else 0)
                _check_start(start, place, wanted)
                yield file
            except (EOFError, zlib.error, gzip.BadGzipFile) as error:
                raise InputError(
                    place,
                    found=f"a damaged gzip file ({error})",
                    wanted="a whole file",
                    remedy="Copy it again; finished shards stay.",
                ) from None


def _check_start(start: bytes, place: str, wanted: str) -> None:
    kind = kind_of(start.lstrip(b" \t\r\n")) or kind_of(start)
    found, remedy = (kind.name, f"{kind.remedy[0].upper()}{kind.remedy[1:]}.") if kind else ("", "")
    if kind is None and wanted == WANTED_JSON and b"\0" in start:
        found, remedy = "a binary file", "Check the path, or convert it to text or Parquet."
    if found:
        raise InputError(place, found=found, wanted=wanted, remedy=remedy)
