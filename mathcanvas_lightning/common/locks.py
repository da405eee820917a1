"""Locks between processes, as files that the operating system unlocks when a process ends."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from mathcanvas_lightning.errors import OutputError

NOTICE_S = 10.0
"""A process that waits longer for a lock says so."""
log = logging.getLogger(__name__)


def acquire_lock(path: Path, *, wait: bool = True) -> FileLock:
    """Acquires a lock; `release` it at the end.

    Args:
        path: The lock file; its folder exists.
        wait: Wait for the process that holds it.

    Raises:
        Timeout: If another process holds the lock, and `wait` is false.
        OutputError: If the file system has no locks, or the file can't be written.
    """
    lock = FileLock(path)
    try:
        try:
            lock.acquire(timeout=NOTICE_S if wait else 0)
        except Timeout:
            if not wait:
                raise
            log.warning("Waiting for another process that holds the lock %s", path)
            lock.acquire()
    except Timeout:
        raise
    except (OSError, NotImplementedError) as error:  # ENOLCK, EROFS, ...; filelock 3 without flock
        raise OutputError(
            str(path),
            found=f"a file that can't be locked ({error or type(error).__name__})",
            wanted="a writable folder on a file system with locks",
            remedy="Choose a folder on a local disk, or mount the file system with locks "
            "(NFS: local_lock=flock; Lustre: flock).",
        ) from None
    return lock


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock during the block; waits for it, see `acquire_lock`."""
    lock = acquire_lock(path)
    try:
        yield
    finally:
        lock.release()
