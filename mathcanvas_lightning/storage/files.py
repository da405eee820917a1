"""The one way to files, local or remote: list, stat, read and write, with retries."""

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import (
    is_http,
    is_remote,
    local_path,
    natural_key,
    plain_path,
    unquoted_name,
    without_query,
)
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.cache import ShardCache, entry_name
from mathcanvas_lightning.storage.config import Entry, FileStatus, StorageConfig
from mathcanvas_lightning.storage.local_files import list_local, local_errors, local_status
from mathcanvas_lightning.storage.parquet import (
    RangeFile,
    Source,
    open_parquet,
    parsing,
    read_table,
)
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from mathcanvas_lightning.storage.retry import (
    ContentError,
    FileTooLargeError,
    IncompleteReadError,
    NoRangesError,
    missing_file,
    with_retries,
)

MAX_OPEN_FILES, MAX_FOOTERS, MAX_STATUSES = 8, 256, 4096
NUM_STATUS_THREADS = 16
Key = TypeVar("Key")
Value = TypeVar("Value")


class Storage:
    """Lists, reads and writes files by local paths and fsspec URLs.

    All methods raise `DataError` for a file that is missing or damaged, and `StorageError` for a
    server that fails in every try. Processes may pass it on or inherit it, each opens what it
    needs; threads may share it.

    Args:
        config: Settings for remote files; by default those of `StorageConfig`.
    """

    def __init__(self, config: StorageConfig | None = None) -> None:
        self.config = config or StorageConfig()
        self._opened = _Opened(self.config)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.config,)

    def list_folder(self, path: str) -> list[Entry]:
        """The entries of one folder, without hidden ones, in no particular order."""
        if is_remote(path):
            remote = self._here().remote
            return with_retries(self.config, path, partial(remote.list_folder, path))
        return list_local(local_path(path))

    def list_files(self, path: str, *, suffix: str = ".parquet") -> list[str]:
        """The files below a folder, ordered by folder and by the numbers in their names.

        Args:
            path: Searched with all folders below it, links to folders included; hidden names are
                skipped. A file gives itself.
            suffix: End of the names to find.

        Raises:
            DataError: If there is none.
        """
        return [entry.path for entry in self._find(path, suffix)]

    def list_statuses(self, path: str, *, suffix: str = ".parquet") -> dict[str, FileStatus]:
        """Like `list_files`, with size and version of each; later reads are of this version."""
        entries = self._find(path, suffix)
        unknown = [e.path for e in entries if e.status is None or not e.status.version]
        with ThreadPoolExecutor(NUM_STATUS_THREADS) as pool:
            asked = dict(zip(unknown, pool.map(self.status, unknown), strict=True))
        statuses = {entry.path: asked.get(entry.path) or entry.status for entry in entries}
        found = {file: status for file, status in statuses.items() if status is not None}
        for file, status in found.items():
            self._here().statuses.put(file, status)
        return found

    def status(self, path: str) -> FileStatus:
        """Size and version of a file, asked anew; later reads are of this version."""
        status = self._find_status(path)
        if status is None:
            raise missing_file(without_query(path))
        self._here().statuses.put(path, status)
        return status

    def read_bytes(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Reads a whole file, past the cache.

        Args:
            path: The file.
            max_bytes: Maximum size; None for any.

        Raises:
            FileTooLargeError: If the file is larger.
        """
        if is_remote(path):
            remote = self._here().remote
            data = with_retries(self.config, path, lambda: remote.read_bytes(path, max_bytes))
        else:
            with self.open(path) as file:
                data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            raise FileTooLargeError(
                without_query(path),
                found=f"more than {max_bytes} bytes",
                wanted="a small file",
                remedy="Make it smaller, or leave its sample out.",
            )
        return data

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading; a remote one is read into memory."""
        if is_remote(path):
            return BytesIO(self.read_bytes(path))
        local_status(local_path(path))  # opening a pipe would wait for its other end
        with local_errors(path):
            return local_path(path).open("rb")

    @contextlib.contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """The file as a local path: its own, or that of a copy that the block may read."""
        if not is_remote(path):
            local_status(local_path(path))
            yield local_path(path)
            return
        remote = self._here().remote
        with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
            copy = Path(folder, unquoted_name(path) or "input")
            copy.touch()
            with_retries(
                self.config, path, lambda: remote.download(path, copy, remote.find_size(path))
            )
            yield copy

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Path]:
        """Yields a temporary local path; when the block succeeds, the file appears complete."""
        if not is_remote(path):
            with written_whole(local_path(path)) as temporary:
                yield temporary
            return
        with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
            temporary = Path(folder, "file")
            yield temporary
            remote = self._here().remote
            with_retries(self.config, path, lambda: remote.upload(temporary, path))

    def remove(self, path: str) -> None:
        """Deletes a file, if it exists."""
        if not is_remote(path):
            local_path(path).unlink(missing_ok=True)
            return
        remote = self._here().remote
        with contextlib.suppress(DataError):
            with_retries(self.config, path, partial(remote.remove, path))

    def metadata(self, path: str) -> pq.FileMetaData:
        """The footer of a shard; a bounded number is kept in memory."""
        return self._read_shard(path, path, lambda _, metadata: metadata)

    def read_row_group(self, path: str, row_group: int, columns: Sequence[str] | None) -> pa.Table:
        """Reads one row group of a shard; remote ones are kept in the cache.

        Args:
            path: The shard.
            row_group: Number of the row group, from 0.
            columns: Names; missing ones are left out. None for all.

        Returns:
            All rows that the footer promises, with verified page checksums where there are any.
        """
        shown = without_query(path)
        return self._read_shard(
            path,
            f"{shown if is_remote(path) else local_path(path)}, row group {row_group}",
            lambda source, metadata: read_table(shown, source, metadata, row_group, columns),
            key=(row_group, columns and tuple(columns)),
        )

    def iter_batches(self, path: str, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yields all rows of a shard, a few at a time.

        A local shard is streamed, whatever the size of its row groups; of a remote one, a row
        group at a time is in memory.
        """
        if is_remote(path):
            for number in range(self.metadata(path).num_row_groups):
                table = self.read_row_group(path, number, None)
                yield from table.to_batches(max_chunksize=batch_rows)
            return
        local_status(local_path(path))
        with local_errors(path), _open_local(path) as source:
            file = open_parquet(source)
            with parsing(source):
                yield from file.iter_batches(batch_size=batch_rows, use_threads=False)

    def _here(self) -> "_Opened":
        if self._opened.pid != os.getpid():
            self._opened = _Opened(self.config)
        return self._opened

    def _find_status(self, path: str) -> FileStatus | None:
        if not is_remote(path):
            return local_status(local_path(path))
        return with_retries(self.config, path, partial(self._here().remote.find_status, path))

    def _find(self, path: str, suffix: str) -> list[Entry]:
        path = plain_path(path)
        if is_remote(path):
            # On a web server, folders are pages of links and look like files.
            may_be_file = not is_http(path) or without_query(path).endswith(suffix)
            status = self._find_status(path) if may_be_file else None
        else:
            status = local_status(Path(path)) if Path(path).is_file() else None
        if status is not None:
            return [Entry(path=path, is_folder=False, status=status)]
        exists = is_remote(path) or Path(path).exists()
        files = [e for e in self._walk(path, ()) if e.path.endswith(suffix)] if exists else []
        if not files:
            raise DataError(
                without_query(path),
                found=f"no {suffix} file" if exists else "nothing",
                wanted="a folder of shards",
                remedy="Make them with tools/convert_cot_to_parquet.py.",
            )
        return sorted(files, key=lambda entry: natural_key(entry.path))

    def _walk(self, folder: str, above: tuple[str, ...]) -> Iterator[Entry]:
        """All files below a folder; links that lead back to a folder above are skipped."""
        real = folder if is_remote(folder) else str(Path(folder).resolve())
        if real in above:
            return
        for entry in self.list_folder(folder):
            if entry.is_folder:
                yield from self._walk(entry.path, (*above, real))
            else:
                yield entry

    def _read_shard(
        self,
        path: str,
        place: str,
        read: Callable[[Source, pq.FileMetaData], Value],
        key: tuple[Any, ...] | None = None,
    ) -> Value:
        """Reads from an open shard, a remote one in several tries.

        Args:
            path: The shard.
            place: What is read, for errors.
            read: Reads from the file and its footer.
            key: Identifies the result, if it is a table for the cache.
        """
        if not is_remote(path):
            status = local_status(local_path(path))
            with local_errors(place), _open_local(path) as source:
                return read(source, self._footer(path, status, source))

        def attempt() -> Value:
            opened = self._here()
            status = opened.statuses.get(path) or self._one_status(path)
            try:
                return self._read_remote(path, status, read, key)
            except (ContentError, IncompleteReadError):
                # The footer may be damaged, or the file replaced: forget all that is known of it.
                opened.statuses.drop(path)
                opened.footers.drop((path, status))
                opened.whole.drop((path, status))
                opened.cache.drop(entry_name("parquet", without_query(path), status))
                raise

        return with_retries(self.config, place, attempt)

    # The methods below make one try.

    def _one_status(self, path: str) -> FileStatus:
        status = self._here().remote.find_status(path)
        if status is None:
            raise FileNotFoundError
        self._here().statuses.put(path, status)
        return status

    def _read_remote(
        self,
        path: str,
        status: FileStatus,
        read: Callable[[Source, pq.FileMetaData], Value],
        key: tuple[Any, ...] | None,
    ) -> Value:
        opened, shown = self._here(), without_query(path)
        name = entry_name("arrow", shown, status, *key) if key else None
        if name and (table := opened.cache.find_table(name)) is not None:
            return cast("Value", table)
        whole = self._whole(path, status, fetch=False)
        if whole is None:

            def read_range(start: int, end: int) -> bytes:
                return opened.remote.read_range(path, start, end, status)

            source = RangeFile(read_range, status.size_bytes)
            try:
                result = read(source, self._footer(path, status, source))
            except NoRangesError:
                whole = self._whole(path, status, fetch=True)
            else:
                if name:
                    opened.cache.keep_table(name, result)
                return result
        return read(whole, self._footer(path, status, whole))

    def _whole(self, path: str, status: FileStatus, *, fetch: bool) -> pa.NativeFile | None:
        """The local copy of a shard whose server sends whole files only, if there is one."""
        opened = self._here()
        name = entry_name("parquet", without_query(path), status)
        file = opened.whole.get((path, status)) or opened.cache.find_file(name, status.size_bytes)
        if file is None and fetch:
            size = status.size_bytes
            file = opened.cache.fetch_file(
                name, size, lambda temporary: opened.remote.download(path, temporary, size)
            )
        if file is not None:
            opened.whole.put((path, status), file)
        return file

    def _footer(self, path: str, status: FileStatus, source: Source) -> pq.FileMetaData:
        footers = self._here().footers
        metadata = footers.get((path, status))
        if metadata is None:
            metadata = open_parquet(source).metadata
            footers.put((path, status), metadata)
        return metadata


class _Recent(Generic[Key, Value]):
    """The most recently used values, up to a number of them."""

    def __init__(self, max_entries: int) -> None:
        self._entries: OrderedDict[Key, Value] = OrderedDict()
        self._max_entries = max_entries
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            if key in self._entries:
                self._entries.move_to_end(key)
            return self._entries.get(key)

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def drop(self, key: Key) -> None:
        with self._lock:
            self._entries.pop(key, None)


class _Opened:
    """What one process has opened or knows; other processes must not use it."""

    def __init__(self, config: StorageConfig) -> None:
        self.pid = os.getpid()
        self.remote = RemoteFiles(config)
        self.cache = ShardCache(config.cache_folder, config.max_cache_bytes)
        self.whole: _Recent[tuple[str, FileStatus], pa.NativeFile] = _Recent(MAX_OPEN_FILES)
        self.footers: _Recent[tuple[str, FileStatus], pq.FileMetaData] = _Recent(MAX_FOOTERS)
        self.statuses: _Recent[str, FileStatus] = _Recent(MAX_STATUSES)


def _open_local(path: str) -> pa.NativeFile:
    return pa.OSFile(str(local_path(path)))
