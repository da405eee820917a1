"""Recognises files by their first bytes, to say in an error what a file is instead.

Pointer files of Git LFS stand for files that were not downloaded.
"""

import re
from dataclasses import dataclass
from pathlib import Path

POINTER_START = b"version https://git-lfs.github.com/spec/"
POINTER = "a Git LFS pointer instead of the file (run git lfs pull where it comes from)"
"""Description for error messages."""
START_BYTES = 64
"""Bytes at the start of a file that show its kind."""
_UNPACK = "unpack it"
_UTF8 = "save it as UTF-8: iconv -f {} -t UTF-8 FILE > NEW_FILE"
_CONVERT = "convert it first"


@dataclass(frozen=True, slots=True)
class FileKind:
    """A kind of files that are not what was expected."""

    name: str
    """Name with its article, such as "a zip archive"."""
    remedy: str
    """What to do, in small letters; such as "unpack it"."""


_PATTERNS: tuple[tuple[bytes, str, str], ...] = (
    (re.escape(POINTER_START), POINTER, "then run again"),
    (rb"\x1f\x8b", "a gzip file", _UNPACK),
    (rb"PK(\x03\x04|\x05\x06)", "a zip archive", _UNPACK),
    (rb"\x28\xb5\x2f\xfd", "a zstd file", _UNPACK),
    (rb"BZh[1-9]", "a bzip2 file", _UNPACK),
    (rb"\xfd7zXZ\0|\x5d\0\0", "an xz file", _UNPACK),
    (rb"7z\xbc\xaf", "a 7z archive", _UNPACK),
    (rb"Rar!", "a RAR archive", _UNPACK),
    (rb"PAR1", "a Parquet file", "let its name end in .parquet"),
    (rb"ARROW1", "an Arrow file", "convert it to Parquet first"),
    (rb"\xff\xff\xff\xff.{3}\0", "an Arrow stream", "convert it to Parquet first"),
    (rb"SQLite format 3", "an SQLite database", _CONVERT),
    (rb"\x89HDF", "an HDF5 file", _CONVERT),
    (rb"\x93NUMPY", "a NumPy array", _CONVERT),
    (rb"\x80[\x02-\x05][\x8a\x95}\](c]", "a pickle, which is never read", _CONVERT),
    (rb"%PDF", "a PDF document", _CONVERT),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|RIFF....WEBP|II\*\0|MM\0\*", "a picture", "correct the path"),
    (rb"....ftyp(hei|hev|mif1|msf1)", "a HEIC photo", _CONVERT),
    (rb"....ftypavi", "an AVIF image", _CONVERT),
    (rb"....ftyp", "a video", _CONVERT),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image", _CONVERT),
    (rb"\0\0\0\x0cjP  ", "a JPEG 2000 image", _CONVERT),
    (rb"(\xff\xfe\0\0|\0\0\xfe\xff|.\0\0\0|\0\0\0.)", "text in UTF-32", _UTF8.format("UTF-32")),
    (
        rb"(\xff\xfe|\xfe\xff|[^\0]\0[^\0]\0|\0[^\0]\0[^\0])",
        "text in UTF-16",
        _UTF8.format("UTF-16"),
    ),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "an SVG drawing", "convert it to PNG first"),
    (
        rb"\s*<[!?a-zA-Z]",
        "HTML or XML",
        "if it was downloaded, its server may have answered with an error page",
    ),
)
_KINDS = tuple((re.compile(start, re.DOTALL), FileKind(*about)) for start, *about in _PATTERNS)


def kind_of(start: bytes) -> FileKind | None:
    """Recognises a file.

    Args:
        start: Its first bytes, `START_BYTES` or more.

    Returns:
        The kind; None for JSON, CSV and other text, and for what is not known.
    """
    return next((kind for pattern, kind in _KINDS if pattern.match(start)), None)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a Git LFS pointer."""
    return start.startswith(POINTER_START)


def describe_file(path: Path, otherwise: str) -> str:
    """Description of a file that can't be read: a pointer if it is one."""
    with path.open("rb") as file:
        return POINTER if is_lfs_pointer(file.read(len(POINTER_START))) else otherwise
