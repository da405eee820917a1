"""Row groups of remote shards: fetched by ranges, kept in a folder that processes share."""

import contextlib
import hashlib
import io
import logging
import os
import re
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from mathcanvas_lightning.common.atomic import TEMPORARY_PREFIX, written_whole
from mathcanvas_lightning.errors import DataError, StorageError
from mathcanvas_lightning.storage.remote import Damage, RemoteFiles

logger = logging.getLogger(__name__)

ENTRY = re.compile(r"[0-9a-f]{64}\.(arrow|parquet)")
TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"[0-9a-f]{32}-" + ENTRY.pattern)
LEDGER = ".bytes"
LEDGER_BYTES = 32
LOCK_WAIT_S = 60.0
LEFTOVER_S = 3600.0
"""A temporary file that nobody wrote to for so long belongs to a process that is gone."""
FILL_AFTER_EVICTION = 0.9
"""Evicting somewhat more than is needed makes looking through the folder rare."""
CHECKSUM_BYTES = 4
FOOTER_GUESS_BYTES = 64 * 2**10
FOOTER_END_BYTES = 8
"""The length of the footer in four bytes, then the magic."""
MAX_GAP_BYTES = 2**20
"""Reading so much for nothing is faster than another request."""


def fetch_footer(remote: RemoteFiles, url: str, size_bytes: int) -> pq.FileMetaData:
    """The footer of a remote shard, in one request unless it is unusually long.

    Raises:
        Damage: If it is none.
        RangesRefused: If the server gives whole files only.
    """
    read = partial(remote.read_range, url, size_bytes=size_bytes)
    start = max(size_bytes - FOOTER_GUESS_BYTES, 0)
    tail = read(start, size_bytes)
    footer_start = size_bytes - FOOTER_END_BYTES - int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != b"PAR1" or footer_start < 0:
        raise Damage("no Parquet footer at its end")
    if footer_start < start:
        tail = read(footer_start, start) + tail
    with parsing():
        return pq.read_metadata(pa.BufferReader(tail))


def fetch_table(
    remote: RemoteFiles,
    url: str,
    metadata: pq.FileMetaData,
    row_group: int,
    columns: Sequence[str] | None,
    *,
    size_bytes: int,
) -> pa.Table:
    """A row group of a remote shard, by the ranges that its columns take.

    Raises:
        Damage: If the bytes aren't those of the row group.
        RangesRefused: If the server gives whole files only.
        DataError: If there is no such row group.
    """
    _check_row_group(url, metadata, row_group)
    with parsing():
        ranges = _column_ranges(metadata.row_group(row_group), columns)
    if any(not 0 < start < end <= size_bytes for start, end in ranges):
        raise Damage("a footer that points outside of the file")
    pieces = [
        (start, remote.read_range(url, start, end, size_bytes=size_bytes)) for start, end in ranges
    ]
    with parsing():
        file = open_parquet(_Pieces(pieces, size_bytes), metadata)
    return read_table(url, file, row_group, columns)


def open_parquet(source: Any, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a shard so that only what is wanted is read, and the checksums of all that is.

    Args:
        source: A path, or an open file.
        metadata: Its footer, if known.
    """
    return pq.ParquetFile(
        source,
        metadata=metadata,
        memory_map=False,  # a file that shrinks would kill the process
        pre_buffer=False,
        page_checksum_verification=True,
    )


def read_table(
    place: str, file: pq.ParquetFile, row_group: int, columns: Sequence[str] | None
) -> pa.Table:
    """A row group of an open shard, as many rows as the footer promises.

    Raises:
        Damage: If it can't be read.
        DataError: If there is no such row group.
    """
    _check_row_group(place, file.metadata, row_group)
    with parsing():
        names = None if columns is None else list(columns)
        table = file.read_row_group(row_group, columns=names, use_threads=False)
        num_rows = file.metadata.row_group(row_group).num_rows
    if table.num_rows != num_rows:
        raise Damage(f"{table.num_rows} rows instead of {num_rows}")
    return table


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Turns what pyarrow says of broken bytes into `Damage`."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        raise Damage(str(error)) from error


def entry_name(kind: str, *parts: object) -> str:
    """The file name of an entry.

    Args:
        kind: "arrow" for a table, "parquet" for a whole shard.
        parts: All that the content depends on.
    """
    return f"{hashlib.sha256(repr(parts).encode()).hexdigest()}.{kind}"


class ShardCache:
    """A folder of entries that never takes more than its share of the disk.

    A table is an Arrow IPC file with the CRC-32 of it behind; time of change is time of use.

    Args:
        folder: Made when the first entry is.
        max_bytes: Of all entries together, those that are being written included.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder = folder
        self._max_bytes = max_bytes - LEDGER_BYTES
        self._has_warned = False

    def find_table(self, name: str) -> pa.Table | None:
        """A kept table, memory-mapped; None if it isn't there or has been damaged."""
        path = self.folder / name
        try:
            with pa.memory_map(str(path)) as file:
                content = file.read_buffer()
            body = content.slice(0, max(content.size - CHECKSUM_BYTES, 0))
            checksum = content.slice(body.size).to_pybytes()
            if checksum != _checksum(body):
                raise pa.ArrowInvalid("its checksum fails")
            table = pa.ipc.open_file(pa.BufferReader(body)).read_all()
        except FileNotFoundError:
            return None
        except (pa.ArrowException, OSError, ValueError) as error:
            logger.warning("%s: dropped from the cache (%s)", path, error)
            self.drop(name)
            return None
        self._touch(path)
        return table

    def keep_table(self, name: str, table: pa.Table) -> None:
        """Keeps a table, if the folder lets us and it isn't larger than the cache."""
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
            self.add(name, body.size + CHECKSUM_BYTES, write)
        except (OSError, Timeout) as error:
            if not self._has_warned:
                logger.warning("%s: nothing can be kept here (%s)", self.folder, error)
            self._has_warned = True

    def find_file(self, name: str, size_bytes: int) -> Path | None:
        """A kept file of this size, None if there is none."""
        path = self.folder / name
        try:
            if path.stat().st_size != size_bytes:
                self.drop(name)
                return None
        except OSError:
            return None
        self._touch(path)
        return path

    def add(self, name: str, size_bytes: int, write: Callable[[Path], None]) -> bool:
        """Makes an entry.

        Args:
            name: Of the entry.
            size_bytes: How much will be written.
            write: Writes to a path, where a file of this size stands already.

        Returns:
            Whether there was room; if not, nothing was written.

        Raises:
            OSError: If the folder can't be written to.
            Timeout: If another process holds its lock and doesn't go on.
        """
        if size_bytes > self._max_bytes:
            return False
        try:
            with written_whole(self.folder / name, mark=_mark()) as temporary:
                self._reserve(temporary, size_bytes)
                write(temporary)
        except _NoRoom:
            return False
        return True

    @contextlib.contextmanager
    def passing(self, name: str) -> Iterator[Path]:
        """An empty file for an entry too large to be kept; without a name after the block."""
        path = self.folder / f"{TEMPORARY_PREFIX}{_mark()}{name}"
        path.touch()
        try:
            yield path
        finally:
            path.unlink()

    def drop(self, name: str) -> None:
        """Removes an entry, if it is there and we may."""
        with contextlib.suppress(OSError):
            (self.folder / name).unlink()

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Lets one process at a time work on an entry; few names share a lock.

        Raises:
            StorageError: If the folder can't be written to.
        """
        lock = FileLock(self.folder / f".lock-{name[:2]}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError as error:
            raise StorageError(
                str(self.folder),
                found=f"a cache that can't be written to ({error.strerror})",
                wanted="a folder of ours with room",
                remedy="Name another one with cache_dir.",
            ) from None
        try:
            yield
        finally:
            lock.release()

    def _touch(self, path: Path) -> None:
        with contextlib.suppress(OSError):  # evicted just now, or not our folder
            os.utime(path)

    def _reserve(self, temporary: Path, size_bytes: int) -> None:
        # The file takes its full size under the lock, so that others count it from the start.
        lock = FileLock(self.folder / ".lock")
        with lock.acquire(timeout=LOCK_WAIT_S, poll_interval=0.005):
            total = self._read_ledger()
            if total is None or total + size_bytes > self._max_bytes:
                total = self._evict(size_bytes)
            if total + size_bytes > self._max_bytes:
                raise _NoRoom
            (self.folder / LEDGER).write_text(str(total + size_bytes), encoding="ascii")
            with temporary.open("wb") as file:
                file.truncate(size_bytes)

    def _read_ledger(self) -> int | None:
        # Never less than what is there; removals outside of `_evict` aren't subtracted.
        try:
            return int((self.folder / LEDGER).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return None

    def _evict(self, wanted_bytes: int) -> int:
        """Makes room for what is wanted; the bytes that are there afterwards."""
        entries = []
        total = 0
        for path, status in self._files():
            total += status.st_size
            if ENTRY.fullmatch(path.name):
                entries.append((status.st_mtime_ns, status.st_size, path))
        if total + wanted_bytes <= self._max_bytes:
            return total
        limit = int(FILL_AFTER_EVICTION * self._max_bytes) - wanted_bytes
        for _, size_bytes, path in sorted(entries):
            if total <= limit:
                break
            path.unlink(missing_ok=True)
            total -= size_bytes
        return total

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        """Our files; leftovers of processes that are gone are removed on the way."""
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


class _NoRoom(Exception):
    """The cache is full of what others write just now."""


def _mark() -> str:
    return f"{uuid.uuid4().hex}-"


def _checksum(content: pa.Buffer) -> bytes:
    return zlib.crc32(content).to_bytes(CHECKSUM_BYTES, "little")


def _check_row_group(place: str, metadata: pq.FileMetaData, row_group: int) -> None:
    if not 0 <= row_group < metadata.num_row_groups:
        raise DataError(
            place,
            found=f"{metadata.num_row_groups} row groups",
            wanted=f"one of number {row_group}",
            remedy="If the file has been replaced by another, start again.",
        )


def _column_ranges(
    row_group: pq.RowGroupMetaData, columns: Sequence[str] | None
) -> list[tuple[int, int]]:
    """The ranges [start, end) of some columns' bytes; near ones are one."""
    ranges: list[tuple[int, int]] = []
    chunks = []
    for number in range(row_group.num_columns):
        chunk = row_group.column(number)
        path = f"{chunk.path_in_schema}."
        if columns is None or any(path.startswith(f"{name}.") for name in columns):
            # Some writers say 0 where there is no dictionary.
            start = chunk.data_page_offset
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            chunks.append((start, start + chunk.total_compressed_size))
    for start, end in sorted(chunks):
        if ranges and start - ranges[-1][1] <= MAX_GAP_BYTES:
            ranges[-1] = (ranges[-1][0], max(end, ranges[-1][1]))
        else:
            ranges.append((start, end))
    return ranges


class _Pieces(io.RawIOBase):
    """A file of which only some ranges are at hand."""

    def __init__(self, pieces: list[tuple[int, bytes]], size_bytes: int) -> None:
        self._pieces = pieces
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        start, end = self._position, self._position + size
        for piece_start, piece in self._pieces:
            if piece_start <= start <= end <= piece_start + len(piece):
                self._position = end
                return piece[start - piece_start : end - piece_start]
        raise OSError(f"bytes [{start}, {end}) aren't of the row group")
