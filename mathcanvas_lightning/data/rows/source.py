"""Reads rows by shard, row group and row number; lines of JSON files form groups too."""

import dataclasses
import json
import posixpath
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import pyarrow as pa

from mathcanvas_lightning.common.file_names import is_outside, near_miss
from mathcanvas_lightning.common.paths import (
    file_name,
    is_remote,
    join_path,
    parent_folder,
    plain_path,
    without_query,
)
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.rows.json_rows import NoRowsError, iter_rows, read_rows
from mathcanvas_lightning.data.rows.left_out import row_boundary
from mathcanvas_lightning.data.rows.readers import COLUMNS, READERS, Element, RowFormat, Sample
from mathcanvas_lightning.data.rows.stored_images import StoredRow
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.files import PARQUET_SUFFIXES, Storage
from mathcanvas_lightning.storage.retry import MissingFileError

LINES_PER_GROUP = 64


@dataclass(frozen=True, slots=True)
class RowGroup:
    """Rows that are read together."""

    number: int
    """Number in a Parquet file, from 0; in a JSON file, the offset of its first byte."""
    num_rows: int
    images: Sequence[StoredRow] | None = None
    """Sizes of the images of each row, if the shard holds them and they can be trusted."""


@dataclass(frozen=True, slots=True)
class RowSource:
    """Reads the rows and pictures of a data set; small enough to send to workers."""

    row_format: RowFormat
    storage: Storage
    image_dir: str | None = None
    """Folder of the image paths in conversations; None for the folder of the file."""
    limits: ImageLimits = dataclasses.field(default_factory=ImageLimits)

    @property
    def suffix(self) -> str | tuple[str, ...]:
        """Suffixes of the data set's files; a file that is named may have another one."""
        return ".jsonl" if self.row_format == "vlm" else PARQUET_SUFFIXES

    def groups(self, path: str) -> list[RowGroup]:
        """The row groups of a file.

        Raises:
            DataError: If the file is damaged.
            StorageError: If the server fails.
        """
        _check_name(without_query(path), self.row_format)
        if self.row_format == "vlm":
            with row_boundary(without_query(path)):
                return _json_groups(self.storage.open(path), without_query(path))
        metadata = self.storage.metadata(path)
        return [
            RowGroup(group, metadata.row_group(group).num_rows)
            for group in range(metadata.num_row_groups)
        ]

    def read(
        self,
        path: str,
        group: int,
        rows: Collection[int] | None = None,
        *,
        without: Collection[str] = (),
    ) -> "Rows":
        """Reads rows of a group.

        Args:
            path: The file.
            group: Number of the group.
            rows: Rows to keep in memory; None for all.
            without: Columns that are not read from a Parquet file.

        Raises:
            DataError: If they are damaged.
            StorageError: If the server fails.
        """
        with row_boundary(f"{without_query(path)}, row group {group}"):
            if self.row_format == "vlm":
                with self.storage.open(path) as file:
                    return Lines.keep(read_rows(file, group, LINES_PER_GROUP), rows)
            columns = [name for name in COLUMNS[self.row_format] if name not in without]
            table = self.storage.read_row_group(path, group, columns)
            return TableRows.keep(table, rows)

    def sample(self, rows: "Rows", path: str, group: int, row: int) -> Sample:
        """Decodes one row as a sample.

        Raises:
            NoSampleError: If the row is not a training sample.
            DataError: If the row violates the format.
        """
        place = row_place(path, group, row)
        with row_boundary(place):
            sample = READERS[self.row_format](rows.row(row, place), place)
        if sample.uid == place:  # without an id: a name that is equal on all machines
            return Sample(uid=row_uid(path, group, row), elements=sample.elements)
        return sample

    def read_image(self, element: Element, path: str) -> bytes:
        """Reads the encoded image of an element.

        Args:
            element: An image.
            path: File of the row.

        Raises:
            DataError: If there is no such file.
            StorageError: If the server fails.
        """
        if isinstance(element.content, bytes):
            return element.content
        folder = parent_folder(path) if self.image_dir is None else self.image_dir
        name = posixpath.normpath(element.content)
        if is_outside(name):
            raise DataError(
                without_query(path),
                found=f"the image path {element.content!r}",
                wanted="a path below the image folder",
                remedy="Fix the row, or set image_dir.",
            )
        place = join_path(folder, name)
        try:
            return self.storage.read_bytes(place, max_bytes=self.limits.max_bytes)
        except MissingFileError as error:
            hint = "" if is_remote(folder) else near_miss(plain_path(folder), element.content)
            if not hint:
                raise
            found, remedy = f"nothing{hint}", "Correct the path in the row."
            raise DataError(place, found=found, wanted=error.wanted, remedy=remedy) from None


class Rows(Protocol):
    """Rows that were read together."""

    num_bytes: int
    """Memory size of the rows."""

    def row(self, number: int, place: str) -> Mapping[str, Any]:
        """Returns one row.

        Raises:
            DataError: If the row doesn't exist, or can't be parsed.
        """


class TableRows:
    """Rows of a Parquet row group.

    Args:
        table: The rows.
        numbers: Number of each row in its group.
        num_rows: Rows of the whole group.
    """

    def __init__(self, table: pa.Table, numbers: Sequence[int], num_rows: int) -> None:
        self._table, self._num_rows = table, num_rows
        self._positions = {number: position for position, number in enumerate(numbers)}
        self.num_bytes = table.nbytes

    @classmethod
    def keep(cls, table: pa.Table, rows: Collection[int] | None) -> "TableRows":
        """Copies the wanted rows, so that the memory of the others is freed."""
        numbers = _existing(rows, table.num_rows)
        if len(numbers) == table.num_rows:
            kept = table
        elif all(column.num_chunks <= 1 for column in table.columns):
            kept = table.take(pa.array(numbers, pa.int64()))
        else:  # taking rows of several chunks would join them first, to over 2 GiB
            kept = pa.concat_tables([table.slice(n, 1).take([0]) for n in numbers] or [table[:0]])
        return cls(kept, numbers, table.num_rows)

    def row(self, number: int, place: str) -> Mapping[str, Any]:
        """See `Rows`."""
        if number not in self._positions:
            raise _no_row(place, self._num_rows)
        row: Mapping[str, Any] = self._table.slice(self._positions[number], 1).to_pylist()[0]
        return row


class Lines:
    """Lines of a JSON file, or items of its array.

    Args:
        lines: Number in the group -> the line.
        num_rows: Lines of the whole group.
    """

    def __init__(self, lines: Mapping[int, bytes], num_rows: int) -> None:
        self._lines, self._num_rows = lines, num_rows
        self.num_bytes = sum(map(len, lines.values()))

    @classmethod
    def keep(cls, lines: Sequence[bytes], rows: Collection[int] | None) -> "Lines":
        """Keeps the wanted lines."""
        return cls({n: lines[n] for n in _existing(rows, len(lines))}, len(lines))

    def row(self, number: int, place: str) -> Mapping[str, Any]:
        """See `Rows`."""
        if number not in self._lines:
            raise _no_row(place, self._num_rows)
        try:
            row = json.loads(self._lines[number])
        except ValueError as error:
            row = error
        if isinstance(row, dict):
            return row
        raise DataError(
            place,
            found=f"a row that is not a JSON object ({row!s:.80})",
            wanted="JSON lines of objects, or an array of objects",
            remedy="Fix the row, or remove it.",
        )


def _existing(rows: Collection[int] | None, num_rows: int) -> list[int]:
    return sorted(set(range(num_rows)).intersection(range(num_rows) if rows is None else rows))


def row_place(path: str, group: int, row: int) -> str:
    """Location of a row for error messages."""
    return f"{without_query(path)}, row group {group}, row {row}"


def row_uid(path: str, group: int, row: int) -> str:
    """Name of a row without an id: file name, row group, and number in the group."""
    name = file_name(path).encode(errors="backslashreplace").decode()  # a name may be no Unicode
    return f"{name}:{group}:{row}"


def _check_name(place: str, row_format: RowFormat) -> None:
    is_vlm, name = row_format == "vlm", place.lower()
    if name.endswith(PARQUET_SUFFIXES if is_vlm else (".jsonl", ".json", ".ndjson")):
        raise DataError(
            place,
            found=f"a {'Parquet' if is_vlm else 'JSON'} file for the row format {row_format}",
            wanted="JSON lines of conversations" if is_vlm else "Parquet shards",
            remedy="Set the row format of its rows, such as interleaved or t2i."
            if is_vlm
            else "Set the row format vlm for conversations, or make shards with "
            "mathcanvas convert.",
        )


def _json_groups(file: BinaryIO, place: str) -> list[RowGroup]:
    try:
        with file:
            starts = [offset for offset, _ in iter_rows(file)]
    except NoRowsError as error:
        wanted = "JSON lines or a JSON array, of conversations"
        raise DataError(place, found=error.found, wanted=wanted, remedy=error.remedy) from None
    return [
        RowGroup(starts[first], min(LINES_PER_GROUP, len(starts) - first))
        for first in range(0, len(starts), LINES_PER_GROUP)
    ]


def _no_row(place: str, num_rows: int) -> DataError:
    return DataError(
        place,
        found=f"only {num_rows} rows",
        wanted="the row that the index lists",
        remedy="The file has changed: build the index again with mathcanvas index.",
    )
