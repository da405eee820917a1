"""Records of questions: input settings, field names, reading."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.conversion.columns import Columns, find_columns
from mathcanvas_lightning.conversion.rejection import RejectError
from mathcanvas_lightning.data.rows.readers import IMAGE_MARK
from mathcanvas_lightning.data.rows.schema import UID_COLUMNS, ImageSegment, example_from_row
from mathcanvas_lightning.errors import DataError, InputError
from mathcanvas_lightning.records.files import FORMATS, read_records
from mathcanvas_lightning.records.hosts import FetchSettings
from mathcanvas_lightning.records.marks import escape_marks

ERROR_SUFFIX = "_error"
"""Suffix of the response field's name, for the field with the reason of a missing response."""
INTERLEAVED_COLUMNS = {"question_interleave", "question_images"}
NO_INDEX = "no usable index"
UNREADABLE_COLUMNS = "unreadable columns"


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class RecordInput:
    """A file of records, the names of its fields, and its output file."""

    path: str
    """JSON array, JSON lines, CSV with a header, Parquet, or a folder of Parquet shards."""
    output: str | None = None
    """Output file in one of these formats; default: `<name>_answers` beside the input."""
    name: str | None = None
    """Prefix of the record ids; default: the file name without suffix."""
    image_base_path: str | None = None
    """Folder or URL for relative picture paths; default: the folder of the input."""
    allow_any_path: bool = False
    """Whether records may name pictures outside image_base_path. By default only files below it
    (links are followed) and http(s) URLs are read, because others may not be meant for the
    model."""
    fetching: FetchSettings = field(default_factory=FetchSettings)
    """Time limits and parallel requests for pictures at URLs."""
    preset: str | None = None
    """Public data set whose fields are known, such as mathvista, or a YAML file of columns (see
    tools/README.md), instead of index_field, query_field and image_field."""
    index_field: str = "sample_index"
    """Field with a unique text or integer."""
    query_field: str = "query_cot"
    """Field with the question."""
    image_field: str = "image"
    """Field with a picture or a list of pictures; it may be missing, null or empty."""
    response_field: str = "model_answer"
    """Field for the answer; a record that already has one is not asked."""
    drawings_field: str = "solution_images"
    """Field with the true drawings of the solution, a picture per step, for `drawings: reference`
    and `shuffled` of a backend; not needed for shards, whose solutions have their drawings in
    order."""
    has_images: bool = False
    """Whether it is an error if no record has the image field."""
    reader: Callable[[str], Iterable[Any]] | None = None
    """Function (or callable object) that returns the records of `path`, for any other source such
    as a database. It is called several times. In YAML: its import path, or class_path and
    init_args."""

    @property
    def label(self) -> str:
        """Prefix of the record ids."""
        path = local_path(self.path)
        return self.name or (path.name if path.is_dir() else path.stem)

    @property
    def error_field(self) -> str:
        """Field with the reason why a record has no answer."""
        return self.response_field + ERROR_SUFFIX

    @property
    def output_path(self) -> Path:
        """Path of the output file."""
        path = local_path(self.path)
        if self.output is not None:
            return local_path(self.output)
        if path.is_dir():
            return path.with_name(f"{path.name}_answers.parquet")
        is_known = self.reader is None or path.suffix.lower() in FORMATS
        suffix = path.suffix if is_known else ".jsonl"
        return path.with_name(f"{path.stem}_answers{suffix}")

    @property
    def image_base(self) -> str:
        """Folder or URL for relative picture paths."""
        path = local_path(self.path)
        return self.image_base_path or str(path if path.is_dir() else path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record from an input file; only its index has been checked."""

    uid: str
    """Id of the record: label of the input and index."""
    position: int
    """Position in the input, from 0."""
    index: str | int
    query: str
    """Question; "" without one."""
    images: tuple[Any, ...]
    """Unchecked references to pictures; `read_pictures` describes their forms."""
    image_base: str = "."
    """Folder or URL for relative picture paths."""
    allow_any_path: bool = False
    """Whether pictures may lie outside `image_base`."""
    values: Mapping[str, Any]
    """All fields of the record."""
    digest: str
    """Short hash of the query, the references, and the other fields that the prompt uses."""


class RecordError(Exception):
    """A record is unusable.

    Args:
        kind: Kind of the fault, in a few words.
        message: Description of the fault.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Fields = Collection[str] | None
"""Fields that a prompt uses besides query and pictures; None means all fields."""


def iter_records(
    source: RecordInput, fields: Fields = (), *, skipped: Collection[int] = ()
) -> Iterator[Record]:
    """Reads the records of an input, one at a time.

    Args:
        source: The input.
        fields: Fields whose values are part of the digest.
        skipped: Positions of records that are left out, see `survey`.

    Yields:
        Each record; it may have faults that only `survey` checks.

    Raises:
        InputError: At the first record that is not an object or has no valid index, or if the file
            is malformed.
    """
    for position, (_, record) in enumerate(parsed_records(source, fields)):
        if position in skipped:
            continue
        if isinstance(record, RecordError):
            raise unusable_record(source, position, record)
        yield record


def unusable_record(source: RecordInput, position: int, error: RecordError) -> InputError:
    """The error for a record that stops a run.

    Args:
        source: The input.
        position: Position of the record, from 0.
        error: Why it is unusable.
    """
    return InputError(
        f"{source.path}, record {position}",
        found=f"{error.kind} ({error})",
        wanted="an object with a unique index",
        remedy="Correct the record, or set on_fault: skip.",
    )


def record_identity(digest: str, stamp: int | None) -> str:
    """Identity of a record's content.

    Args:
        digest: Digest of the record, which has the paths of its pictures.
        stamp: Stamp of its picture files, see `picture_stamp`; None if it has none, or if unknown.
    """
    return digest if stamp is None else f"{digest}@{stamp}"


def has_response(source: RecordInput, values: Mapping[str, Any]) -> bool:
    """Whether a record already has a response; 0, false and the text "[]" count as responses."""
    value = values.get(source.response_field)
    if isinstance(value, str):
        return bool(value.strip())
    is_number = value is not None and value == value  # pandas writes NaN for a missing text
    return len(value) > 0 if isinstance(value, list | tuple | Mapping) else is_number


def parsed_records(
    source: RecordInput, fields: Fields
) -> Iterator[tuple[Any, Record | RecordError]]:
    """Reads the records of an input, including unusable ones.

    Args:
        source: The input.
        fields: Fields whose values are part of the digest.

    Yields:
        The value from the file, and the record or the reason why it is unusable.

    Raises:
        InputError: If the file is malformed.
    """
    label, image_base = source.label, source.image_base  # computed once: both access the disk
    for position, values in enumerate((source.reader or read_records)(source.path)):
        try:
            index, query, images = _contents(source, values)
        except RecordError as error:
            yield values, error
        else:
            record = Record(
                uid=f"{label}:{index}",
                position=position,
                index=index,
                query=query,
                images=images,
                image_base=image_base,
                allow_any_path=source.allow_any_path,
                values=values,
                digest=_digest(query, images, _read_by_prompt(source, values, fields)),
            )
            yield values, record


def _contents(source: RecordInput, values: Any) -> tuple[str | int, str, tuple[Any, ...]]:
    """Extracts index, query and picture references."""
    if not isinstance(values, Mapping):
        raise RecordError("not an object", f"{values!r:.80}")
    if source.preset is not None:
        return by_columns(source.preset, values, source.image_base)
    index = values.get(source.index_field)
    query: Any
    if is_interleaved(source, values):
        query, images = _question(values)
        if source.index_field not in values:
            index = next((values[n] for n in UID_COLUMNS if values.get(n) is not None), None)
    else:
        query = values.get(source.query_field, "")
        images = as_list(values.get(source.image_field))
    if isinstance(index, bool) or not isinstance(index, str | int) or not str(index).strip():
        raise RecordError(NO_INDEX, f"{source.index_field} is {index!r:.80}")
    return index, query if isinstance(query, str) else "", tuple(images)


def by_columns(
    preset: str, values: Mapping[str, Any], root: str
) -> tuple[str, str, tuple[bytes | str, ...]]:
    """Index, query and picture references of a record by the columns of a preset.

    Raises:
        RecordError: If a column is absent or can't be read.
    """
    columns = columns_of(preset)
    try:
        index, parts = columns.identify(values), columns.question(values, root)
    except RejectError as error:
        raise RecordError(UNREADABLE_COLUMNS, error.message) from None
    pieces = [escape_marks(part.strip()) if isinstance(part, str) else IMAGE_MARK for part in parts]
    pictures = [part for part in parts if not isinstance(part, str)]
    images = tuple(one.path if one.data is None else one.data for one in pictures)
    return index, "\n".join(filter(None, pieces)), images


@cache
def columns_of(preset: str) -> Columns:
    """The columns of a preset, or of a YAML file.

    Raises:
        ConfigError: If there is no such preset or file.
    """
    return Columns(find_columns(preset))


def is_interleaved(source: RecordInput, values: Mapping[str, Any]) -> bool:
    """Whether a record is a row of an interleaved shard, with texts and pictures in segments."""
    return source.query_field not in values and values.keys() >= INTERLEAVED_COLUMNS


def _question(row: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    """Converts the question of an interleaved row to a text with picture marks."""
    rest = {"answer": None, "solution_interleave": None, "solution_images": None}
    try:
        segments = example_from_row({**row, **rest}, place="a row").question
    except DataError as error:
        raise RecordError("broken interleave", f"{error.found}; wanted {error.wanted}") from None
    pieces = [
        IMAGE_MARK if isinstance(one, ImageSegment) else escape_marks(one.text) for one in segments
    ]
    return "\n".join(pieces), [one.data for one in segments if isinstance(one, ImageSegment)]


def _read_by_prompt(source: RecordInput, values: Mapping[str, Any], fields: Fields) -> list[Any]:
    """Other fields that the prompt may use, as texts for the digest."""
    if fields is None:
        own = {source.index_field, source.query_field, source.image_field}
        fields = values.keys() - own - {source.response_field, source.error_field}
    return [f"{name}={values[name]!r}" for name in sorted(fields) if name in values]


def _digest(query: str, images: Sequence[Any], others: Sequence[str]) -> str:
    digest = blake2b(digest_size=8)
    for piece in (query, *images, *others):
        if isinstance(piece, Mapping):
            piece = piece.get("path") if piece.get("bytes") is None else piece["bytes"]
        data = piece if isinstance(piece, bytes) else str(piece).encode(errors="surrogatepass")
        digest.update(len(data).to_bytes(8))
        digest.update(data)
    return digest.hexdigest()


def as_list(value: Any) -> list[Any]:
    """Converts a field with one, several or no values to a list.

    Args:
        value: Null and blank texts give an empty list. A text that is a JSON array (as in a CSV
            cell) gives that array.

    Returns:
        The values.
    """
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return [value]
        return parsed if isinstance(parsed, list) else [value]
    return list(value) if isinstance(value, list | tuple) else [value]
