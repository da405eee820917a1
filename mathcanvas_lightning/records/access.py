"""Decides which files and URLs the records of an input may name as pictures."""
# Paths are strings here: making Path objects costs more than the checks.
# ruff: noqa: PTH114, PTH118

import os
import posixpath
from typing import Literal

from mathcanvas_lightning.common.paths import is_http, is_remote, plain_path, without_query

Access = Literal["folder", "web", "any"]
"""folder: only files below the base. web: these, and http(s) URLs. any: every path and URL."""


def is_allowed(path: str, base: str, access: Access) -> bool:
    """Whether a picture may be read.

    Args:
        path: Path or URL of the picture, joined to the base.
        base: Folder or URL for relative paths.
        access: What may be read.
    """
    if access == "any" or (access == "web" and is_http(path)):
        return True
    if is_remote(path) != is_remote(base):
        return False
    return _is_below_url(path, base) if is_remote(path) else _is_below(path, plain_path(base))


def _is_below_url(path: str, base: str) -> bool:
    (scheme, _, inside), (base_scheme, _, root) = (
        without_query(url).partition("://") for url in (path, base)
    )
    root = posixpath.join(posixpath.normpath(f"/{root}"), "")
    return scheme == base_scheme and posixpath.normpath(f"/{inside}").startswith(root)


def _is_below(path: str, base: str) -> bool:
    """Whether the real path of a file is below the real path of the base."""
    folder, name = os.path.split(path)
    real = os.path.join(os.path.realpath(folder), name)
    if os.path.islink(real):
        real = os.path.realpath(real)
    return real.startswith(os.path.join(os.path.realpath(base), ""))
