"""Answer sheets: what the page shows of a record, with its pictures loaded."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.html_page import Notice, PagePicture, Piece
from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, UID_COLUMNS
from mathcanvas_lightning.evaluation.answered import Answered
from mathcanvas_lightning.evaluation.verdicts import ScoredResponse
from mathcanvas_lightning.generation.run.answer_folders import RESULT_FILE, folder_name
from mathcanvas_lightning.records.access import Access
from mathcanvas_lightning.records.marks import MarkError, place_marks
from mathcanvas_lightning.records.pictures import PictureError, load_pictures
from mathcanvas_lightning.records.record import (
    ERROR_SUFFIX,
    INTERLEAVED_COLUMNS,
    RecordInput,
    as_list,
)

SOLUTION_COLUMNS = frozenset({"solution_interleave", "solution_images"})
MAX_SIDE_PX = 1024
"""Larger pictures are scaled down to this width or height."""
MAX_KEPT_BYTES = 256 * 2**10
"""Small pictures with no more bytes than this are not encoded again."""
SHOWN_FORMATS = ("PNG", "JPEG")
MAX_FACT_CHARACTERS = 120
"""Longer fields of records are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetResponse:
    """One response to a question."""

    steps: tuple[Piece, ...]
    """Texts and drawings in order."""
    text: str
    """The response in the record if its text differs from that of the steps, else empty."""
    failure: str
    """Why there is no response; empty if there is one."""
    scored: ScoredResponse | None
    """The verdicts; None for responses without a score."""

    @property
    def verdict(self) -> str:
        """The verdict of the whole response, `failed` or `unscored`."""
        if self.scored is not None:
            return self.scored.verdict
        return "failed" if self.failure else "unscored"

    @property
    def chain(self) -> str:
        """The verdict on the steps of an answer to a puzzle as a sentence; empty without one."""
        found = None if self.scored is None else self.scored.chain
        if found is None:
            return ""
        drawings = ", ".join("right" if is_right else "wrong" for is_right in found.drawings)
        return f"Drawings, read back: {drawings}. First error: {found.first_error or 'none'}."

    @property
    def part_rows(self) -> dict[str, dict[str, str]]:
        """Table of the verdicts: a row for each part of the question."""
        parts = () if self.scored is None else self.scored.parts
        return {
            f"part {number}" if len(parts) > 1 else "": {
                "reference": part.expected,
                "extracted": part.extracted or "(none)",
                "verdict": part.verdict,
                "found by": part.how,
            }
            for number, part in enumerate(parts, start=1)
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What the page shows of a record."""

    name: str
    facts: Mapping[str, str]
    """Short fields other than question, answers and reference."""
    question: tuple[Piece, ...]
    reference: tuple[str, ...]
    """The reference answer of each part."""
    solution: tuple[Piece, ...]
    """The reference solution; empty without one."""
    responses: tuple[SheetResponse, ...]

    @property
    def verdicts(self) -> list[str]:
        """The different verdicts of the responses, sorted."""
        return sorted({response.verdict for response in self.responses})

    @property
    def has_unscored(self) -> bool:
        """Whether a response has no score."""
        return any(response.scored is None for response in self.responses)

    @property
    def pieces(self) -> Iterator[Piece]:
        """All texts, pictures and notices."""
        yield from self.question
        for response in self.responses:
            yield from response.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetSource:
    """Makes sheets from records and the folders of their answers."""

    records: RecordInput
    """The file and the names of its fields."""
    answer_field: str
    """Name of the field with the reference answer."""
    solution_field: str
    """Name of the field with the reference solution, of records that are not interleaved."""
    folders: Path | None
    """Folder that `ReasoningFolders` wrote, if there is one."""

    def sheet(
        self,
        record: Mapping[str, Any],
        answered: Answered,
        scored: Sequence[ScoredResponse],
    ) -> Sheet:
        """Makes the sheet of a record; a notice replaces each part that can't be shown.

        Args:
            record: The record as read from the file.
            answered: The fields of the same record that scoring uses.
            scored: The verdicts on each response; empty for records without scores.

        Returns:
            The sheet.
        """
        name = self._name(record, answered.index)
        failure = str(record.get(self.records.response_field + ERROR_SUFFIX) or "no response")
        responses = zip_longest(answered.responses, scored)
        return Sheet(
            name=name,
            facts=self._facts(record),
            question=self._question(record),
            reference=answered.expected,
            solution=self._solution(record),
            responses=tuple(
                self._response(text, found, failure, self._folder(name, number))
                for number, (text, found) in enumerate(responses, start=1)
            ),
        )

    def _name(self, record: Mapping[str, Any], position: int) -> str:
        names = (self.records.index_field, *UID_COLUMNS)
        found = (str(record[name]) for name in names if record.get(name) is not None)
        return next(found, f"record {position}")

    def _facts(self, record: Mapping[str, Any]) -> dict[str, str]:
        source = self.records
        shown_elsewhere = {
            *(source.index_field, source.query_field, source.image_field, self.answer_field),
            *(source.response_field, source.response_field + ERROR_SUFFIX, self.solution_field),
            *(*CORE_COLUMNS, *UID_COLUMNS),
        }
        facts = {
            name: value
            if isinstance(value, str)
            else json.dumps(value, ensure_ascii=False, default=str)
            for name, value in record.items()
            if name not in shown_elsewhere and value not in (None, "", [], {})
        }
        return {name: text for name, text in facts.items() if len(text) <= MAX_FACT_CHARACTERS}

    def _question(self, record: Mapping[str, Any]) -> tuple[Piece, ...]:
        base, access = self.records.image_base, _access(self.records)
        if self.records.query_field not in record and record.keys() >= INTERLEAVED_COLUMNS:
            return tuple(_interleaved(record, "question", base, access))
        query = record.get(self.records.query_field)
        if not isinstance(query, str) or not query.strip():
            query = ""
        images = as_list(record.get(self.records.image_field))
        notices: list[Piece] = [] if query else [Notice("no question")]
        try:
            pieces = place_marks(query, len(images))
        except MarkError as error:
            pieces = [*range(len(images)), query]
            notices.append(Notice(str(error)))
        shown = (
            piece
            if isinstance(piece, str)
            else _picture(images[piece], base, _number(piece), access)
            for piece in pieces
        )
        return (*shown, *notices)

    def _solution(self, record: Mapping[str, Any]) -> tuple[Piece, ...]:
        if self.records.query_field in record or not record.keys() >= SOLUTION_COLUMNS:
            text = record.get(self.solution_field)
            return (text,) if isinstance(text, str) and text.strip() else ()
        base = self.records.image_base
        return tuple(_interleaved(record, "solution", base, _access(self.records)))

    def _folder(self, name: str, number: int) -> Path | None:
        return None if self.folders is None else self.folders / folder_name(name, number)

    def _response(
        self, text: str | None, scored: ScoredResponse | None, failure: str, folder: Path | None
    ) -> SheetResponse:
        if text is None:
            return SheetResponse(steps=(), text="", failure=failure, scored=scored)
        steps: tuple[Piece, ...] = (text,)
        if folder is not None:
            found = _steps(folder)
            has_steps = any(not isinstance(step, Notice) for step in found)
            steps = (*found,) if has_steps else (*found, text)
        shown = "".join(step for step in steps if isinstance(step, str))
        is_same = _unspaced(shown) == _unspaced(text)
        return SheetResponse(steps=steps, text="" if is_same else text, failure="", scored=scored)


def _access(source: RecordInput) -> Access:
    return "any" if source.allow_any_path else "web"


def _interleaved(
    record: Mapping[str, Any], part: str, base: str, access: Access
) -> Iterator[Piece]:
    """Yields question or solution of a row of an interleaved shard, with notices for bad items."""
    images = as_list(record[f"{part}_images"])
    for item in as_list(record[f"{part}_interleave"]):
        match item:
            case {"type": "text", "content": str() | None as text}:
                yield text or ""
            case {"type": "image", "index": int() | float() as index} if 0 <= index < len(images):
                yield _picture(images[int(index)], base, _number(int(index)), access)
            case _:
                yield Notice(f"neither a text nor one of {len(images)} images: {item!r:.80}")


def _steps(folder: Path) -> list[Piece]:
    """Reads the steps of an answer from `reasoning_result.json`."""
    if not folder.is_dir():
        return [Notice(f"no folder {folder.name} with the steps: only the text is shown")]
    try:
        result = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
        steps = result["reasoning_steps"]
        if not isinstance(steps, list):
            raise TypeError(f"reasoning_steps is {steps!r:.80}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        return [Notice(f"{folder.name}/{RESULT_FILE} can't be used: {reason}")]
    return [_step(step, folder) for step in steps]


def _step(step: Any, folder: Path) -> Piece:
    match step:
        case {"type": "text", "content": str(text)}:
            return text
        case {"type": "image", "content": str(path)}:
            return _picture(path, str(folder), path, "folder")
        case _:
            return Notice(f"neither a text nor a drawing: {step!r:.80}")


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _number(index: int) -> str:
    return f"picture {index + 1}"


def _picture(reference: Any, base: str, name: str, access: Access) -> PagePicture | Notice:
    try:
        (picture,) = load_pictures([reference], base, place=name, access=access)
        return thumbnail(picture.data, name)
    except (PictureError, ImageError) as error:
        return Notice(str(error))


def thumbnail(data: bytes, name: str) -> PagePicture:
    """Makes a picture small enough for a page.

    Args:
        data: An encoded image file.
        name: First part of the caption.

    Returns:
        The file itself if it is small and a browser can show it; otherwise a copy with at most
        `MAX_SIDE_PX` pixels a side, as PNG or JPEG, whichever is smaller.

    Raises:
        ImageError: If the file can't be decoded.
    """
    info = check_image(data, ImageLimits())
    caption = f"{name}, {info.width_px}x{info.height_px}"
    is_small = max(info.width_px, info.height_px) <= MAX_SIDE_PX and len(data) <= MAX_KEPT_BYTES
    if is_small and info.format in SHOWN_FORMATS:
        return PagePicture(data=data, format=info.format, caption=caption)
    image = decode_image(data, ImageLimits())
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    files = {kind: BytesIO() for kind in SHOWN_FORMATS}
    for kind, file in files.items():
        image.save(file, kind)
    kind = min(files, key=lambda one: files[one].tell())
    return PagePicture(data=files[kind].getvalue(), format=kind, caption=caption)
