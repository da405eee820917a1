"""Paths and URLs: which are remote, how names are joined, sorted and shown."""

import os
import re
import sys
from pathlib import Path
from urllib.parse import quote, unquote

_SCHEME = "file://"


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL other than `file://`."""
    return "://" in path and not path.startswith(_SCHEME)


def is_http(path: str) -> bool:
    """Whether a path is a URL of a web server, which may have a query."""
    return path.startswith(("http://", "https://"))


def local_path(path: str | Path) -> Path:
    """The local path of a plain path or a `file://` URL, with `~` expanded."""
    return Path(plain_path(str(path)))


def plain_path(path: str) -> str:
    """A local path without `file://` and with `~` expanded; other URLs stay unchanged."""
    if is_remote(path):
        return path
    return os.path.expanduser(path.removeprefix(_SCHEME))  # noqa: PTH111 - Path drops "./"


def without_query(path: str) -> str:
    """A path or URL without the query of a presigned URL: what ids, names and errors may show."""
    return re.split(r"[?#]", path, maxsplit=1)[0] if is_http(path) else path


def file_name(path: str) -> str:
    """The last part of a path or URL."""
    return without_query(path).rstrip("/").rpartition("/")[2]


def parent_folder(path: str) -> str:
    """The folder of a file, without a query; "" for a name without a folder."""
    return without_query(path).rpartition("/")[0]


def join_path(folder: str, name: str) -> str:
    """The path or URL of a file below a folder.

    Args:
        folder: A local path or a URL; the query of a URL is kept.
        name: The plain name or relative path; it is quoted where the folder is on a web server.
    """
    if not is_remote(folder):
        return os.path.join(plain_path(folder) or ".", name)  # noqa: PTH118 - much faster than Path
    start = without_query(folder)
    query = folder[len(start) :]
    return f"{start.rstrip('/')}/{quote(name) if is_http(folder) else name}{query}"


def unquoted_name(path: str) -> str:
    """The last part of a path or URL as a plain file name."""
    name = file_name(path)
    return unquote(name).replace("/", "_").replace("\0", "_") if is_http(path) else name


def natural_key(path: str) -> tuple[str, list[tuple[int, str]]]:
    """Sorts paths or URLs by folder, then by the numbers in their names."""
    folder, _, name = path.rpartition("/")
    pieces = re.findall(r"\d+|\D+", name)
    return folder, [(int(p), "") if p.isdecimal() else (-1, p) for p in pieces]


def user_cache() -> Path:
    """The folder of this library in the user's cache: in $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mathcanvas_lightning"


def import_from_here() -> None:
    """Makes modules of the working folder importable.

    Python adds the folder of the script instead, which is of no use for installed commands.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
