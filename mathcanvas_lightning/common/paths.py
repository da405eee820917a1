"""Paths and URLs: which are remote, how names are joined, sorted and shown."""

import os
import re
import sys
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote, unquote

_SCHEME = "file://"
_FIRST_NAME = re.compile(r"(?<![\w./-])([A-Za-z_]\w*)\.[A-Za-z_]")
"""First name of a dotted path, such as that of a class."""
_YAML_FILE = re.compile(r"[^\s=,\"'\[\]{}]+\.ya?ml\b")


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL other than `file://`."""
    return "://" in path and not path.startswith(_SCHEME)


def is_http(path: str) -> bool:
    """Whether a path is a URL of a web server, which may have a query."""
    return path.startswith(("http://", "https://"))


def local_path(path: str | Path) -> Path:
    """The local path of a plain path or a `file://` URL, with `~` expanded."""
    return Path(plain_path(str(path)))


def is_vacant(path: Path) -> bool:
    """Whether a path does not exist, or is a folder without files."""
    return not path.exists() or (path.is_dir() and not any(path.iterdir()))


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


def import_from_here(texts: Iterable[str]) -> None:
    """Makes modules of the working folder importable, if a class path names one.

    Python adds the folder of the script instead, which is of no use for installed commands. The
    working folder is appended, so its files never replace installed modules.

    Args:
        texts: Command-line words, or whole texts of settings. Files of settings (YAML) that they
            name are searched for class paths too.
    """
    here = Path.cwd()
    if str(here) in sys.path:
        return
    for text in _with_named_files(texts):
        for name in set(_FIRST_NAME.findall(text)):
            is_here = (here / f"{name}.py").is_file() or (here / name).is_dir()
            if is_here and not _is_installed(name):
                sys.path.append(str(here))
                return


def _with_named_files(texts: Iterable[str]) -> Iterator[str]:
    waiting = [(Path(), text) for text in texts]
    seen: set[Path] = set()
    while waiting:
        folder, text = waiting.pop()
        yield text
        for name in _YAML_FILE.findall(text):
            for path in (Path(name).expanduser(), folder / name):
                if path not in seen and path.is_file():
                    seen.add(path)
                    found = path.read_text(encoding="utf-8", errors="replace")
                    waiting.append((path.parent, found))


def _is_installed(name: str) -> bool:
    try:
        return name in sys.modules or find_spec(name) is not None
    except (ImportError, ValueError):
        return False
