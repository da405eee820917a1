"""Where files are: on this machine or on a server, in what order, and where caches go."""

import os
import re
import sys
from pathlib import Path

_SCHEME = "file://"


def is_remote(path: str) -> bool:
    """Whether a path is an fsspec URL other than `file://`."""
    return "://" in path and not path.startswith(_SCHEME)


def local_path(path: str) -> Path:
    """The local path that a plain path or a `file://` URL names."""
    return Path(plain_path(path))


def plain_path(path: str) -> str:
    """A local path without `file://`; the URL of what is on a server as it stands."""
    return path.removeprefix(_SCHEME)


def natural_key(path: str) -> tuple[str, list[tuple[int, str]]]:
    """Sorts paths or URLs by folder, then by the numbers in their names."""
    folder, _, name = path.rpartition("/")
    pieces = re.findall(r"\d+|\D+", name)
    return folder, [(int(p), "") if p.isdigit() else (-1, p) for p in pieces]


def user_cache() -> Path:
    """This library's folder in the user's cache: in $XDG_CACHE_HOME, or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mathcanvas_lightning"


def import_from_here() -> None:
    """Lets classes named on the command line be found in the working folder.

    Python puts the folder of the script there instead, which for installed commands is of no use.
    """
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
