"""What records are, and how they are read."""

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.data.rows.readers import IMAGE_MARK
from mathcanvas_lightning.data.rows.schema import UID_COLUMNS, ImageSegment, example_from_row
from mathcanvas_lightning.errors import DataError, InputError
from mathcanvas_lightning.records.files import FORMATS, read_records

ERROR_SUFFIX = "_error"
"""Behind the response field's name: the field that says why there is no response."""
INTERLEAVED_COLUMNS = {"question_interleave", "question_images"}
NO_INDEX = "no usable index"


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class RecordInput:
    """A file of records, what its fields are called, and where it goes with its answers."""

    path: str
    """JSON array, JSON lines, CSV with a header, Parquet, or a folder of Parquet shards."""
    output: str | None = None
    """A file of any of these formats; by default `<name>_answers` beside the input."""
    name: str | None = None
    """Begins the ids of its records; by default the file's name without suffix."""
    image_base_path: str | None = None
    """Folder or URL that picture paths start from; by default the input's folder."""
    index_field: str = "sample_index"
    """A text or integer, different in each record."""
    query_field: str = "query_cot"
    """The question."""
    image_field: str = "image"
    """A picture or a list of them; absent, null or empty for questions of text alone."""
    response_field: str = "model_answer"
    """Where the answer goes; a record that has one already is not asked."""
    has_images: bool = False
    """Whether it is a fault if no record has the image field."""
    reader: Callable[[str], Iterable[Any]] | None = None
    """Gives the records of the path, where that is anything else (a database, ...): a function, or
    an object that can be called, which is gone through several times. In YAML: its import path, or
    class_path and init_args."""

    @property
    def label(self) -> str:
        """What the ids of its records begin with."""
        path = local_path(self.path)
        return self.name or (path.name if path.is_dir() else path.stem)

    @property
    def error_field(self) -> str:
        """Why a record has no answer."""
        return self.response_field + ERROR_SUFFIX

    @property
    def output_path(self) -> Path:
        """Where its records go with their answers."""
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
        """Where picture paths start."""
        path = local_path(self.path)
        return self.image_base_path or str(path if path.is_dir() else path.parent)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A record as it was read; not yet checked but for its index."""

    uid: str
    """Its input's label and its index."""
    position: int
    """In its input, from 0."""
    index: str | int
    query: str
    """The question; "" where there is none."""
    images: tuple[Any, ...]
    """References to its pictures as they stand; `read_pictures` says what they may be."""
    image_base: str = "."
    """Folder or URL that paths among them start from."""
    values: Mapping[str, Any]
    """All its fields."""
    digest: str
    """A short hash of what is asked: another one where the query, a reference, or a field that the
    prompt reads has changed."""


class RecordError(Exception):
    """A record that can't be used.

    Args:
        kind: What kind of fault it is, in a few words.
        message: What was found.
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


Fields = Collection[str] | None
"""Fields that a prompt reads besides query and pictures; None for any."""


def iter_records(source: RecordInput, fields: Fields = ()) -> Iterator[Record]:
    """Reads the records of an input, one at a time.

    Args:
        source: The input.
        fields: Whose values enter the digest too.

    Yields:
        Each record, with whatever faults only `survey` looks for.

    Raises:
        InputError: At the first that is no object or has no usable index, or where the file is
            malformed.
    """
    for position, (_, record) in enumerate(parsed_records(source, fields)):
        if isinstance(record, RecordError):
            raise InputError(
                f"{source.path}, record {position}",
                found=f"{record.kind} ({record})",
                wanted="an object with an index of its own",
                remedy="Mend the record.",
            )
        yield record


def has_response(source: RecordInput, values: Mapping[str, Any]) -> bool:
    """Whether a record has a response already; 0 and false are some."""
    return bool(as_list(values.get(source.response_field)))


def parsed_records(
    source: RecordInput, fields: Fields
) -> Iterator[tuple[Any, Record | RecordError]]:
    """Reads the records of an input, unusable ones too.

    Args:
        source: The input.
        fields: Whose values enter the digest too.

    Yields:
        What was read, and the record, or why it is none.

    Raises:
        InputError: Where the file is malformed.
    """
    label, image_base = source.label, source.image_base  # both look at the disk
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
                values=values,
                digest=_digest(query, images, _read_by_prompt(source, values, fields)),
            )
            yield values, record


def _contents(source: RecordInput, values: Any) -> tuple[str | int, str, tuple[Any, ...]]:
    """Index, query and pictures of a record."""
    if not isinstance(values, Mapping):
        raise RecordError("no object", f"{values!r:.80}")
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


def is_interleaved(source: RecordInput, values: Mapping[str, Any]) -> bool:
    """Whether a record is a row of an interleaved shard, whose question is put together."""
    return source.query_field not in values and values.keys() >= INTERLEAVED_COLUMNS


def _question(row: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    """The question of a row of an interleaved shard, with marks for its pictures."""
    rest = {"answer": None, "solution_interleave": None, "solution_images": None}
    try:
        segments = example_from_row({**row, **rest}, place="a row").question
    except DataError as error:
        raise RecordError("broken interleave", f"{error.found}; wanted {error.wanted}") from None
    pieces = [IMAGE_MARK if isinstance(one, ImageSegment) else one.text for one in segments]
    return "\n".join(pieces), [one.data for one in segments if isinstance(one, ImageSegment)]


def _read_by_prompt(source: RecordInput, values: Mapping[str, Any], fields: Fields) -> list[Any]:
    """What else a prompt may say, as texts."""
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
    """A field that may hold one thing, several or none, as a list.

    Args:
        value: Null and blank texts are nothing; the text of a JSON array, as in a cell of CSV,
            is that array.

    Returns:
        What there is.
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
