"""Ranges of remote files, read through the cache."""

import contextlib
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias, cast

import pyarrow as pa
from fsspec.spec import AbstractBufferedFile

from mathcanvas_lightning.storage.cache import ShardCache, entry_name
from mathcanvas_lightning.storage.config import FileStatus
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from mathcanvas_lightning.storage.retry import IncompleteReadError, NoRangesError

BLOCK_BYTES, MAX_BLOCKS, MAX_OPEN_FILES = 2**20, 8, 8
ReadRange: TypeAlias = Callable[[int, int], bytes]
"""Gives the bytes [start, end) of a file, or raises."""


class CachedRanges:
    """Reads ranges of remote files through the cache, each in one try.

    Of a server that sends whole files only, the whole file is put into the cache.
    """

    def __init__(self, remote: RemoteFiles, cache: ShardCache) -> None:
        self._remote = remote
        self._cache = cache
        self._whole_file = lru_cache(MAX_OPEN_FILES)(self._fetch_whole)

    def read(self, url: str, status: FileStatus, start: int, end: int) -> bytes:
        """Reads exactly the bytes [start, end) of a version of a file."""
        size = end - start
        if file := self._cache.find(entry_name(url, status), status.size_bytes):
            return cast("bytes", file.read_at(size, start))
        name = entry_name(url, status, (start, end))
        try:
            return self._cache.part(
                name, size, lambda: self._remote.read_range(url, start, end, status)
            )
        except NoRangesError:
            return cast("bytes", self._whole_file(url, status).read_at(size, start))

    def drop(self, url: str, status: FileStatus) -> None:
        """Forgets what was read of a version of a file."""
        self._whole_file.cache_clear()
        self._cache.drop(url, status)

    def _fetch_whole(self, url: str, status: FileStatus) -> pa.NativeFile:
        name, size = entry_name(url, status), status.size_bytes
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError, NotImplementedError):  # each process fetches one then
                stack.enter_context(self._cache.lock(f".lock-{name[:2]}"))
            if file := self._cache.find(name, size):
                return file
            folder = stack.enter_context(TemporaryDirectory(prefix="mathcanvas-"))
            copy = Path(folder, "whole")
            self._remote.download(url, copy)
            if (received := copy.stat().st_size) != size:
                raise IncompleteReadError(f"received {received} bytes instead of {size}")
            file = pa.OSFile(str(copy))  # can be read when it has been moved or deleted
            self._cache.add(name, size, partial(shutil.move, copy))
            return file


class BlockFile(AbstractBufferedFile):  # type: ignore[misc] # fsspec has no types
    """A file whose blocks are read when needed, at multiples of `BLOCK_BYTES`.

    Args:
        read_range: Reads a range.
        size_bytes: Length of the file.
    """

    def __init__(self, read_range: ReadRange, size_bytes: int) -> None:
        self._read_range = read_range
        super().__init__(
            *(None, ""),
            size=size_bytes,
            block_size=BLOCK_BYTES,
            cache_type="blockcache",
            cache_options={"maxblocks": MAX_BLOCKS},
        )

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self._read_range(start, min(end, self.size))
