"""Streams the rows of Parquet and CSV files as records."""

import csv
import io
from collections.abc import Iterator
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO

from mathcanvas_lightning.conversion.input.encoding import opened_text
from mathcanvas_lightning.errors import DataError, InputError, StorageError
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.parquet import python_rows

MAX_CELL_CHARACTERS = 2**31 - 1
BATCH_ROWS = 16
"""Rows in memory; a row may hold several large pictures."""


def read_csv(path: Path, place: str) -> Iterator[dict[str, str]]:
    """Yields the rows of a CSV file with a header, as texts; `.tsv` files have tabs.

    Args:
        path: A local file, also packed by gzip.
        place: Name of the file in errors.

    Raises:
        InputError: At the first malformed line.
    """
    csv.field_size_limit(MAX_CELL_CHARACTERS)  # the default is too small for base64 pictures
    with opened_text(path, place, "CSV in UTF-8 with a header line") as binary:
        text = io.TextIOWrapper(binary, encoding="utf-8", newline="")
        lines = csv.reader(text, delimiter=delimiter(path), strict=True)
        try:
            header = next(lines, [])
            if len(set(header)) < len(header):
                raise csv.Error(f"a column name occurs twice in the header {header}")
            for cells in lines:
                if cells and len(cells) != len(header):
                    raise csv.Error(f"{len(cells)} cells below a header of {len(header)}")
                if cells:
                    yield dict(zip(header, cells, strict=True))
        except (csv.Error, UnicodeDecodeError) as error:
            is_csv = isinstance(error, csv.Error)
            raise InputError(
                f"{place}:{lines.line_num if is_csv else _line_of_other_text(binary)}",
                found=f"malformed CSV ({error})",
                wanted="UTF-8 text with a header line and as many cells in each record",
                remedy="Correct the file and run again; finished work is kept.",
            ) from None
        finally:
            text.detach()


def _line_of_other_text(file: BinaryIO) -> int:
    """The first line that is not UTF-8; the decoder reads many lines ahead."""
    file.seek(0)
    for number, line in enumerate(file, start=1):
        try:
            line.decode()
        except UnicodeDecodeError:
            return number
    return 0


def delimiter(path: Path) -> str:
    """The delimiter of a file of this name."""
    return "\t" if path.name.lower().removesuffix(".gz").endswith(".tsv") else ","


def read_parquet(
    source: str, storage: Storage, start: int = 0, stop: int | None = None
) -> Iterator[dict[str, Any]]:
    """Yields rows of a Parquet file; row groups outside of the range are not read.

    Args:
        source: A path or URL.
        storage: Reads the file.
        start: First row.
        stop: First row that is left out; None for all.

    Raises:
        InputError: If the file is missing or damaged, or its server fails.
    """
    try:
        groups, skipped = _row_groups(source, storage, start, stop)
        position = skipped
        for batch in storage.iter_batches(source, BATCH_ROWS, row_groups=groups):
            first = max(start - position, 0)
            last = len(batch) if stop is None else min(stop - position, len(batch))
            position += len(batch)
            if first < last:
                rows = batch.slice(first, last - first)
                yield from map(
                    plain_row, python_rows(rows, source, position - len(batch) + first, InputError)
                )
    except (DataError, StorageError) as error:
        raise input_error(error) from None


def count_rows(source: str, storage: Storage) -> int:
    """The number of rows of a Parquet file, from its footer.

    Raises:
        InputError: If the file is missing or damaged, or its server fails.
    """
    try:
        return int(storage.metadata(source).num_rows)
    except (DataError, StorageError) as error:
        raise input_error(error) from None


def input_error(error: DataError | StorageError) -> InputError:
    """The error for an input file that can't be read."""
    return InputError(
        error.place,
        found=error.found,
        wanted="a JSON, JSON lines, CSV, Parquet or tar file",
        remedy=error.remedy,
    )


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row whose dates, times and decimals are texts or numbers, as in JSON."""
    return {name: _plain(value) for name, value in row.items()}


def _number(value: Decimal) -> int | float | str:
    """The equal integer or float; the digits of a decimal that no float equals."""
    if value == value.to_integral_value():
        return int(value)
    return float(value) if Decimal(repr(float(value))) == value else str(value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain_row(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return _number(value)
    return value.isoformat() if isinstance(value, date | time) else value


def _row_groups(
    source: str, storage: Storage, start: int, stop: int | None
) -> tuple[list[int] | None, int]:
    """The row groups of a range, and the number of rows before them; None for all."""
    if start == 0 and stop is None:
        return None, 0
    metadata = storage.metadata(source)
    groups, before, position = [], 0, 0
    for number in range(metadata.num_row_groups):
        end = position + metadata.row_group(number).num_rows
        if end <= start:
            before = end
        elif stop is None or position < stop:
            groups.append(number)
        position = end
    return groups, before
