"""Parquet files: opened with checksums, read by row group, damage reported as one exception."""

import contextlib
import io
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.retry import ContentError

MAX_GAP_BYTES = 2**20
"""Reading up to this many unneeded bytes is faster than another request."""


class RangeFile(io.RawIOBase):
    """A remote file that is read by ranges.

    Args:
        read_range: Gives the bytes [start, end), or raises.
        size_bytes: Length of the file.
    """

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read_range = read_range
        self._size_bytes = size_bytes
        self._position = 0
        self._pieces: list[tuple[int, bytes]] = []
        self.failure: Exception | None = None
        """The first exception of a read; Arrow replaces some exceptions by its own."""

    def prefetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Reads ranges [start, end), neighbours in one request, for the following reads."""
        merged: list[tuple[int, int]] = []
        for start, end in sorted(ranges):
            if not 0 <= start < end <= self._size_bytes:
                raise ContentError("a footer that points outside of the file")
            if merged and start - merged[-1][1] <= MAX_GAP_BYTES:
                start, end = merged[-1][0], max(end, merged[-1][1])
                merged.pop()
            merged.append((start, end))
        self._pieces = [(start, self._fetch(start, end)) for start, end in merged]

    def readable(self) -> bool:
        """Yes: Arrow asks."""
        return True

    def seekable(self) -> bool:
        """Yes: Arrow asks."""
        return True

    def tell(self) -> int:
        """The position of the next read."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Moves the position of the next read."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}
        self._position = base[whence] + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Reads `size` bytes, fewer only at the end of the file."""
        end = self._size_bytes if size < 0 else min(self._position + size, self._size_bytes)
        start = min(self._position, end)
        self._position = end
        for first, piece in self._pieces:
            if first <= start <= end <= first + len(piece):
                return piece[start - first : end - first]
        return self._fetch(start, end) if start < end else b""

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            return self._read_range(start, end)
        except Exception as error:
            self.failure = self.failure or error
            raise


Source: TypeAlias = RangeFile | pa.NativeFile


@contextlib.contextmanager
def parsing(source: Source) -> Iterator[None]:
    """Raises the failed read of a source if there is one, and `ContentError` for damage."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(source, RangeFile) and source.failure is not None:
            raise source.failure from None
        raise ContentError(str(error)) from error


def open_parquet(source: Source, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a Parquet file; page checksums are verified when pages are read.

    Args:
        source: The file.
        metadata: Its footer, if known.

    Raises:
        ContentError: If it has no valid footer.
    """
    with parsing(source):
        return pq.ParquetFile(
            source,
            metadata=metadata,
            # Not on Arrow's threads: one that still holds a Python file when the process ends
            # aborts it.
            pre_buffer=False,
            page_checksum_verification=True,
        )


def read_table(
    place: str,
    source: Source,
    metadata: pq.FileMetaData,
    row_group: int,
    names: Sequence[str] | None,
) -> pa.Table:
    """Reads one row group.

    Args:
        place: Path or URL, for errors.
        source: The file.
        metadata: Its footer.
        row_group: Number of the row group, from 0.
        names: Columns; None for all.

    Raises:
        ContentError: If it can't be read.
        DataError: If there is no such row group.
    """
    if not 0 <= row_group < metadata.num_row_groups:
        raise DataError(
            place,
            found=f"{metadata.num_row_groups} row groups",
            wanted=f"one of number {row_group}",
            remedy="If the file has been replaced by another, start again.",
        )
    file = open_parquet(source, metadata)
    with parsing(source):
        columns = None if names is None else list(names)
        if isinstance(source, RangeFile):
            source.prefetch(_column_ranges(metadata.row_group(row_group), columns))
        table = file.read_row_group(row_group, columns=columns, use_threads=False)
        num_rows = metadata.row_group(row_group).num_rows
    if table.num_rows != num_rows:
        raise ContentError(f"{table.num_rows} rows instead of {num_rows}")
    return table


def _column_ranges(
    row_group: pq.RowGroupMetaData, names: Sequence[str] | None
) -> Iterator[tuple[int, int]]:
    """The bytes of each wanted column, as [start, end)."""
    for number in range(row_group.num_columns):
        column = row_group.column(number)
        path = f"{column.path_in_schema}."
        if names is None or any(path.startswith(f"{name}.") for name in names):
            start = column.data_page_offset
            # Some writers give the offset 0 for a missing dictionary.
            if column.has_dictionary_page and 0 < column.dictionary_page_offset < start:
                start = column.dictionary_page_offset
            yield start, start + column.total_compressed_size
