"""The one way to files, local or remote: list, stat, read and write, with retries."""

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.parallel import waiting_threads
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
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.cache import ShardCache
from mathcanvas_lightning.storage.config import Entry, FileStatus, StorageConfig
from mathcanvas_lightning.storage.local_files import LocalFiles, local_errors
from mathcanvas_lightning.storage.parquet import (
    fetch_row_group,
    open_parquet,
    parsing,
    read_footer,
    read_row_group,
    repeated_column,
)
from mathcanvas_lightning.storage.ranges import BLOCK_BYTES, BlockFile, CachedRanges
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from mathcanvas_lightning.storage.retry import (
    ContentError,
    FileTooLargeError,
    IncompleteReadError,
    MissingFileError,
    not_a_file,
    with_retries,
)

MAX_FOOTERS = 256
PARQUET_SUFFIXES = (".parquet", ".pq")
NUM_STATUS_THREADS = 16
T = TypeVar("T")


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
        cache = ShardCache(self.config.cache_folder, self.config.max_cache_bytes)
        self._ranges = CachedRanges(self._remote, cache)
        self._statuses: dict[str, FileStatus] = {}  # of the versions that are read
        self._footer = lru_cache(MAX_FOOTERS)(self._read_footer)

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
            DataError: If there is no such file.
        """
        return [entry.path for entry in self._find(path, suffix)]

    def list_statuses(
        self, path: str, *, suffix: str | tuple[str, ...] = PARQUET_SUFFIXES
    ) -> dict[str, FileStatus]:
        """Like `list_files`, with size and version of each; later reads are of this version."""
        entries = self._find(path, suffix)
        unknown = [e.path for e in entries if e.status is None or not e.status.version]
        with waiting_threads(NUM_STATUS_THREADS, "status") as pool:
            asked = dict(zip(unknown, pool.map(self.status, unknown), strict=True))
        found = {e.path: status for e in entries if (status := asked.get(e.path) or e.status)}
        if is_remote(path):
            self._statuses.update(found)
        return found

    def is_folder(self, path: str) -> bool:
        """Whether a path is a folder; pages of web servers and missing local paths are not."""
        if not is_remote(path):
            return local_path(path).is_dir()
        if is_http(path) or "." in file_name(path):  # asking object stores takes its time
            return False
        return self._call(path, lambda: self._files(path).find_status(path)) is None

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
        if not is_remote(path):
            return self._call(path, lambda: self._local.open(path))
        status = self._call(path, lambda: self._known_status(path))
        read_range = partial(self._ranges.read, path, status)

        def read(start: int, end: int) -> bytes:
            return self._call(path, lambda: read_range(start, end))

        blocks = BlockFile(read, status.size_bytes)
        return cast("BinaryIO", BufferedReader(blocks, BLOCK_BYTES))

    @contextlib.contextmanager
    def fetched(self, path: str) -> Iterator[Path]:
        """The file as a local path: its own, or that of a copy that the block may read."""
        if not is_remote(path):
            self.status(path)
            yield local_path(path)
            return
        with tempfile.TemporaryDirectory(prefix="mathcanvas-") as folder:
            copy = Path(folder, unquoted_name(path) or "input")
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
        return self._call(path, lambda: self._footer(path, self._known_status(path)))

    def read_row_group(self, path: str, row_group: int, columns: Sequence[str] | None) -> pa.Table:
        """Reads all rows of one row group, numbered from 0; remote bytes are kept in the cache.

        Columns that the shard lacks are left out; None for all. Page checksums are verified.
        """

        def read() -> pa.Table:
            status = self._known_status(path)
            metadata = self._footer(path, status)
            if not 0 <= row_group < metadata.num_row_groups:
                place, found = without_query(path), f"{metadata.num_row_groups} row groups"
                wanted = f"one of number {row_group}"
                remedy = "If the file has been replaced by another, start again."
                raise DataError(place, found=found, wanted=wanted, remedy=remedy)
            if is_remote(path):
                read_range = partial(self._ranges.read, path, status)
                size = status.size_bytes
                source = fetch_row_group(read_range, metadata, size, row_group, columns)
            else:
                source = pa.OSFile(os.fsencode(local_path(path)))
            with source:
                return read_row_group(source, metadata, row_group, columns)

        return self._call(path, read, f", row group {row_group}")

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
        self.metadata(path)
        with local_errors(path), pa.OSFile(os.fsencode(local_path(path))) as source, parsing():
            yield from open_parquet(source).iter_batches(
                batch_size=batch_rows, row_groups=row_groups, use_threads=False
            )

    def _files(self, path: str) -> LocalFiles | RemoteFiles:
        return self._remote if is_remote(path) else self._local

    def _call(self, path: str, action: Callable[[], T], detail: str = "") -> T:
        """Calls a function that reads or writes a file, in several tries if need be.

        The detail says in errors what is read.
        """
        place = f"{without_query(plain_path(path))}{detail}"

        def try_local() -> T:
            with local_errors(place):
                return action()

        def try_remote() -> T:
            try:
                return action()
            except (ContentError, IncompleteReadError) as error:
                # The file may have been replaced, or the footer be damaged: forget what is known.
                status = self._statuses.pop(path, None)
                self._footer.cache_clear()
                if status is not None and isinstance(error, ContentError):
                    self._ranges.drop(path, status)
                raise

        return with_retries(self.config, place, try_remote if is_remote(path) else try_local)

    def _find(self, path: str, suffix: str | tuple[str, ...]) -> list[Entry]:
        if not path:
            wanted, remedy = "a file or a folder", "Name it, or write . for the current folder."
            raise DataError("path", found="an empty path", wanted=wanted, remedy=remedy)
        path = plain_path(path)

        def fits(name: str) -> bool:
            return without_query(name).lower().endswith(suffix)

        kinds = suffix if isinstance(suffix, str) else " or ".join(suffix)
        found, files = f"no {kinds} file", []
        try:
            # On a web server, folders are pages of links and look like files.
            if not is_http(path) or fits(path):
                status = self._call(path, lambda: self._files(path).find_status(path))
                if status is not None:
                    return [Entry(path=path, is_folder=False, status=status)]
            files = [entry for entry in self._walk(path, ()) if fits(entry.path)]
        except MissingFileError:
            found = "nothing"
        if not files:
            wanted, remedy = "a folder of shards", "Make them with mathcanvas convert."
            if suffix != PARQUET_SUFFIXES:
                wanted = f"a file, or a folder with {kinds} files"
                remedy = "Check the path; a file with another ending is read if it is named."
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

    # The methods below make one try.

    def _ask_status(self, path: str) -> FileStatus:
        status = self._files(path).find_status(path)
        if status is None:
            raise not_a_file(without_query(path))
        if is_remote(path):
            self._statuses[path] = status
        return status

    def _known_status(self, path: str) -> FileStatus:
        """The version that is read: of a local file the present one, of a remote one the first."""
        return self._statuses.get(path) or self._ask_status(path)

    def _read_footer(self, path: str, status: FileStatus) -> pq.FileMetaData:
        files = self._ranges if is_remote(path) else self._local
        metadata = read_footer(partial(files.read, path, status), status.size_bytes)
        if (column := repeated_column(metadata)) is not None:
            raise DataError(
                without_query(path),
                found=f"the column {column!r} twice",
                wanted="columns with different names",
                remedy="Convert its source again, or rename one of them.",
            )
        return metadata
