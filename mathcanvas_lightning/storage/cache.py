"""Cache of remote data in a local folder of bounded size, shared by processes."""

import contextlib
import hashlib
import logging
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
from filelock import FileLock, Timeout

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.errors import StorageError

logger = logging.getLogger(__name__)

ENTRY = re.compile(r"[0-9a-f]{64}\.(arrow|parquet)")
TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{32}-" + ENTRY.pattern)
LEDGER = ".bytes"
LEDGER_BYTES = 32
LOCK_WAIT_S = 60.0
LEFTOVER_S = 3600.0
"""A temporary file that was not written to for this long is from a process that was killed."""
FILL_AFTER_EVICTION = 0.9
"""Evicting a little more than needed makes evictions rare."""
CHECKSUM_BYTES = 4


def entry_name(kind: str, *parts: object) -> str:
    """The file name of a cache entry.

    Args:
        kind: "arrow" for a table, "parquet" for a whole shard.
        parts: Everything that determines the content.
    """
    return f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.{kind}"


class ShardCache:
    """A folder of tables and whole shards; the least recently used ones are evicted first.

    A table is an Arrow IPC file followed by its CRC-32. The modification time is the time of use.

    Args:
        folder: Made with the first entry.
        max_bytes: Maximum size of all files, including those that are being written.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes - LEDGER_BYTES
        self._has_warned = False

    def find_table(self, name: str) -> pa.Table | None:
        """A memory-mapped table; None if it is missing or damaged."""
        path = self.folder / name
        try:
            with pa.memory_map(str(path)) as file:
                content = file.read_buffer()
            body = content.slice(0, max(content.size - CHECKSUM_BYTES, 0))
            if content.slice(body.size).to_pybytes() != _checksum(body):
                raise pa.ArrowInvalid("wrong checksum")
            table = pa.ipc.open_file(pa.BufferReader(body)).read_all()
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            logger.warning("%s: dropped from the cache (%s)", path, error)
            self.drop(name)
            return None
        _touch(path)
        return table

    def keep_table(self, name: str, table: pa.Table) -> None:
        """Adds a table, if the folder is writable and the table fits."""
        if not table.num_columns:  # an Arrow file of no columns has no rows
            return
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
        body = sink.getvalue()

        def write(path: Path) -> None:
            with path.open("r+b") as file:
                file.writelines([body, _checksum(body)])

        try:
            self._add(name, body.size + CHECKSUM_BYTES, write)
        except (OSError, Timeout) as error:
            if not self._has_warned:
                logger.warning("%s: nothing can be cached here (%s)", self.folder, error)
            self._has_warned = True

    def find_file(self, name: str, size_bytes: int) -> pa.NativeFile | None:
        """A whole shard, opened; None if it is missing or has another size."""
        path = self.folder / name
        try:
            if path.stat().st_size != size_bytes:
                self.drop(name)
                return None
            file = pa.OSFile(str(path))
        except OSError:
            return None
        _touch(path)
        return file

    def fetch_file(
        self, name: str, size_bytes: int, write: Callable[[Path], None]
    ) -> pa.NativeFile:
        """A whole shard, opened; written first if it is missing. Other processes wait for it.

        Args:
            name: Name of the entry.
            size_bytes: Its size.
            write: Writes it to a path where a file exists.

        Raises:
            StorageError: If the folder is not writable.
        """
        lock = FileLock(self.folder / f".lock-{name[:2]}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise StorageError(
                str(self.folder),
                found=f"a cache that can't be written to ({error.strerror})",
                wanted="a writable folder",
                remedy="Name another one with cache_dir.",
            ) from None
        try:
            file = self.find_file(name, size_bytes)
            if file is None and self._add(name, size_bytes, write):
                file = self.find_file(name, size_bytes)
        finally:
            lock.release()
        if file is None:  # too large to be kept: an unnamed file, freed when it is closed
            path = self.folder / f"{TEMPORARY_PREFIX}{_mark()}{name}"
            path.touch()
            try:
                write(path)
                file = pa.OSFile(str(path))
            finally:
                path.unlink()
        return file

    def drop(self, name: str) -> None:
        """Removes an entry, if possible."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    def _add(self, name: str, size_bytes: int, write: Callable[[Path], None]) -> bool:
        """Writes an entry; False if there is no room."""
        if size_bytes > self._max_bytes:
            return False
        try:
            with written_whole(self.folder / name, mark=_mark()) as temporary:
                self._reserve(temporary, size_bytes)
                write(temporary)
        except _CacheFullError:
            return False
        return True

    def _reserve(self, temporary: Path, size_bytes: int) -> None:
        # The file gets its full size under the lock, so that other processes count it at once.
        lock = FileLock(self.folder / ".lock")
        with lock.acquire(timeout=LOCK_WAIT_S, poll_interval=0.005):
            total = self._read_ledger()
            if total is None or total + size_bytes > self._max_bytes:
                total = self._evict(size_bytes)
            if total + size_bytes > self._max_bytes:
                raise _CacheFullError
            (self.folder / LEDGER).write_text(str(total + size_bytes), encoding="ascii")
            with temporary.open("wb") as file:
                file.truncate(size_bytes)

    def _read_ledger(self) -> int | None:
        # An upper bound of the size: only `_evict` subtracts what was removed.
        try:
            return int((self.folder / LEDGER).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _evict(self, wanted_bytes: int) -> int:
        """Makes room, and returns the size of what is left."""
        files = list(self._files())
        total = sum(status.st_size for _, status in files)
        if total + wanted_bytes <= self._max_bytes:
            return total
        limit = int(FILL_AFTER_EVICTION * self._max_bytes) - wanted_bytes
        for path, status in sorted(files, key=lambda file: file[1].st_mtime_ns):
            if total > limit and ENTRY.fullmatch(path.name):
                path.unlink(missing_ok=True)
                total -= status.st_size
        return total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """The files of the cache; removes temporary files of killed processes."""
        for path in list(self.folder.iterdir()):
            is_temporary = TEMPORARY.fullmatch(path.name)
            if not is_temporary and not ENTRY.fullmatch(path.name):
                continue
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                if is_temporary and time.time() - status.st_mtime > LEFTOVER_S:
                    path.unlink()
                else:
                    yield path, status


class _CacheFullError(Exception):
    """Files that are being written fill the cache."""


def _touch(path: Path) -> None:
    with contextlib.suppress(OSError):  # evicted just now, or not writable
        os.utime(path)


def _mark() -> str:
    return f"{uuid.uuid4().hex}-"


def _checksum(content: pa.Buffer) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")
