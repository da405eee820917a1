"""The interleaved example, and its encoding as a row of a shard.

A row has the columns `id`, `answer`, `question_interleave`, `solution_interleave`,
`question_images`, `solution_images`, and further scalar columns of its source.
An interleave is a JSON string or a list of structs; an image is binary, or a struct with
`bytes` (Hugging Face writes `bytes` and `path`). The reader accepts all of these.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.common.html_page import Piece
from mathcanvas_lightning.data.images.shown import shown_image
from mathcanvas_lightning.data.rows.left_out import row_boundary
from mathcanvas_lightning.errors import DataError

Scalar = str | int | float | bool | None
InterleaveEncoding = Literal["json", "struct"]
SECTIONS = ("question", "solution")
CORE_COLUMNS = (
    "id",
    "answer",
    "question_interleave",
    "solution_interleave",
    "question_images",
    "solution_images",
)
IMAGE_COLUMNS = CORE_COLUMNS[-2:]
"""Columns of the encoded images of the question, and of the solution."""
UID_COLUMNS = ("id", "task_id", "uid")


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSegment:
    """A text between two images."""

    text: str
    """The text; not empty, without white space at its ends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSegment:
    """An encoded image."""

    data: bytes
    """Bytes of the source file, unchanged."""
    path: str | None = None
    """Path in the source, relative to the image folder of the source."""

    def __repr__(self) -> str:
        return short_repr(self, f"{len(self.data):,} bytes", path=self.path)

    def _repr_html_(self) -> str:
        return view("image", {"": [shown_image(self.data, self.path)]})


Segment = TextSegment | ImageSegment


@dataclass(frozen=True, slots=True, kw_only=True)
class InterleavedExample:
    """A question and its solution; both are texts and images in reading order."""

    uid: str
    """Id, unique within the data set."""
    question: tuple[Segment, ...]
    """Input of the model."""
    solution: tuple[Segment, ...]
    """Wanted output of the model; empty in rows that are only for prediction."""
    answer: str
    """The final answer, without the reasoning."""
    extras: Mapping[str, Scalar] = field(default_factory=dict)
    """Further columns of the source: name -> value."""

    @property
    def images(self) -> Iterator[ImageSegment]:
        """All images; those of the question come first."""
        segments = (*self.question, *self.solution)
        return (segment for segment in segments if isinstance(segment, ImageSegment))

    def __repr__(self) -> str:
        texts, images = len(self.question + self.solution), len(list(self.images))
        facts = (counted(texts - images, "text"), counted(images, "image"))
        return short_repr(self, repr(self.uid), *facts, answer=self.answer)

    def _repr_html_(self) -> str:
        sections = {name: [*map(shown_segment, getattr(self, name))] for name in SECTIONS}
        facts = {"answer": self.answer, **self.extras}
        return view(self.uid, sections, facts=facts)


def shown_segment(segment: Segment) -> Piece:
    """A text, or a picture of an image, for pages and notebooks."""
    if isinstance(segment, ImageSegment):
        return shown_image(segment.data, segment.path)
    return segment.text


def row_from_example(example: InterleavedExample, encoding: InterleaveEncoding) -> dict[str, Any]:
    """Encodes an example as the columns of a row.

    Args:
        example: The example.
        encoding: "json" for JSON-string interleaves, "struct" for lists of structs.

    Returns:
        Column name -> Python value; an extra column never replaces a core column.
    """
    row: dict[str, Any] = {"id": example.uid, "answer": example.answer}
    for section in SECTIONS:
        segments = getattr(example, section)
        row[f"{section}_interleave"] = (
            json.dumps(_items(segments), ensure_ascii=False)
            if encoding == "json"
            else _numbered(_items(segments))
        )
    for section in SECTIONS:
        row[f"{section}_images"] = [
            {"bytes": segment.data, "path": segment.path}
            for segment in getattr(example, section)
            if isinstance(segment, ImageSegment)
        ]
    return dict(example.extras) | row


def example_from_row(row: Mapping[str, Any], *, place: str) -> InterleavedExample:
    """Decodes a row in any of the encodings.

    Args:
        row: Column name -> Python value, as `pyarrow.Table.to_pylist` returns it.
        place: Location of the row for errors; also its uid if it has no id column.

    Returns:
        The example; texts are stripped, and empty texts are left out.

    Raises:
        DataError: If a column is missing or an interleave doesn't match its images.
    """
    with row_boundary(place):
        return _example(row, place)


def find_uid(row: Mapping[str, Any]) -> str | None:
    """The id of a row; None if it has none."""
    column = _uid_column(row)
    return None if column is None else str(row[column])


def _uid_column(row: Mapping[str, Any]) -> str | None:
    """The first of `UID_COLUMNS` with a value; NaN is none."""
    return next(
        (n for n in UID_COLUMNS if row.get(n) is not None and row[n] == row[n]),
        None,
    )


def _example(row: Mapping[str, Any], place: str) -> InterleavedExample:
    uid = find_uid(row) or place
    missing = [name for name in CORE_COLUMNS[1:] if name not in row]
    if missing:
        raise _row_error(place, uid, f"the columns {sorted(row)}", f"{missing} too")
    sections = {section: _read_section(row, section, place, uid) for section in SECTIONS}
    extras = {
        name: value
        for name, value in row.items()
        if name not in (*CORE_COLUMNS, _uid_column(row))
        and (value is None or isinstance(value, str | int | float | bool))
    }
    answer = _answer(row["answer"], place, uid)
    return InterleavedExample(uid=uid, answer=answer, extras=extras, **sections)


def _answer(value: Any, place: str, uid: str) -> str:
    """An answer as text; the parts of a list are joined."""
    if value is None or value != value:  # NaN: pandas writes it for a missing value
        return ""
    if isinstance(value, list):
        return ", ".join(filter(None, (_answer(part, place, uid) for part in value)))
    if isinstance(value, Mapping | bytes):
        raise _row_error(f"{place}, answer", uid, f"{value!r:.80}", "a text or a number")
    return str(value)


def _items(segments: Sequence[Segment]) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    num_images = 0
    for segment in segments:
        if isinstance(segment, TextSegment):
            items.append({"type": "text", "content": segment.text})
        else:
            items.append({"type": "image", "content": segment.path, "index": num_images})
            num_images += 1
    return items


def _numbered(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    # The public trainer reads rows with pandas, which converts integer columns with nulls to
    # floats; these can't be list indexes. So texts are numbered too.
    num_texts = 0
    numbered = []
    for item in items:
        if item["type"] == "text":
            item = item | {"index": num_texts}
            num_texts += 1
        numbered.append(item)
    return numbered


def _read_section(
    row: Mapping[str, Any], section: str, place: str, uid: str
) -> tuple[Segment, ...]:
    images = row[f"{section}_images"]
    if images is None:
        images = ()
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        where = f"{place}, {section}_images"
        raise _row_error(where, uid, f"{type(images).__name__}", "a list of images")
    column = f"{section}_interleave"
    items = _decode_interleave(row[column], f"{place}, {column}", uid)
    segments: list[Segment] = []
    used: list[int] = []
    for number, item in enumerate(items):
        where = f"{place}, {column}[{number}]"
        kind = item.get("type") if isinstance(item, Mapping) else None
        if kind == "text":
            text = item.get("content")
            if text is not None and not isinstance(text, str):
                raise _row_error(where, uid, f"content {text!r}", "a string")
            if text and text.strip():
                segments.append(TextSegment(text=text.strip()))
        elif kind == "image":
            index = _image_index(item.get("index"), len(images), where, uid)
            used.append(index)
            segments.append(_read_image(images[index], item.get("content"), where, uid))
        else:
            raise _row_error(where, uid, f"{item!r:.80}", "an item of type text or image")
    if sorted(used) != list(range(len(images))):
        raise _row_error(
            f"{place}, {column}", uid, f"image indexes {used}", f"each of {len(images)} images once"
        )
    return tuple(segments)


def _decode_interleave(value: Any, where: str, uid: str) -> Sequence[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise _row_error(
                where, uid, f"text that isn't JSON ({error})", "a JSON array"
            ) from None
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _row_error(where, uid, f"{value!r:.80}", "an array of items")
    return value


def _image_index(value: Any, num_images: int, where: str, uid: str) -> int:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value < num_images or value != int(value):  # false for NaN
        raise _row_error(where, uid, f"index {value!r}", f"an index below {num_images} (images)")
    return int(value)


def _read_image(value: Any, content: Any, where: str, uid: str) -> ImageSegment:
    path = content if isinstance(content, str) else None
    if isinstance(value, Mapping):
        path = path or value.get("path")
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise _row_error(where, uid, f"an image of type {type(value).__name__}", "its bytes")
    return ImageSegment(data=value, path=path)


def _row_error(where: str, uid: str, found: str, wanted: str) -> DataError:
    return DataError(
        f"{where} (uid {uid})",
        found=found,
        wanted=wanted,
        remedy="Convert the source again, or remove this row.",
    )
