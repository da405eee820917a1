"""Reads and writes files of records, one record at a time: JSON, JSON lines, CSV and Parquet."""

import base64
import contextlib
import csv
import json
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from math import isfinite
from pathlib import Path
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.conversion.input.records import read_records as read_json
from mathcanvas_lightning.conversion.input.tables import delimiter, read_csv
from mathcanvas_lightning.data.rows.shards import iter_rows
from mathcanvas_lightning.errors import DataError, InputError
from mathcanvas_lightning.storage.files import Storage

RecordFormat = Literal["json", "jsonl", "csv", "parquet"]
FORMATS: dict[str, RecordFormat] = {
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
"""Suffix -> format."""
GROUP_RECORDS = 1024
GROUP_BYTES = 16 * 2**20
"""A row group ends at one of these limits; only one row group is in memory."""

Types = dict[str, pa.DataType | None]
"""Column -> Arrow type; None if the values have no common type."""


def format_of(path: str | Path) -> RecordFormat:
    """The format of a file, by its suffix; a folder is read as Parquet shards.

    Raises:
        InputError: If the suffix is unknown.
    """
    local = local_path(path)
    name, suffix = local.name, local.suffix.lower()
    if not name or (suffix not in FORMATS and not local.is_dir()):
        raise InputError(
            str(path) or "a file of records",
            found=f"the suffix {suffix!r}" if name else "an empty name",
            wanted=f"one of {', '.join(FORMATS)}, or a folder of Parquet shards",
            remedy="Rename or convert the file.",
        )
    return "parquet" if local.is_dir() else FORMATS[suffix]


def read_records(path: str | Path) -> Iterator[Any]:
    """Reads the records of a file one at a time, with little memory even for large files.

    Args:
        path: A JSON array, JSON lines, CSV or TSV with a header line, a Parquet file, or a
            folder of Parquet shards.

    Returns:
        An iterator over JSON values, over dicts of strings (CSV), or over dicts (Parquet).

    Raises:
        InputError: If the file does not exist or has an unknown suffix; during the iteration, if
            the file is malformed (with the line number if there is one).
    """
    record_format = format_of(path)
    path = local_path(path)
    if not path.exists():
        raise _unreadable(path, "nothing")
    return _guarded(path, _READERS[record_format](path))


def write_records(
    path: Path, records: Iterable[Mapping[str, Any]], *, like: str | Path | None = None
) -> None:
    """Writes records in the format of the path's suffix; the file is replaced atomically.

    Records from `read_records` are written back unchanged, with their fields in the same order. A
    value that the format cannot store (bytes in JSON, an object in CSV) becomes a text: base64 or
    JSON. CSV and Parquet get one column for each field of any record, in the order of first
    occurrence; for these formats the records go through a temporary file.

    A Parquet column has the type that it has in `like`, or else the common type of its values.
    Values without a common type (texts and numbers, objects with different fields) become JSON
    texts.

    Args:
        path: Path of the file; an existing file is replaced.
        records: Records; iterated once.
        like: File that the records come from. If both files are Parquet, the columns of this file
            come first, with the same types, and its metadata is kept.

    Raises:
        InputError: If the suffix is unknown.
    """
    record_format = format_of(path)
    with written_whole(path) as temporary:
        if record_format == "json":
            _write_json(temporary, records)
        elif record_format == "jsonl":
            _write_lines(temporary, records)
        elif record_format == "csv":
            _write_csv(temporary, records)
        else:
            _write_parquet(temporary, records, _schema_of(like))


def _guarded(path: Path, records: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from records
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    except DataError as error:
        raise _unreadable(Path(error.place), error.found) from None


def _read_json(path: Path) -> Iterator[Any]:
    return read_json(path, str(path))


def _read_csv(path: Path) -> Iterator[Any]:
    return read_csv(path, str(path))


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    storage = Storage()
    for shard in storage.list_files(str(path)):
        yield from iter_rows(shard, storage)


_READERS: dict[RecordFormat, Callable[[Path], Iterator[Any]]] = {
    "json": _read_json,
    "jsonl": _read_json,
    "csv": _read_csv,
    "parquet": _read_parquet,
}


def _write_json(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes an array in the layout of `json.dump(..., indent=2)`."""
    with path.open("wb") as file:
        before = "[\n  "
        for record in records:
            file.write((before + json_text(record, indent=2).replace("\n", "\n  ")).encode())
            before = ",\n  "
        file.write(b"[]\n" if before.startswith("[") else b"\n]\n")


def _write_lines(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    with path.open("wb") as file:
        for record in records:
            file.write(json_text(record).encode() + b"\n")


def _write_csv(path: Path, records: Iterable[Mapping[str, Any]]) -> None:
    columns: dict[str, None] = {}
    with (
        tempfile.TemporaryFile(dir=path.parent) as spool,
        path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
    ):
        for group in _spooled(records, spool):
            for record in group:
                columns.update(dict.fromkeys(record))
        writer = csv.writer(file, delimiter=delimiter(path))
        writer.writerow(columns)
        for group in _unspooled(spool):
            writer.writerows([_cell(record.get(name)) for name in columns] for record in group)


def _write_parquet(path: Path, records: Iterable[Mapping[str, Any]], known: pa.Schema) -> None:
    with tempfile.TemporaryFile(dir=path.parent) as spool:
        inferred: Types = {}
        for group in _spooled(records, spool):
            _infer(group, inferred)
        choices = {
            name: _choices(name, known, inferred)
            for name in dict.fromkeys((*known.names, *inferred))
        }
        # A type may turn out wrong only at the last record; then the next type is tried.
        while (unfit := _write_groups(path, spool, known, choices)) is not None:
            choices[unfit].pop(0)


def _choices(name: str, known: pa.Schema, inferred: Types) -> list[pa.DataType | None]:
    """Possible types of a column, best first; the last one is None, which means JSON text."""
    kinds = [known.field(name).type] if name in known.names else []
    kind = inferred.get(name)
    if kind is not None:
        kinds.append(pa.string() if pa.types.is_null(kind) else kind)
    return [*filter(_is_storable, kinds), None]


def _write_groups(
    path: Path,
    spool: IO[bytes],
    known: pa.Schema,
    choices: Mapping[str, list[pa.DataType | None]],
) -> str | None:
    """Writes all records; stops at a column with an unfit type and returns its name, else None."""
    kinds = {name: choice[0] for name, choice in choices.items()}
    fields = [_field(name, kind, known) for name, kind in kinds.items()]
    schema = pa.schema(fields, metadata=known.metadata)
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for group in _unspooled(spool):
            columns = []
            for name, kind in kinds.items():
                column = _column([record.get(name) for record in group], kind)
                if column is None:
                    return name
                columns.append(column)
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
    return None


def _field(name: str, kind: pa.DataType | None, known: pa.Schema) -> pa.Field:
    field = known.field(name) if name in known.names else pa.field(name, pa.string())
    return field.with_type(pa.string() if kind is None else kind).with_nullable(True)


def _column(values: list[Any], kind: pa.DataType | None) -> pa.Array | None:
    """Converts values to an Arrow array; None if the type would change a value."""
    if kind is None:
        return pa.array(
            [None if value is None else json_text(value) for value in values], pa.string()
        )
    try:
        array = pa.array(values, kind)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return None
    return array if _is_same(array.to_pylist(), values) else None


def _infer(group: list[dict[str, Any]], types: Types) -> None:
    """Widens the column types so that they fit more records."""
    for name in dict.fromkeys(name for record in group for name in record):
        before = types.get(name, pa.null())
        if before is None:
            continue
        try:
            kind = pa.array([record.get(name) for record in group]).type
            both = [pa.schema([(name, before)]), pa.schema([(name, kind)])]
            types[name] = pa.unify_schemas(both, promote_options="permissive").field(0).type
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            types[name] = None


def _is_storable(kind: pa.DataType) -> bool:
    """Whether Parquet supports the type; objects without fields, for instance, are unsupported."""
    try:
        empty = pa.schema([("column", kind)]).empty_table()
        pq.write_table(empty, pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


def _is_same(one: Any, other: Any) -> bool:
    """Deep equality in which NaN equals NaN."""
    if one == other or (one != one and other != other):
        return True
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_same(one[name], other[name]) for name in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return False


def _schema_of(like: str | Path | None) -> pa.Schema:
    if like is None or format_of(like) != "parquet":
        return pa.schema([])
    storage = Storage()
    with storage.fetched(storage.list_files(str(like))[0]) as shard:
        return pq.read_schema(shard)


def _spooled(
    records: Iterable[Mapping[str, Any]], spool: IO[bytes]
) -> Iterator[list[dict[str, Any]]]:
    """Yields records in groups of limited size, and saves each group in the temporary file."""
    group: list[dict[str, Any]] = []
    size = 0
    for record in records:
        group.append(dict(record))
        size += _size(record)
        if len(group) == GROUP_RECORDS or size >= GROUP_BYTES:
            pickle.dump(group, spool)
            yield group
            group, size = [], 0
    if group:
        pickle.dump(group, spool)
        yield group


def _unspooled(spool: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    spool.seek(0)
    with contextlib.suppress(EOFError):
        while True:
            yield pickle.load(spool)  # noqa: S301 - an unnamed file of this process


def _size(value: Any) -> int:
    """Approximate size of a value in bytes."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, Mapping):
        return sum(map(_size, value.values()))
    return sum(map(_size, value)) if isinstance(value, list) else 8


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Converts a value to JSON that can be encoded in UTF-8; bytes become base64.

    Args:
        value: Any value; a value without a JSON form becomes text, NaN and infinity become null.
        indent: Number of spaces per level; None for one line.
    """
    if isinstance(value, Mapping):
        value = dict(value)
    dumps = partial(json.dumps, indent=indent, default=_as_text, allow_nan=False)
    try:
        text = dumps(value, ensure_ascii=False)
    except ValueError:  # JSON has no NaN and no infinity
        value = _finite(value)
        text = dumps(value, ensure_ascii=False)
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair: valid in JSON, but not in UTF-8
        return dumps(value)
    return text


def _finite(value: Any) -> Any:
    """The value with None instead of NaN and infinity."""
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, dict):
        return {_finite(name): _finite(item) for name, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


def _as_text(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return dict(value) if isinstance(value, Mapping) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return json.dumps(value)  # CSV may have NaN
    return value if isinstance(value, str) else json_text(value)


def _unreadable(path: Path, found: str) -> InputError:
    return InputError(
        str(path),
        found=found,
        wanted="a readable file of records, or a folder of Parquet shards",
        remedy="Check the path, its permissions and the file.",
    )
