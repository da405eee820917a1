"""Atomic writing of local files: a file appears complete or not at all."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from mathcanvas_lightning.errors import OutputError

TEMPORARY_PREFIX = ".tmp-"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS})
"""Errors that only writing causes: a full or read-only disk, a quota, a limit of file sizes."""


@contextlib.contextmanager
def write_errors(target: Path) -> Iterator[None]:
    """Raises an error that names the file if the block finds no room to write it.

    Args:
        target: Path of the file.

    Raises:
        OutputError: If the disk is full or read-only, or a quota is used up.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OutputError(
            str(target),
            found=f"no room to write it ({os.strerror(error.errno)})",
            wanted="enough space on a disk that can be written to",
            remedy="Free some space and run the same command again, or choose another folder; "
            "finished work is kept.",
        ) from None


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Writes to a temporary path beside the target and renames it when the block succeeds.

    Args:
        target: Path of the finished file; `~` is expanded, and its folder is made if missing.

    Yields:
        The temporary path to write to.

    Raises:
        OutputError: If a folder has the temporary name, or the disk is full.
    """
    target = target.expanduser()
    with write_errors(target), _written(target) as temporary:
        yield temporary


@contextlib.contextmanager
def _written(target: Path) -> Iterator[Path]:
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
