"""Reading shards wherever they lie: local folders, or servers by way of a local cache."""

import contextlib
import os
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.paths import is_remote, local_path, natural_key, plain_path
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.cache import (
    ShardCache,
    entry_name,
    fetch_footer,
    fetch_table,
    open_parquet,
    parsing,
    read_table,
)
from mathcanvas_lightning.storage.remote import (
    CutShort,
    Damage,
    FileStatus,
    RangesRefused,
    RemoteFiles,
    StorageConfig,
    damaged_file,
    missing_file,
    persist,
)

__all__ = ["FileStatus", "Storage", "StorageConfig"]

MAX_OPEN_FILES = 8
MAX_FOOTERS = 256
MAX_STATUSES = 4096
Key = TypeVar("Key")
Value = TypeVar("Value")


class Storage:
    """Reads shards and pictures from local paths and fsspec URLs.

    It may be sent to other processes, and inherited by them: each opens for itself what it needs.
    Threads may share it.

    Args:
        config: For what is on servers.
    """

    def __init__(self, config: StorageConfig) -> None:
        self._config = config
        self._opened = _Opened(config)

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self._config,)

    def list_files(self, path: str, *, suffix: str = ".parquet") -> list[str]:
        """The files of a folder, in order of folder, then of the numbers in their names.

        Args:
            path: Searched with all folders below it; what is hidden is left out. A file stands
                for itself.
            suffix: Of the wanted files.

        Returns:
            At least one path, or URL.

        Raises:
            DataError: If there is none.
            StorageError: If the server fails.
        """
        if is_remote(path):
            files = self._list_remote(path, suffix)
        else:
            files = _list_local(plain_path(path), suffix)
        if not files:
            raise DataError(
                path,
                found=f"no {suffix} file",
                wanted="a folder of shards",
                remedy="Make them with tools/convert_cot_to_parquet.py.",
            )
        return sorted(files, key=natural_key)

    def status(self, path: str) -> FileStatus:
        """Size and version of a file, asked anew; later reads are of this version.

        Raises:
            DataError: If there is no such file.
            StorageError: If the server fails.
        """
        if not is_remote(path):
            return _local_status(local_path(path))
        opened = self._here()
        status = persist(self._config, path, lambda: opened.remote.status(path))
        opened.statuses.put(path, status)
        return status

    def metadata(self, path: str) -> pq.FileMetaData:
        """The footer of a shard; kept in memory, for a bounded number of shards.

        Raises:
            DataError: If the file is missing or damaged.
            StorageError: If the server fails.
        """
        if is_remote(path):
            return self._tried(path, path, lambda status: self._footer(path, status))
        opened, local = self._here(), local_path(path)
        with opened.lock, _local_failures(str(local)):
            return _open_local(opened, local).metadata

    def read_row_group(self, path: str, row_group: int, columns: Sequence[str] | None) -> pa.Table:
        """One row group of a shard.

        Args:
            path: The shard.
            row_group: From 0.
            columns: Names; those that the shard hasn't are left out. None for all.

        Returns:
            As many rows as the footer promises; page checksums are right where there are any.

        Raises:
            DataError: If the file is missing or damaged, or has no such row group.
            StorageError: If the server fails.
        """
        if is_remote(path):
            place = f"{path}, row group {row_group}"
            return self._tried(
                path, place, lambda status: self._table(path, status, row_group, columns)
            )
        opened, local = self._here(), local_path(path)
        with opened.lock, _local_failures(f"{local}, row group {row_group}"):
            return read_table(str(local), _open_local(opened, local), row_group, columns)

    def read_bytes(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """A whole small file; not kept in the cache.

        Args:
            path: Of the file.
            max_bytes: A larger one is refused; None for any size.

        Raises:
            DataError: If there is no such file, or it is too large.
            StorageError: If the server fails.
        """
        if is_remote(path):
            remote = self._here().remote
            data = persist(self._config, path, lambda: remote.read_bytes(path, max_bytes))
        else:
            _local_status(local_path(path))
            with _local_failures(path), local_path(path).open("rb") as file:
                data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        if max_bytes is not None and len(data) > max_bytes:
            found = f"more than {max_bytes} bytes"
            remedy = "Make it smaller, or leave its sample out."
            raise DataError(path, found=found, wanted="a small file", remedy=remedy)
        return data

    def _here(self) -> "_Opened":
        if self._opened.pid != os.getpid():
            self._opened = _Opened(self._config)
        return self._opened

    def _list_remote(self, path: str, suffix: str) -> list[str]:
        remote = self._here().remote
        if persist(self._config, path, lambda: remote.is_file(path, suffix)):
            return [path]
        files: list[str] = []
        folders = [path]
        while folders:
            folder = folders.pop()
            entries = persist(self._config, folder, partial(remote.list_folder, folder))
            folders += [url for url, is_folder in entries if is_folder]
            files += [url for url, is_folder in entries if not is_folder and url.endswith(suffix)]
        return files

    def _tried(self, path: str, place: str, action: Callable[[FileStatus], Value]) -> Value:
        opened = self._here()

        def attempt() -> Value:
            status = opened.statuses.get(path)
            if status is None:
                status = opened.remote.status(path)
                opened.statuses.put(path, status)
            try:
                return action(status)
            except (Damage, CutShort):
                # Of the footer, perhaps, or the file is another one by now: all is asked anew.
                opened.statuses.drop(path)
                opened.footers.drop((path, status))
                opened.parquet.drop((path, status))
                opened.cache.drop(entry_name("parquet", path, status))
                raise

        return persist(self._config, place, attempt)

    # What follows tries once.

    def _footer(self, path: str, status: FileStatus) -> pq.FileMetaData:
        opened = self._here()
        metadata = opened.footers.get((path, status))
        if metadata is None:
            metadata = self._by_ranges_or_whole(
                path,
                status,
                lambda: fetch_footer(opened.remote, path, status.size_bytes),
                lambda file: file.metadata,
            )
            opened.footers.put((path, status), metadata)
        return metadata

    def _table(
        self, path: str, status: FileStatus, row_group: int, columns: Sequence[str] | None
    ) -> pa.Table:
        opened = self._here()
        size = status.size_bytes
        name = entry_name("arrow", path, status, row_group, columns and tuple(columns))
        table = opened.cache.find_table(name)
        if table is not None:
            return table

        def fetch() -> pa.Table:
            footer = self._footer(path, status)
            table = fetch_table(opened.remote, path, footer, row_group, columns, size_bytes=size)
            opened.cache.keep_table(name, table)
            return table

        return self._by_ranges_or_whole(
            path, status, fetch, lambda file: read_table(path, file, row_group, columns)
        )

    def _by_ranges_or_whole(
        self,
        path: str,
        status: FileStatus,
        by_ranges: Callable[[], Value],
        of_whole: Callable[[pq.ParquetFile], Value],
    ) -> Value:
        file = self._kept_whole(path, status)
        if file is None:
            try:
                return by_ranges()
            except RangesRefused:
                file = self._fetch_whole(path, status)
        with self._here().lock:
            return of_whole(file)

    def _kept_whole(self, path: str, status: FileStatus) -> pq.ParquetFile | None:
        """A shard that was downloaded because its server gives whole files only."""
        opened = self._here()
        kept = opened.cache.find_file(entry_name("parquet", path, status), status.size_bytes)
        file = opened.parquet.get((path, status))
        if file is None and kept is not None:
            with parsing():
                file = open_parquet(kept)
            opened.parquet.put((path, status), file)
        return file

    def _fetch_whole(self, path: str, status: FileStatus) -> pq.ParquetFile:
        opened, cache, name = self._here(), self._here().cache, entry_name("parquet", path, status)

        def write(temporary: Path) -> None:
            with temporary.open("r+b") as target:
                opened.remote.download(path, target, status.size_bytes)

        with cache.alone(name):  # others wait, and find it
            file = self._kept_whole(path, status)
            if file is None and cache.add(name, status.size_bytes, write):
                file = self._kept_whole(path, status)
        if file is None:
            with cache.passing(name) as temporary:
                write(temporary)
                with parsing():
                    file = open_parquet(temporary)
            opened.parquet.put((path, status), file)
        return file


class _Recent(Generic[Key, Value]):
    """What was used last, up to a number of things."""

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
    """What one process has opened; no other may use it."""

    def __init__(self, config: StorageConfig) -> None:
        self.pid = os.getpid()
        self.lock = threading.RLock()  # a ParquetFile serves one thread at a time
        self.remote = RemoteFiles(config)
        self.cache = ShardCache(config.cache_folder, config.max_cache_bytes)
        self.parquet: _Recent[tuple[str, FileStatus], pq.ParquetFile] = _Recent(MAX_OPEN_FILES)
        self.footers: _Recent[tuple[str, FileStatus], pq.FileMetaData] = _Recent(MAX_FOOTERS)
        self.statuses: _Recent[str, FileStatus] = _Recent(MAX_STATUSES)


def _local_status(path: Path) -> FileStatus:
    with _local_failures(str(path)):
        status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        found = "a folder or device"
        raise DataError(str(path), found=found, wanted="a file", remedy="Correct the path.")
    return FileStatus(size_bytes=status.st_size, version=str(status.st_mtime_ns))


def _open_local(opened: _Opened, path: Path) -> pq.ParquetFile:
    key = (str(path), _local_status(path))
    file = opened.parquet.get(key)
    if file is None:
        with parsing():
            file = open_parquet(path, opened.footers.get(key))
        opened.parquet.put(key, file)
        opened.footers.put(key, file.metadata)
    return file


@contextlib.contextmanager
def _local_failures(place: str) -> Iterator[None]:
    try:
        yield
    except Damage as error:
        raise damaged_file(place, str(error)) from None
    except (FileNotFoundError, NotADirectoryError):
        raise missing_file(place) from None
    except OSError as error:
        raise DataError(
            place,
            found=f"something that can't be read ({error.strerror})",
            wanted="a readable file",
            remedy="Check its rights and its disk.",
        ) from None


def _list_local(path: str, suffix: str) -> list[str]:
    if Path(path).is_file():
        return [path]
    files = []
    with _local_failures(path):
        for folder, folders, names in os.walk(path, onerror=_reraise):
            folders[:] = [name for name in folders if not name.startswith(".")]
            files += [
                str(Path(folder, name))
                for name in names
                if name.endswith(suffix) and not name.startswith(".")
            ]
    return files


def _reraise(error: OSError) -> None:
    raise error
