"""Parquet files: footers and row groups, with damage reported as one exception."""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.spec import AbstractBufferedFile
from fsspec.utils import merge_offset_ranges

from mathcanvas_lightning.common.file_kinds import POINTER, is_lfs_pointer
from mathcanvas_lightning.common.paths import without_query
from mathcanvas_lightning.errors import DataError, MathCanvasError
from mathcanvas_lightning.storage.ranges import ReadRange
from mathcanvas_lightning.storage.retry import TRANSIENT_ERRNOS, ContentError

TAIL_BYTES = 2**16
"""Most footers are shorter than this."""
MAX_GAP_BYTES = 2**20
"""Reading up to this many unneeded bytes is faster than another request."""
ENCRYPTED_END = b"PARE"
"""Last bytes of a file with an encrypted footer; others end with PAR1."""
PART_ROWS = 64
"""Rows that are read at a time of a row group that is too large for one array."""


@contextlib.contextmanager
def parsing() -> Iterator[None]:
    """Raises `ContentError` for damage that Arrow reports."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS:
            raise
        raise ContentError(str(error)) from error


def open_parquet(source: Any, metadata: pq.FileMetaData | None = None) -> pq.ParquetFile:
    """Opens a Parquet file of Arrow or Python, with verified page checksums."""
    # Without pre-buffering on Arrow's threads: one that still holds a Python file when the process
    # ends aborts it.
    return pq.ParquetFile(
        source, metadata=metadata, pre_buffer=False, page_checksum_verification=True
    )


def read_footer(read_range: ReadRange, size_bytes: int) -> pq.FileMetaData:
    """Reads the footer of a file, usually in one request; raises `ContentError` for damage."""
    tail = read_range(max(size_bytes - TAIL_BYTES, 0), size_bytes) if size_bytes else b""
    if is_lfs_pointer(tail):
        raise ContentError(POINTER)
    if tail.endswith(ENCRYPTED_END):
        raise ContentError("an encrypted file: decrypt it first")
    footer_bytes = int.from_bytes(tail[-8:-4], "little") + 8
    if len(tail) < footer_bytes <= size_bytes:
        tail = read_range(size_bytes - footer_bytes, size_bytes)
    with parsing():
        return pq.read_metadata(pa.BufferReader(tail))


def repeated_column(metadata: pq.FileMetaData) -> str | None:
    """A column whose name occurs twice: readers would silently take one of them."""
    counts = Counter(metadata.schema.column(number).path for number in range(metadata.num_columns))
    return next((path for path, count in counts.items() if count > 1), None)


def fetch_row_group(
    read_range: ReadRange,
    metadata: pq.FileMetaData,
    size_bytes: int,
    row_group: int,
    names: Sequence[str] | None,
) -> AbstractBufferedFile:
    """A file that holds only the wanted columns of a row group; neighbours are read together.

    All columns are wanted if names is None.

    Raises:
        ContentError: If the footer points outside of the file.
    """
    with parsing():
        ranges = list(_column_ranges(metadata.row_group(row_group), names))
    if not all(0 <= start < end <= size_bytes for start, end in ranges):
        raise ContentError("a footer that points outside of the file")
    starts, ends = [start for start, _ in ranges], [end for _, end in ranges]
    _, starts, ends = merge_offset_ranges([""] * len(ranges), starts, ends, MAX_GAP_BYTES)
    parts = {part: read_range(*part) for part in zip(starts, ends, strict=True)}
    return AbstractBufferedFile(
        *(None, ""), size=size_bytes, cache_type="parts", cache_options={"data": parts}
    )


def read_row_group(
    source: Any, metadata: pq.FileMetaData, row_group: int, names: Sequence[str] | None
) -> pa.Table:
    """Reads columns of one row group; raises `ContentError` for damage."""
    with parsing():
        columns = None if names is None else list(names)
        file = open_parquet(source, metadata)
        try:
            table = file.read_row_group(row_group, columns=columns, use_threads=False)
        except pa.ArrowNotImplementedError:  # over 2 GiB of images, which are no single array
            batches = file.iter_batches(
                PART_ROWS, row_groups=[row_group], columns=columns, use_threads=False
            )
            table = pa.Table.from_batches(batches)
        num_rows = metadata.row_group(row_group).num_rows
    if table.num_rows != num_rows:
        raise ContentError(f"{table.num_rows} rows instead of {num_rows}")
    return table


def python_rows(
    batch: pa.RecordBatch, path: str, start: int, kind: type[MathCanvasError] = DataError
) -> list[dict[str, Any]]:
    """The rows of a batch as Python values.

    Args:
        batch: Some rows of a file.
        path: The file, for errors.
        start: Number in the file of the first row of the batch, for errors.
        kind: Type of the error.

    Raises:
        MathCanvasError: Of type `kind`, if a value has no Python value.
    """
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
    except Exception as error:  # Arrow raises several, such as OverflowError for a year
        row, column = _unreadable(batch)
        raise kind(
            f"{without_query(path)}, row {start + row}, column {column}",
            found=f"a value that can't be read ({type(error).__name__}: {error!s:.200})",
            wanted="UTF-8 texts, and times of the years 1 to 9999",
            remedy="Correct it, or store the column as text.",
        ) from None
    return rows


def _unreadable(batch: pa.RecordBatch) -> tuple[int, str]:
    """Row and column of the first value that has no Python value."""
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        for row in range(len(column)):
            try:
                column[row].as_py()
            except Exception:
                return row, name
    return 0, ""


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
