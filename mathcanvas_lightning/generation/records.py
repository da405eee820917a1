"""What records are, where they stand, and all that is wrong with them, found in one pass."""

import difflib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

from mathcanvas_lightning.data.formats import IMAGE_MARK
from mathcanvas_lightning.data.schema import UID_COLUMNS, ImageSegment, example_from_row
from mathcanvas_lightning.errors import DataError, InputError
from mathcanvas_lightning.generation.formats import format_of, read_records
from mathcanvas_lightning.generation.marks import MarkError, place_marks
from mathcanvas_lightning.generation.pictures import PictureError, locate_picture
from mathcanvas_lightning.generation.record_faults import FaultList

logger = logging.getLogger(__name__)

ERROR_SUFFIX = "_error"
"""Behind the response field's name: the field that says why there is no response."""
INTERLEAVED_COLUMNS = {"question_interleave", "question_images"}
NO_INDEX = "no usable index"
NUM_SHOWN_RECORDS = 100
"""So many records tell which fields there are."""


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

    @property
    def label(self) -> str:
        """What the ids of its records begin with."""
        path = Path(self.path)
        return self.name or (path.name if path.is_dir() else path.stem)

    @property
    def error_field(self) -> str:
        """Why a record has no answer."""
        return self.response_field + ERROR_SUFFIX

    @property
    def output_path(self) -> Path:
        """Where its records go with their answers."""
        path = Path(self.path)
        if self.output is not None:
            return Path(self.output)
        if path.is_dir():
            return path.with_name(f"{path.name}_answers.parquet")
        return path.with_name(f"{path.stem}_answers{path.suffix}")

    @property
    def image_base(self) -> str:
        """Where picture paths start."""
        path = Path(self.path)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKey:
    """What is kept of each record while a run decides which to ask."""

    label: str
    """Of its input."""
    uid: str
    position: int
    """In its input, from 0."""
    digest: str
    """See `Record`."""
    has_response: bool
    """Whether its response field holds something already."""


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
    for position, (_, record) in enumerate(_parsed(source, fields)):
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


def _parsed(source: RecordInput, fields: Fields) -> Iterator[tuple[Any, Record | RecordError]]:
    """What was read of each record, and what it is or why it is none."""
    label, image_base = source.label, source.image_base  # both look at the disk
    for position, values in enumerate(read_records(source.path)):
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
    if _is_interleaved(source, values):
        query, images = _question(values)
        if source.index_field not in values:
            index = next((values[n] for n in UID_COLUMNS if values.get(n) is not None), None)
    else:
        query = values.get(source.query_field, "")
        images = as_list(values.get(source.image_field))
    if isinstance(index, bool) or not isinstance(index, str | int) or not str(index).strip():
        raise RecordError(NO_INDEX, f"{source.index_field} is {index!r:.80}")
    return index, query if isinstance(query, str) else "", tuple(images)


def _is_interleaved(source: RecordInput, values: Mapping[str, Any]) -> bool:
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


def survey(
    inputs: Sequence[RecordInput],
    filters: Sequence[Callable[[Record], bool]] = (),
    fields: Fields = (),
) -> list[RecordKey]:
    """Goes through all records once, before anything is asked; no picture is opened.

    Args:
        inputs: All inputs of a run.
        filters: Of a record that one of them refuses only the index is checked.
        fields: Whose values enter the digests too.

    Returns:
        A key for each record that passes the filters, in order.

    Raises:
        InputError: If anything is wrong anywhere; it tells of all that is.
    """
    faults = FaultList()
    _check_names(inputs, faults)
    keys: list[RecordKey] = []
    for source in inputs:
        keys += _Pass(source=source, filters=filters, fields=fields, faults=faults).run()
    if not keys and not faults:
        names = ", ".join(source.path for source in inputs)
        faults.add("no record to ask", names, "no records, or none that the filters let pass")
    faults.raise_if_any()
    return keys


def _check_names(inputs: Sequence[RecordInput], faults: FaultList) -> None:
    """Finds inputs that would write over one another or themselves."""
    labels: dict[str, str] = {}
    outputs: dict[str, str] = {}
    paths = {os.path.realpath(source.path) for source in inputs}
    for source in inputs:
        output = os.path.realpath(source.output_path)
        if ":" in source.label:
            message = (
                f"{source.label!r} begins the ids of its records, and ends at a colon; set name"
            )
            faults.add("a name with a colon", source.path, message)
        if source.label in labels:
            message = f"{source.label!r} is {labels[source.label]} too; set name"
            faults.add("two inputs of one name", source.path, message)
        if output in outputs:
            message = f"{source.output_path} is that of {outputs[output]} too; set output"
            faults.add("two inputs with one output", source.path, message)
        if output in paths or any(str(parent) in paths for parent in Path(output).parents):
            message = f"{source.output_path} is an input, or inside one; set output"
            faults.add("output over an input", source.path, message)
        elif Path(output).is_dir():
            faults.add("output is a folder", source.path, f"{source.output_path}; name a file")
        else:
            with faults.taking_errors("unknown format"):
                format_of(source.output_path)
        labels.setdefault(source.label, source.path)
        outputs.setdefault(output, source.path)


@dataclass(slots=True, kw_only=True)
class _Pass:
    """One pass over one input."""

    source: RecordInput
    filters: Sequence[Callable[[Record], bool]]
    fields: Fields
    faults: FaultList
    positions: dict[str, int] = field(default_factory=dict)
    """Index, as text -> the record that has it."""
    num_objects: int = 0
    absent: Counter[str] = field(default_factory=Counter)
    """Name of a field that is needed -> records without it."""
    found: dict[str, None] = field(default_factory=dict)
    """Fields of the first records."""

    def run(self) -> Iterator[RecordKey]:
        label = self.source.label
        with self.faults.taking_errors("unreadable file"):
            for position, (values, record) in enumerate(_parsed(self.source, self.fields)):
                if isinstance(values, Mapping):
                    self.num_objects += 1
                    if position < NUM_SHOWN_RECORDS:
                        self.found |= dict.fromkeys(values)
                place = f"{self.source.path}, record {position}"
                if isinstance(record, RecordError):
                    self._add_error(record, values, place)
                elif self._is_wanted(record, place):
                    self._check(record, place)
                    yield self._key(record, label)
            self._check_fields()

    def _add_error(self, error: RecordError, values: Any, place: str) -> None:
        absent = []
        if isinstance(values, Mapping) and not _is_interleaved(self.source, values):
            names = (self.source.index_field, self.source.query_field)
            absent = [name for name in names if name not in values]
        for name in absent:
            self._add_absent(name, place)
        if error.kind != NO_INDEX or self.source.index_field not in absent:
            self.faults.add(error.kind, place, str(error))

    def _is_wanted(self, record: Record, place: str) -> bool:
        first = self.positions.setdefault(str(record.index), record.position)
        if first != record.position:
            message = f"{record.index!r} is the index of record {first} too"
            self.faults.add("an index twice", place, message)
        return all(accepts(record) for accepts in self.filters)

    def _check(self, record: Record, place: str) -> None:
        place = f"{place} ({record.uid})"
        name = self.source.query_field
        if name not in record.values and not record.query:
            self._add_absent(name, place)
        elif not record.query.strip():
            self.faults.add("no query", place, f"{name} is {record.values.get(name)!r:.80}")
        for reference in record.images:
            try:
                locate_picture(reference, record.image_base)
            except PictureError as error:
                self.faults.add(error.kind, place, str(error))
        try:
            place_marks(record.query, len(record.images))
        except MarkError as error:
            self.faults.add("a mark without picture", place, str(error))

    def _key(self, record: Record, label: str) -> RecordKey:
        return RecordKey(
            label=label,
            uid=record.uid,
            position=record.position,
            digest=record.digest,
            has_response=has_response(self.source, record.values),
        )

    def _add_absent(self, name: str, place: str) -> None:
        self.absent[name] += 1
        self.faults.add(self._no_field(name), place, "it is absent")

    def _check_fields(self) -> None:
        """Tells of a field that no record has in one line."""
        name = self.source.image_field
        is_absent = name not in self.found and not self.found.keys() >= INTERLEAVED_COLUMNS
        if is_absent and self.source.has_images and self.num_objects:
            self._add_wrong_name(name)
        elif is_absent and (close := self._like(name)):
            text = "%s: no record has the field %r, so all are texts alone; is it %r?"
            logger.warning(text, self.source.path, name, close)
        for name, count in self.absent.items():
            if count == self.num_objects:
                self.faults.drop(self._no_field(name))
                self._add_wrong_name(name)

    def _add_wrong_name(self, name: str) -> None:
        message = f"no record has the field {name!r}; they have {', '.join(self.found)}"
        message += f"; did you mean {close!r}?" if (close := self._like(name)) else ""
        self.faults.add("wrong name of a field", self.source.path, message)

    def _like(self, name: str) -> str | None:
        """A field whose name is like another."""
        return next(iter(difflib.get_close_matches(name, self.found, n=1)), None)

    def _no_field(self, name: str) -> str:
        return f"no {name!r} in {self.source.path}"
