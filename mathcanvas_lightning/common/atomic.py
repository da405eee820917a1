"""Local files that appear whole or not at all, whatever happens while they are written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"


@contextlib.contextmanager
def written_whole(target: Path, *, mark: str = "") -> Iterator[Path]:
    """A temporary path beside the target; when the block ends well, its file takes the name.

    Args:
        target: Where the file shall stand; its folder is made if absent.
        mark: Part of the temporary name; several processes that may write the same target at
            once need a mark each.

    Yields:
        Where to write it.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{TEMPORARY_PREFIX}{mark}{target.name}")
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
