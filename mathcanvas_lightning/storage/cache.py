"""Cache of remote data in a local folder of bounded size, shared by processes."""

import contextlib
import hashlib
import logging
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
from filelock import FileLock

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX
from mathcanvas_lightning.errors import StorageError

logger = logging.getLogger(__name__)

ENTRY = re.compile(r"[0-9a-f]{64}\.(arrow|parquet)")
"""Earlier versions kept tables, as .arrow; these are only evicted."""
TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{32}-" + ENTRY.pattern)
LEDGER_BYTES = 32
LOCK_WAIT_S = 60.0
LEFTOVER_S = 3600.0
"""A temporary file that was not written to for this long is from a process that was killed."""
FILL_AFTER_EVICTION = 0.9
"""Evicting a little more than needed makes evictions rare."""
CHECKSUM_BYTES = 4


def entry_name(file: object, part: object) -> str:
    """The name of an entry: a digest of the file and its version, then one of the part."""
    digests = [hashlib.sha256(repr(key).encode()).hexdigest()[:32] for key in (file, part)]
    return f"{''.join(digests)}.parquet"


class ShardCache:
    """A folder of parts of shards and whole shards; the least recently used are evicted first.

    A part is followed by its CRC-32. The modification time of an entry is its time of use.

    Args:
        folder: Made with the first entry.
        max_bytes: Maximum size of all files, including those that are being written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes - LEDGER_BYTES
        self._has_warned = False

    def find_part(self, name: str, size_bytes: int) -> bytes | None:
        """The content of a part; None if it is missing or damaged."""
        file = self.find_file(name, size_bytes + CHECKSUM_BYTES)
        if file is None:
            return None
        data: bytes = file.read_at(size_bytes, 0)
        if file.read_at(CHECKSUM_BYTES, size_bytes) == _checksum(data):
            return data
        logger.warning("%s: dropped from the cache (wrong checksum)", self.folder / name)
        return None

    def keep_part(self, name: str, data: bytes) -> None:
        """Adds a part, if the folder is writable and the part fits."""

        def write(path: Path) -> None:
            with path.open("r+b") as file:
                file.writelines([data, _checksum(data)])

        try:
            self._add(name, len(data) + CHECKSUM_BYTES, write, must_open=False)
        except (OSError, StorageError) as error:
            if not self._has_warned:
                logger.warning("%s: nothing can be cached here (%s)", self.folder, error)
            self._has_warned = True

    def find_file(self, name: str, size_bytes: int) -> pa.NativeFile | None:
        """An entry, opened; None if it is missing or has another size."""
        path = self.folder / name
        try:
            file = pa.OSFile(str(path))
        except OSError:
            return None
        with contextlib.suppress(OSError):  # evicted just now, or not writable
            os.utime(path)
        return file if file.size() == size_bytes else None

    def fetch_file(
        self, name: str, size_bytes: int, write: Callable[[Path], object]
    ) -> pa.NativeFile:
        """A whole shard, opened; if it is missing, one process writes it to an existing file.

        Raises:
            StorageError: If the folder is not writable.
        """
        with self._lock(f".lock-{name[:2]}", timeout_s=-1):
            file = self.find_file(name, size_bytes)
            return file or self._add(name, size_bytes, write, must_open=True)

    def drop(self, name: str) -> None:
        """Removes all entries of the file that an entry belongs to, if possible."""
        with contextlib.suppress(OSError):
            for path in self.folder.glob(f"{name[:32]}*"):
                path.unlink(missing_ok=True)

    def _add(
        self, name: str, size_bytes: int, write: Callable[[Path], object], *, must_open: bool
    ) -> pa.NativeFile | None:
        """Writes an entry; one without room only if it must be opened, as an unnamed file."""
        temporary = self.folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}-{name}"
        try:
            fits = size_bytes <= self._max_bytes and self._reserve(temporary, size_bytes)
            if not fits and not must_open:
                return None
            temporary.touch()
            write(temporary)
            file = pa.OSFile(str(temporary))
            if fits:
                temporary.replace(self.folder / name)
            return file
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()

    def _reserve(self, temporary: Path, size_bytes: int) -> bool:
        # The file gets its full size under the lock, so that other processes count it at once.
        ledger = self.folder / ".bytes"  # an upper bound: only `_evict` subtracts
        with self._lock(".lock", timeout_s=LOCK_WAIT_S):
            try:
                total = int(ledger.read_text(encoding="ascii"))
            except (OSError, ValueError):
                total = self._max_bytes
            if total + size_bytes > self._max_bytes:
                total = self._evict(size_bytes)
            if total + size_bytes > self._max_bytes:
                return False
            ledger.write_text(str(total + size_bytes), encoding="ascii")
            with temporary.open("wb") as file:
                file.truncate(size_bytes)
            return True

    def _evict(self, wanted_bytes: int) -> int:
        """Makes room, removes files of killed processes, and returns the size of what is left."""
        files = []
        for path in self.folder.iterdir():
            if ENTRY.fullmatch(path.name) or TEMPORARY.fullmatch(path.name):
                with contextlib.suppress(FileNotFoundError):
                    status = path.stat()
                    files.append((status.st_mtime, status.st_size, path))
        total = sum(size for _, size, _ in files)
        fill = 1.0 if total + wanted_bytes <= self._max_bytes else FILL_AFTER_EVICTION
        limit = int(fill * self._max_bytes) - wanted_bytes
        for used, size, path in sorted(files):
            is_entry = ENTRY.fullmatch(path.name)
            if (total > limit) if is_entry else (time.time() - used > LEFTOVER_S):
                path.unlink(missing_ok=True)
                total -= size
        return total

    def _lock(self, name: str, timeout_s: float) -> contextlib.AbstractContextManager[FileLock]:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return FileLock(self.folder / name).acquire(timeout=timeout_s, poll_interval=0.005)
        except (OSError, NotImplementedError) as error:
            place, found = str(self.folder), f"a cache that can't be written to ({error})"
            remedy = "Name another one with cache_dir."
            raise StorageError(
                place, found=found, wanted="a writable folder", remedy=remedy
            ) from None


def _checksum(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")
