"""Atomic writing of local files: a file appears complete or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def written_whole(target: Path) -> Iterator[Path]:
    """Writes to a temporary path beside the target and renames it when the block succeeds.

    Args:
        target: Path of the finished file; `~` is expanded, and its folder is made if missing.

    Yields:
        The temporary path to write to.
    """
    target = target.expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{target.name}")
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
