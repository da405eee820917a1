"""Answer sheets: all that is shown of a record, pictures loaded, faults told in their places."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits, check_image
from mathcanvas_lightning.data.images.resize import decode_image
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, UID_COLUMNS
from mathcanvas_lightning.evaluation.answered import Answered
from mathcanvas_lightning.evaluation.verdicts import ScoredResponse
from mathcanvas_lightning.generation.run.answer_folders import folder_name
from mathcanvas_lightning.records.marks import MarkError, place_marks
from mathcanvas_lightning.records.pictures import PictureError, load_pictures
from mathcanvas_lightning.records.record import (
    ERROR_SUFFIX,
    INTERLEAVED_COLUMNS,
    RecordInput,
    as_list,
)

MAX_SIDE_PX = 512
MAX_KEPT_BYTES = 64 * 2**10
"""Small pictures of no more bytes than this are shown as they are."""
SHOWN_FORMATS = ("PNG", "JPEG")
MAX_FACT_CHARACTERS = 120
"""Longer fields of records are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Thumbnail:
    """A picture, no larger than a page needs it."""

    data: bytes
    """The encoded file."""
    format: str
    """One of `SHOWN_FORMATS`."""
    caption: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What stands in place of something that can't be shown."""

    text: str


Piece = str | Thumbnail | Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetResponse:
    """One response to a question."""

    steps: tuple[Piece, ...]
    """Texts and drawings in order."""
    text: str
    """The response as the record has it, where the steps say something else; else empty."""
    failure: str
    """Why there is no response; empty if there is one."""
    scored: ScoredResponse | None
    """None if it isn't scored."""

    @property
    def verdict(self) -> str:
        """What it is filed under."""
        if self.scored is not None:
            return self.scored.verdict
        return "failed" if self.failure else "unscored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """A record with all that is shown of it."""

    name: str
    facts: Mapping[str, str]
    """Short fields that are nothing of the below."""
    question: tuple[Piece, ...]
    reference: tuple[str, ...]
    """The answer to each part."""
    responses: tuple[SheetResponse, ...]

    @property
    def pieces(self) -> Iterator[Piece]:
        """All texts, pictures and faults."""
        yield from self.question
        for response in self.responses:
            yield from response.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetSource:
    """Where the parts of a record are found."""

    records: RecordInput
    """The file, and what its fields are called."""
    answer_field: str
    folders: Path | None
    """Has the folders of `ReasoningFolders`."""

    def sheet(
        self,
        record: Mapping[str, Any],
        answered: Answered,
        scored: Sequence[ScoredResponse],
    ) -> Sheet:
        """Lays out a record; whatever is wrong with it is told in place.

        Args:
            record: As it was read.
            answered: The same, as it is scored.
            scored: What is found on each response; empty if they aren't scored.

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
            *(source.response_field, source.response_field + ERROR_SUFFIX),
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
        base = self.records.image_base
        if self.records.query_field not in record and record.keys() >= INTERLEAVED_COLUMNS:
            return tuple(_interleaved(record, base))
        query = record.get(self.records.query_field)
        if not isinstance(query, str) or not query.strip():
            query = ""
        images = as_list(record.get(self.records.image_field))
        faults: list[Piece] = [] if query else [Fault("no question")]
        try:
            pieces = place_marks(query, len(images))
        except MarkError as error:
            pieces = [*range(len(images)), query]
            faults.append(Fault(str(error)))
        shown = (
            piece if isinstance(piece, str) else _picture(images[piece], base, _number(piece))
            for piece in pieces
        )
        return (*shown, *faults)

    def _folder(self, name: str, number: int) -> Path | None:
        if self.folders is None:
            return None
        # Takes seconds to import.
        return self.folders / folder_name(name, number)

    def _response(
        self, text: str | None, scored: ScoredResponse | None, failure: str, folder: Path | None
    ) -> SheetResponse:
        if text is None:
            return SheetResponse(steps=(), text="", failure=failure, scored=scored)
        steps: tuple[Piece, ...] = (text,)
        if folder is not None:
            told = _told(folder)
            has_steps = any(not isinstance(step, Fault) for step in told)
            steps = (*told,) if has_steps else (*told, text)
        said = "".join(step for step in steps if isinstance(step, str))
        is_same = _unspaced(said) == _unspaced(text)
        return SheetResponse(steps=steps, text="" if is_same else text, failure="", scored=scored)


def _interleaved(record: Mapping[str, Any], base: str) -> Iterator[Piece]:
    """The question of a row of an interleaved shard, whatever of it can be read."""
    images = as_list(record["question_images"])
    for item in as_list(record["question_interleave"]):
        match item:
            case {"type": "text", "content": str() | None as text}:
                yield text or ""
            case {"type": "image", "index": int() | float() as index} if 0 <= index < len(images):
                yield _picture(images[int(index)], base, _number(int(index)))
            case _:
                yield Fault(f"neither a text nor one of {len(images)} images: {item!r:.80}")


def _told(folder: Path) -> list[Piece]:
    """The steps of an answer, as `reasoning_result.json` tells them."""
    if not folder.is_dir():
        return [Fault(f"no folder {folder.name} with the steps: the text alone")]
    try:
        told = json.loads((folder / "reasoning_result.json").read_text(encoding="utf-8"))
        steps = told["reasoning_steps"]
        if not isinstance(steps, list):
            raise TypeError(f"reasoning_steps is {steps!r:.80}")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        return [Fault(f"{folder.name}/reasoning_result.json can't be used: {reason}")]
    return [_step(step, folder) for step in steps]


def _step(step: Any, folder: Path) -> Piece:
    match step:
        case {"type": "text", "content": str(text)}:
            return text
        case {"type": "image", "content": str(path)}:
            return _picture(path, str(folder), path)
        case _:
            return Fault(f"neither a text nor a drawing: {step!r:.80}")


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _number(index: int) -> str:
    return f"picture {index + 1}"


def _picture(reference: Any, base: str, name: str) -> Thumbnail | Fault:
    try:
        (picture,) = load_pictures([reference], base, place=name)
        return thumbnail(picture.data, name)
    except (PictureError, ImageError) as error:
        return Fault(str(error))


def thumbnail(data: bytes, name: str) -> Thumbnail:
    """Makes a picture fit for a page.

    Args:
        data: An encoded file.
        name: Begins its caption.

    Returns:
        The file itself where it is small and browsers show it; else its pixels, no longer than
        `MAX_SIDE_PX` a side, in the format that takes fewer bytes.

    Raises:
        ImageError: If it can't be decoded.
    """
    info = check_image(data, ImageLimits())
    caption = f"{name}, {info.width_px}x{info.height_px}"
    is_small = max(info.width_px, info.height_px) <= MAX_SIDE_PX and len(data) <= MAX_KEPT_BYTES
    if is_small and info.format in SHOWN_FORMATS:
        return Thumbnail(data=data, format=info.format, caption=caption)
    image = decode_image(data, ImageLimits())
    image.thumbnail((MAX_SIDE_PX, MAX_SIDE_PX))
    files = {kind: BytesIO() for kind in SHOWN_FORMATS}
    for kind, file in files.items():
        image.save(file, kind)
    kind = min(files, key=lambda one: files[one].tell())
    return Thumbnail(data=files[kind].getvalue(), format=kind, caption=caption)
