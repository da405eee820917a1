"""The one way to files, local or remote: list, stat, read and write, with retries."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import (
    file_name,
    is_http,
    is_remote,
    local_path,
    natural_key,
    plain_path,
    unquoted_name,
    without_query,
)
from mathcanvas_lightning.errors import DataError, StorageError
from mathcanvas_lightning.storage.block_file import BLOCK_BYTES, BlockFile
from mathcanvas_lightning.storage.cache import ShardCache, entry_name
from mathcanvas_lightning.storage.config import Entry, FileStatus, StorageConfig
from mathcanvas_lightning.storage.local_files import LocalFiles, local_errors
from mathcanvas_lightning.storage.parquet import (
    fetch_row_group,
    open_parquet,
    parsing,
    read_footer,
    read_row_group,
)
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from mathcanvas_lightning.storage.retry import (
    ContentError,
    FileTooLargeError,
    IncompleteReadError,
    MissingFileError,
    NoRangesError,
    not_a_file,
    with_retries,
)

MAX_OPEN_FILES, MAX_FOOTERS, MAX_STATUSES = 8, 256, 4096
PARQUET_SUFFIXES = (".parquet", ".pq")
NUM_STATUS_THREADS = 16
T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
Version: TypeAlias = tuple[str, FileStatus]
"""Path and status of a file."""


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
        self._local = LocalFiles()
        self._remote = RemoteFiles(self.config)
        self._cache = ShardCache(self.config.cache_folder, self.config.max_cache_bytes)
        self._statuses: dict[str, FileStatus] = {}
        self._footers: dict[Version, pq.FileMetaData] = {}
        self._whole: dict[Version, pa.NativeFile] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Storage, (self.config,)

    def list_folder(self, path: str) -> list[Entry]:
        """The entries of one folder, without hidden ones, in no particular order."""
        return self._call(path, lambda: self._files(path).list_folder(path))

    def list_files(
        self, path: str, *, suffix: str | tuple[str, ...] = PARQUET_SUFFIXES
    ) -> list[str]:
        """The files below a folder, ordered by folder and by the numbers in their names.

        Args:
            path: Searched with all folders below it, links to folders included; hidden names are
                skipped. A file gives itself.
            suffix: Ends of the names to find, in small letters; capitals are found too.

        Raises:
            DataError: If there is none.
        """
        return [entry.path for entry in self._find(path, suffix)]

    def list_statuses(
        self, path: str, *, suffix: str | tuple[str, ...] = PARQUET_SUFFIXES
    ) -> dict[str, FileStatus]:
        """Like `list_files`, with size and version of each; later reads are of this version."""
        entries = self._find(path, suffix)
        unknown = [e.path for e in entries if e.status is None or not e.status.version]
        with ThreadPoolExecutor(NUM_STATUS_THREADS) as pool:
            asked = dict(zip(unknown, pool.map(self.status, unknown), strict=True))
        found = {}
        for entry in entries:
            if (status := asked.get(entry.path) or entry.status) is not None:
                found[entry.path] = status
                _remember(self._statuses, entry.path, status, MAX_STATUSES)
        return found

    def is_folder(self, path: str) -> bool:
        """Whether a path is a folder; pages of web servers count as files."""
        if not is_remote(path):
            return local_path(path).is_dir()
        if is_http(path) or "." in file_name(path):  # asking object stores takes its time
            return False
        try:
            self.status(path)
        except DataError:
            return True
        return False

    def status(self, path: str) -> FileStatus:
        """Size and version of a file, asked anew; later reads are of this version."""
        return self._call(path, lambda: self._ask_status(path))

    def read_bytes(self, path: str, *, max_bytes: int | None = None) -> bytes:
        """Reads a whole file, past the cache.

        Args:
            path: The file.
            max_bytes: Maximum size; None for any.

        Raises:
            FileTooLargeError: If the file is larger.
        """
        data = self._call(path, lambda: self._files(path).read_bytes(path, max_bytes))
        if max_bytes is None or len(data) <= max_bytes:
            return data
        found = f"more than {max_bytes} bytes"
        remedy = "Make it smaller, or leave its sample out."
        place = without_query(path)
        raise FileTooLargeError(place, found=found, wanted="a small file", remedy=remedy)

    def open(self, path: str) -> BinaryIO:
        """Opens a file for reading; of a remote one, blocks are read through the cache."""
        if is_remote(path):
            status = self._statuses.get(path) or self.status(path)
            blocks = BlockFile(partial(self._read_block, path, status), status.size_bytes)
            return cast("BinaryIO", BufferedReader(blocks, BLOCK_BYTES))
        return self._call(path, lambda: self._local.open(path))

    @contextlib.contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """The file as a local path: its own, or that of a copy that the block may read."""
        if not is_remote(path):
            self.status(path)
            yield local_path(path)
            return
        with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
            copy = Path(folder, unquoted_name(path) or "input")
            copy.touch()
            self._call(path, lambda: self._remote.download(path, copy))
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
            self._call(path, lambda: self._remote.upload(temporary, path))

    def remove(self, path: str) -> None:
        """Deletes a file, if it exists."""
        if not is_remote(path):
            local_path(path).unlink(missing_ok=True)
            return
        with contextlib.suppress(DataError):
            self._call(path, lambda: self._remote.remove(path))

    def metadata(self, path: str) -> pq.FileMetaData:
        """The footer of a shard; a bounded number is kept in memory."""
        return self._read_shard(path, lambda _, metadata: metadata)

    def read_row_group(self, path: str, row_group: int, columns: Sequence[str] | None) -> pa.Table:
        """Reads all rows of one row group, numbered from 0; remote bytes are kept in the cache.

        Columns that the shard lacks are left out; None for all. Page checksums are verified.
        """

        def read(status: FileStatus, metadata: pq.FileMetaData) -> pa.Table:
            if not 0 <= row_group < metadata.num_row_groups:
                place, found = without_query(path), f"{metadata.num_row_groups} row groups"
                wanted = f"one of number {row_group}"
                remedy = "If the file has been replaced by another, start again."
                raise DataError(place, found=found, wanted=wanted, remedy=remedy)
            if is_remote(path):
                read_range = partial(self._read_range, path, status)
                size = status.size_bytes
                source = fetch_row_group(read_range, metadata, size, row_group, columns)
            else:
                source = pa.OSFile(os.fsencode(local_path(path)))
            with source:
                return read_row_group(source, metadata, row_group, columns)

        return self._read_shard(path, read, f", row group {row_group}")

    def iter_batches(
        self, path: str, batch_rows: int, *, row_groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yields the rows of a shard, or of some of its row groups, a few at a time.

        A local shard is streamed, whatever the size of its row groups; of a remote one, a row
        group at a time is in memory.
        """
        if is_remote(path):
            every = range(self.metadata(path).num_row_groups)
            for number in every if row_groups is None else row_groups:
                table = self.read_row_group(path, number, None)
                yield from table.to_batches(max_chunksize=batch_rows)
            return
        self.status(path)
        with local_errors(path), pa.OSFile(os.fsencode(local_path(path))) as source, parsing():
            yield from open_parquet(source).iter_batches(
                batch_size=batch_rows, row_groups=row_groups, use_threads=False
            )

    def _files(self, path: str) -> LocalFiles | RemoteFiles:
        return self._remote if is_remote(path) else self._local

    def _call(self, path: str, action: Callable[[], T], detail: str = "") -> T:
        """Calls a function that reads or writes a file, in several tries if need be."""
        if is_remote(path):
            return with_retries(self.config, f"{without_query(path)}{detail}", action)
        place = f"{local_path(path)}{detail}"

        def attempt() -> T:
            with local_errors(place):
                return action()

        try:
            return attempt()
        except OSError:  # a hiccup of the disk
            return with_retries(self.config, place, attempt)

    def _find(self, path: str, suffix: str | tuple[str, ...]) -> list[Entry]:
        path = plain_path(path)

        def fits(name: str) -> bool:
            return without_query(name).lower().endswith(suffix)

        # On a web server, folders are pages of links and look like files.
        may_be_file = not is_http(path) or fits(path)
        kinds = suffix if isinstance(suffix, str) else " or ".join(suffix)
        found, status, files = f"no {kinds} file", None, []
        try:
            if may_be_file:
                status = self._call(path, lambda: self._files(path).find_status(path))
        except MissingFileError:
            found = "nothing"
        else:
            if status is not None:
                return [Entry(path=path, is_folder=False, status=status)]
            files = [entry for entry in self._walk(path, ()) if fits(entry.path)]
        if not files:
            wanted, remedy = "a folder of shards", "Make them with mathcanvas convert."
            if suffix != PARQUET_SUFFIXES:
                wanted, remedy = f"a file, or a folder with {kinds} files", "Check the path."
            raise DataError(without_query(path), found=found, wanted=wanted, remedy=remedy)
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

    def _read_block(self, path: str, status: FileStatus, start: int, end: int) -> bytes:
        """Reads a part of one version of a remote file, in several tries."""
        try:
            return self._call(path, lambda: self._read_range(path, status, start, end))
        except StorageError:
            self._statuses.pop(path, None)  # the file may have been replaced: ask when it is opened
            raise

    def _read_shard(
        self, path: str, read: Callable[[FileStatus, pq.FileMetaData], T], detail: str = ""
    ) -> T:
        """Calls a function with status and footer of a shard; for a remote one, in several tries.

        The detail says in errors what is read.
        """

        def attempt() -> T:
            status = self._statuses.get(path) if is_remote(path) else None
            version = path, status or self._ask_status(path)
            try:
                return read(version[1], self._footer(*version))
            except (ContentError, IncompleteReadError) as error:
                # The footer may be damaged, or the file replaced: forget all that is known of it.
                self._statuses.pop(path, None)
                self._footers.pop(version, None)
                self._whole.pop(version, None)
                if isinstance(error, ContentError) and is_remote(path):
                    self._cache.drop(_entry(*version))
                raise

        return self._call(path, attempt, detail)

    # The methods below make one try.

    def _ask_status(self, path: str) -> FileStatus:
        status = self._files(path).find_status(path)
        if status is None:
            raise not_a_file(without_query(path))
        _remember(self._statuses, path, status, MAX_STATUSES)
        return status

    def _footer(self, path: str, status: FileStatus) -> pq.FileMetaData:
        metadata = self._footers.get((path, status))
        if metadata is None:
            metadata = read_footer(partial(self._read_range, path, status), status.size_bytes)
            _remember(self._footers, (path, status), metadata, MAX_FOOTERS)
        return metadata

    def _read_range(self, path: str, status: FileStatus, start: int, end: int) -> bytes:
        """Reads exactly the bytes [start, end) of a file, remote ones through the cache."""
        if not is_remote(path):
            return self._local.read_range(path, start, end)
        size = end - start
        whole = self._find_whole(path, status)
        if whole is not None:
            return cast("bytes", whole.read_at(size, start))
        name = _entry(path, status, (start, end))
        data = self._cache.find_part(name, size)
        if data is None:
            try:
                data = self._remote.read_range(path, start, end, status)
            except NoRangesError:
                return cast("bytes", self._fetch_whole(path, status).read_at(size, start))
            self._cache.keep_part(name, data)
        return data

    def _find_whole(self, path: str, status: FileStatus) -> pa.NativeFile | None:
        """The local copy of a shard whose server sends whole files only, if there is one."""
        file = self._whole.get((path, status))
        return file or self._cache.find_file(_entry(path, status), status.size_bytes)

    def _fetch_whole(self, path: str, status: FileStatus) -> pa.NativeFile:
        def write(copy: Path) -> None:
            self._remote.download(path, copy)
            if copy.stat().st_size != status.size_bytes:
                raise IncompleteReadError(f"received {copy.stat().st_size} bytes")

        name = _entry(path, status)
        file = self._cache.fetch_file(name, status.size_bytes, write)
        _remember(self._whole, (path, status), file, MAX_OPEN_FILES)
        return file


def _entry(path: str, status: FileStatus, part: tuple[int, int] | None = None) -> str:
    """Name of the cache entry of a whole file or a part of it."""
    return entry_name((without_query(path), status), part)


def _remember(values: dict[K, V], key: K, value: V, max_entries: int) -> None:
    """Adds a value and drops the oldest ones; safe in threads and after forks without a lock."""
    values[key] = value
    for old in list(values)[:-max_entries]:
        values.pop(old, None)
