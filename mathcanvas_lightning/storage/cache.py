"""Cache of remote data in a local folder of bounded size, shared by processes."""

import contextlib
import hashlib
import logging
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.storage.config import FileStatus

logger = logging.getLogger(__name__)

ENTRY = re.compile(r"[0-9a-f]{64}\.parquet")
LEDGER_BYTES = 32
LOCK_WAIT_S = 60.0
FREE_AFTER_EVICTION = 0.1
"""Evicting a little more than needed makes evictions rare."""
CHECKSUM_BYTES = 4


def entry_name(url: str, status: FileStatus, part: tuple[int, int] | None = None) -> str:
    """The name of an entry: a digest of the file and its version, then one of the part."""
    keys = (without_query(url), status), part
    return "".join(hashlib.sha256(repr(key).encode()).hexdigest()[:32] for key in keys) + ".parquet"


class ShardCache:
    """A folder of parts of files and of whole files; the least recently used are evicted first.

    The modification time of an entry is its time of use. A lock is held while one is written, so
    the folder never grows over its size.

    Args:
        folder: Made with the first entry.
        max_bytes: Maximum size of all files, including the one that is being written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes - LEDGER_BYTES
        self._has_warned = False

    def find(self, name: str, size_bytes: int) -> pa.NativeFile | None:
        """An entry, opened; None if it is missing or has another size."""
        path = self.folder / name
        try:
            file = pa.OSFile(str(path))
        except OSError:
            return None
        with contextlib.suppress(OSError):  # evicted just now, or not writable
            os.utime(path)
        return file if file.size() == size_bytes else None

    def add(self, name: str, size_bytes: int, write: Callable[[Path], object]) -> None:
        """Adds an entry, which a function writes, if it fits and the folder is writable."""
        if size_bytes > self._max_bytes:
            return
        temporary = self.folder / f"{TEMPORARY_PREFIX}entry"
        try:
            with self.lock(".lock", LOCK_WAIT_S):
                try:
                    temporary.unlink(missing_ok=True)  # of a process that was killed
                    self._make_room(size_bytes)
                    write(temporary)
                    temporary.replace(self.folder / name)
                finally:
                    temporary.unlink(missing_ok=True)
        except (OSError, NotImplementedError) as error:
            if not self._has_warned:
                logger.warning("%s: nothing can be cached here (%s)", self.folder, error)
            self._has_warned = True

    def part(self, name: str, size_bytes: int, fetch: Callable[[], bytes]) -> bytes:
        """The content of a part, whose entry ends with its CRC-32; fetched if it is missing."""
        if file := self.find(name, size_bytes + CHECKSUM_BYTES):
            kept: bytes = file.read_at(size_bytes, 0)
            if file.read_at(CHECKSUM_BYTES, size_bytes) == _checksum(kept):
                return kept
            logger.warning("%s: dropped from the cache (wrong checksum)", self.folder / name)
        data = fetch()

        def write(path: Path) -> None:
            with path.open("wb") as file:
                file.writelines([data, _checksum(data)])

        self.add(name, size_bytes + CHECKSUM_BYTES, write)
        return data

    def lock(self, name: str, timeout_s: float = -1) -> contextlib.AbstractContextManager[FileLock]:
        """Locks a file of the folder; raises if that is not possible, or not within a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / name).acquire(timeout=timeout_s, poll_interval=0.005)

    def drop(self, url: str, status: FileStatus) -> None:
        """Removes all entries of a version of a file, if possible."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{entry_name(url, status)[:32]}*"):
                path.unlink(missing_ok=True)

    def _make_room(self, size_bytes: int) -> None:
        ledger = self.folder / ".bytes"  # an upper bound: only an eviction subtracts
        try:
            total = int(ledger.read_text(encoding="ascii"))
        except (OSError, ValueError):
            total = self._max_bytes
        if total + size_bytes > self._max_bytes:
            total = self._evict(self._max_bytes - size_bytes)
        ledger.write_text(str(total + size_bytes), encoding="ascii")

    def _evict(self, limit: int) -> int:
        """Removes entries if the sum of their sizes is over a limit; returns that of the rest."""
        entries = []
        for path in self.folder.iterdir():
            if ENTRY.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):  # dropped just now
                    status = path.stat()
                    entries.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in entries)
        if total > limit:
            limit -= int(FREE_AFTER_EVICTION * self._max_bytes)
        for _, size, path in sorted(entries):
            if total > limit:
                path.unlink(missing_ok=True)
                total -= size
        return total


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")
