"""Atomic writing of local files: a file appears complete or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mathcanvas_lightning.errors import OutputError

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Writes to a temporary path beside the target and renames it when the block succeeds.

    Args:
        target: Path of the finished file; `~` is expanded, and its folder is made if missing.

    Yields:
        The temporary path to write to.

    Raises:
        OutputError: If a folder has the temporary name.
    """
    target = target.expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
    if temporary.is_dir():
        raise OutputError(
            str(temporary),
            found="a folder",
            wanted="a free name for a temporary file",
            remedy="Move the folder away.",
        )
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
