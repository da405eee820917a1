"""Names of files in records: which leave their folder, and how they are spelled on disk."""
# Paths are strings here, as in records.
# ruff: noqa: PTH100, PTH112, PTH113, PTH114, PTH116, PTH118, PTH122

import os
import posixpath
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from urllib.parse import unquote

from mathcanvas_lightning.common.paths import is_remote

MAX_LISTED = 100_000
"""Maximum number of files of a folder that are searched for a similar name."""


def is_outside(relative: str) -> bool:
    """Whether a relative path is absolute, or leads out of its folder."""
    return posixpath.isabs(relative) or posixpath.normpath(relative).split("/")[0] == ".."


def near_miss(root: str, relative: str) -> str:
    """Says why a file is missing: its name differs, or it is no path; "" if nothing is known.

    Args:
        root: A local folder.
        relative: The path below it.
    """
    if is_outside(relative):
        return ""
    if is_remote(relative):
        return "; it is a URL: download the pictures and name their files"
    if relative.startswith("data:"):
        kind = "" if ";base64," in relative else " without base64"
        return f"; it is a data URL{kind}: write the picture to a file and name that"
    if os.path.islink(os.path.join(root, relative)):
        return "; it is a link to nothing"
    for spelling in _spellings(relative):
        if not is_outside(spelling) and os.path.isfile(os.path.join(root, spelling)):
            looks_same = unicodedata.normalize("NFC", spelling) == unicodedata.normalize(
                "NFC", relative
            )
            how = " in another Unicode normalization" if looks_same else ""
            return f"; there is {spelling!r}{how}"
    folder, name = os.path.split(relative)
    searched = os.path.abspath(os.path.join(root, folder))
    changed = os.stat(searched).st_mtime_ns if os.path.isdir(searched) else 0
    other = _names_in(searched, changed).get(name.casefold())
    return f"; there is {os.path.join(folder, other)!r}" if other else ""


@lru_cache(maxsize=16)
def _names_in(folder: str, changed: int) -> dict[str, str]:  # noqa: ARG001 - a changed folder
    """Name in small letters -> name, for the files of a folder."""
    try:
        with os.scandir(folder) as entries:
            return {e.name.casefold(): e.name for e in islice(entries, MAX_LISTED)}
    except OSError:
        return {}


def _spellings(relative: str) -> Iterator[str]:
    seen = {relative}
    for slashed in (relative, relative.replace("\\", "/")):
        for unquoted in (slashed, unquote(slashed)):
            for form in ("NFC", "NFD"):
                spelling = unicodedata.normalize(form, unquoted)
                stem, suffix = os.path.splitext(spelling)
                for name in (unquoted, spelling, stem + suffix.lower(), stem + suffix.upper()):
                    if name not in seen:
                        seen.add(name)
                        yield name
