"""Opens an input file: unpacks gzip, and names what is not JSON in UTF-8."""

import contextlib
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from mathcanvas_lightning.common.git_lfs import POINTER, is_lfs_pointer
from mathcanvas_lightning.errors import InputError

UTF8_MARK = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_UNPACK = "Unpack it, and convert the file inside."
_UTF16 = ("text in UTF-16", "Save it as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW_FILE")
_UTF32 = ("text in UTF-32", "Save it as UTF-8: iconv -f UTF-32 -t UTF-8 FILE > NEW_FILE")
_PARQUET = "Let its name end in .parquet."
_STARTS = {
    b"\xff\xfe\0\0": _UTF32,
    b"\0\0\xfe\xff": _UTF32,
    **dict.fromkeys((b"\xff\xfe", b"\xfe\xff", b"{\0", b"[\0", b"\0{", b"\0["), _UTF16),
    b"PK\x03\x04": ("a zip archive", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("a zstd file", _UNPACK),
    b"BZh": ("a bzip2 file", _UNPACK),
    b"\xfd7zXZ": ("an xz file", _UNPACK),
    b"PAR1": ("a Parquet file", _PARQUET),
    b"<": ("HTML or XML", "If it was downloaded, its server may have answered with an error page."),
}
_START_BYTES = 64
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
                start = file.read(_START_BYTES)
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
    known = dict(_STARTS)
    if is_lfs_pointer(start):
        known[start] = (POINTER, "Then run again.")
    for magic, (found, remedy) in known.items():
        if start.lstrip(b" \t\r\n").startswith(magic):
            raise InputError(place, found=found, wanted=wanted, remedy=remedy)
