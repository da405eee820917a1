"""Readers of the four row formats; each returns texts and images in the order of the sequence.

The columns are those of the published data sets: interleaved (MathCanvas-Instruct, and the output
of this library's converter), t2i (MathCanvas-Imagen: `image`, `caption` or `captions`), edit
(MathCanvas-Edit: `image_list`, `instruction_list`), vlm (JSON lines: `image`, `conversations`).
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import wraps
from typing import Any, Literal

from mathcanvas_lightning.data.rows.left_out import (
    NoSampleError,
    require_unicode,
    row_boundary,
)
from mathcanvas_lightning.data.rows.schema import (
    CORE_COLUMNS,
    UID_COLUMNS,
    ImageSegment,
    Segment,
    example_from_row,
    find_uid,
)
from mathcanvas_lightning.errors import DataError

RowFormat = Literal["interleaved", "t2i", "edit", "vlm"]
IMAGE_MARK = "<image>"


class Role(IntEnum):
    """Use of an element in training; see `data.sequence.roles` for the splits of each role."""

    UNUSED = 0
    """Not chosen in this visit."""
    PROMPT_TEXT = 1
    """Text that is given; no loss."""
    ANSWER_TEXT = 2
    """Text to write; with loss."""
    FIXED_TEXT = 3
    """Text that is given and never dropped."""
    FIXED_ANSWER = 4
    """Text to write, never dropped."""
    CONTEXT_IMAGE = 5
    """Image that is given."""
    DRAWN_IMAGE = 6
    """Image to draw; the model reads it afterwards."""
    TARGET_IMAGE = 7
    """Image to draw; nothing follows it."""
    SEEN_IMAGE = 8
    """Image for the ViT only, never dropped."""


@dataclass(frozen=True, slots=True)
class Element:
    """A text or an image of a row."""

    role: Role
    """Role; in an edit preliminary, because used images and instructions are chosen at random."""
    content: str | bytes
    """A text, or an encoded image; in conversations the path of an image."""
    step: int = 0
    """In an edit: number of the image, or of the image that the instruction produces."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A row as it was read, before random choices."""

    uid: str
    """Id of the row, or its location."""
    elements: tuple[Element, ...]
    """Elements in the order of the sequence; alternatives (captions, instructions) are adjacent."""


Reader = Callable[[Mapping[str, Any], str], Sample]
MAX_STEPS = 2**15 - 1
"""Maximum number of images of an edit; the index stores it in 16 bits."""


def _checked(read: Reader) -> Reader:
    """Lets a reader raise only errors of ours, and return only texts that can be stored."""

    @wraps(read)
    def checked(row: Mapping[str, Any], place: str) -> Sample:
        with row_boundary(place):
            sample = read(row, place)
            require_unicode(sample.uid, place)
            for element in sample.elements:
                if isinstance(element.content, str):
                    require_unicode(element.content, place)
            return sample

    return checked


@_checked
def read_interleaved(row: Mapping[str, Any], place: str) -> Sample:
    """Reads a question and its solution.

    Raises:
        NoSampleError: If answer, question or solution is missing.
        DataError: If the row violates the format.
    """
    example = example_from_row(row, place=place)
    for name in ("answer", "question", "solution"):
        if not getattr(example, name):
            raise NoSampleError(f"no {name}")
    question = [_element(s, Role.PROMPT_TEXT, Role.CONTEXT_IMAGE) for s in example.question]
    solution = [_element(s, Role.ANSWER_TEXT, Role.DRAWN_IMAGE) for s in example.solution]
    return Sample(uid=example.uid, elements=(*question, *solution))


@_checked
def read_t2i(row: Mapping[str, Any], place: str) -> Sample:
    """Reads a picture to draw from one of its captions.

    Raises:
        NoSampleError: If there is no caption.
        DataError: If the row violates the format.
    """
    captions = row.get("caption") or row.get("captions") or ()
    if isinstance(captions, str) and "caption" not in row:
        captions = _json(captions, place, "captions")
    if isinstance(captions, Mapping):
        captions = list(captions.values())
    texts = [captions] if isinstance(captions, str) else _list(captions, place, "captions")
    texts = [_text(text, place, "captions") for text in texts if not _is_blank(text)]
    if not texts:
        has_column = "caption" in row or "captions" in row
        raise NoSampleError("no caption" if has_column else "no column caption or captions")
    image = Element(Role.TARGET_IMAGE, _image(row.get("image"), place, "image"))
    elements = [Element(Role.PROMPT_TEXT, text) for text in texts]
    return Sample(uid=_uid(row, place), elements=(*elements, image))


@_checked
def read_edit(row: Mapping[str, Any], place: str) -> Sample:
    """Reads a chain of pictures, each edited from the previous one by an instruction.

    Raises:
        NoSampleError: If there are fewer than two pictures.
        DataError: If the row violates the format.
    """
    _require(row, ("image_list", "instruction_list"), place)
    images = _list(row.get("image_list"), place, "image_list")
    instructions = row.get("instruction_list")
    if isinstance(instructions, str):
        instructions = _json(instructions, place, "instruction_list")
    instructions = _list(instructions, place, "instruction_list")
    if len(images) < 2:
        raise NoSampleError("fewer than two images")
    if len(images) > MAX_STEPS:
        raise _row_error(place, f"{len(images)} images", f"at most {MAX_STEPS}")
    if len(instructions) < len(images) - 1:
        found = f"{len(instructions)} instructions for {len(images)} images"
        raise _row_error(place, found, "an instruction for each image but the first")
    elements: list[Element] = []
    for step, image in enumerate(images):
        if step > 0:
            choices = instructions[step - 1]
            if not isinstance(choices, str):
                choices = _list(choices, place, f"instruction_list[{step - 1}]")
            choices = [choices] if isinstance(choices, str) else choices
            texts = [
                _text(text, place, "instruction_list") for text in choices if not _is_blank(text)
            ]
            if not texts:
                raise _row_error(place, f"no instruction for image {step}", "one or more")
            elements += [Element(Role.PROMPT_TEXT, text, step) for text in texts]
        data = _image(image, place, f"image_list[{step}]")
        elements.append(Element(Role.CONTEXT_IMAGE, data, step))
    return Sample(uid=_uid(row, place), elements=tuple(elements))


@_checked
def read_vlm(row: Mapping[str, Any], place: str) -> Sample:
    """Reads a conversation about pictures; its images are paths.

    Raises:
        NoSampleError: If there is no answer.
        DataError: If the row violates the format.
    """
    _require(row, ("conversations",), place)
    paths = row.get("image")
    paths = [paths] if paths and isinstance(paths, str) else _list(paths or (), place, "image")
    elements: list[Element] = []
    remaining = iter(paths)
    for number, turn in enumerate(_list(row.get("conversations"), place, "conversations")):
        if not isinstance(turn, Mapping):
            where = f"{place}, conversations[{number}]"
            raise _row_error(where, f"{turn!r:.80}", "an object with from and value")
        speaker, text = turn.get("from"), _text(turn.get("value"), place, "conversations")
        if speaker == "gpt":
            elements.append(Element(Role.FIXED_ANSWER, text))
        elif speaker == "human":
            elements += _human_turn(text, remaining, place)
        else:
            raise _row_error(place, f"a turn from {speaker!r}", "turns from human and gpt")
    if sum(element.role == Role.SEEN_IMAGE for element in elements) != len(paths):
        raise _row_error(place, f"{len(paths)} images", f"one for each {IMAGE_MARK} mark")
    answers = [element.content for element in elements if element.role == Role.FIXED_ANSWER]
    if all(map(_is_blank, answers)):
        raise NoSampleError("no answer")
    return Sample(uid=_uid(row, place), elements=tuple(elements))


READERS: dict[RowFormat, Reader] = {
    "interleaved": read_interleaved,
    "t2i": read_t2i,
    "edit": read_edit,
    "vlm": read_vlm,
}
COLUMNS: dict[RowFormat, tuple[str, ...]] = {
    "interleaved": (*UID_COLUMNS, *CORE_COLUMNS[1:]),
    "t2i": (*UID_COLUMNS, "image", "caption", "captions"),
    "edit": (*UID_COLUMNS, "image_list", "instruction_list"),
    "vlm": (*UID_COLUMNS, "image", "conversations"),
}
"""Columns that each reader uses; other columns are not read from disk."""


def _require(row: Mapping[str, Any], columns: Sequence[str], place: str) -> None:
    if missing := [name for name in columns if name not in row]:
        raise _row_error(place, f"no {' and no '.join(missing)}", "a row of this row format")


def _human_turn(text: str, paths: Any, place: str) -> list[Element]:
    elements: list[Element] = []
    for number, piece in enumerate(text.split(IMAGE_MARK)):
        if number > 0:
            path = next(paths, None)
            if not isinstance(path, str):
                raise _row_error(place, f"more {IMAGE_MARK} marks than images", "one for each")
            elements.append(Element(Role.SEEN_IMAGE, path))
        if piece.strip():
            elements.append(Element(Role.FIXED_TEXT, piece.strip()))
    return elements


def _element(segment: Segment, text: Role, image: Role) -> Element:
    if isinstance(segment, ImageSegment):
        return Element(image, segment.data)
    return Element(text, segment.text)


def _image(value: Any, place: str, column: str) -> bytes:
    if isinstance(value, Mapping):
        value = value.get("bytes")
    if not isinstance(value, bytes):
        raise _row_error(f"{place}, {column}", f"an image of type {type(value).__name__}", "bytes")
    return value


def _text(value: Any, place: str, column: str) -> str:
    if not isinstance(value, str):
        raise _row_error(f"{place}, {column}", f"{value!r:.80}", "a string")
    return value


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _json(text: str, place: str, column: str) -> Mapping[str, Any] | Sequence[Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return [text]
    if isinstance(value, Mapping | list | str):
        return [value] if isinstance(value, str) else value
    raise _row_error(f"{place}, {column}", f"{text!r:.80}", "a JSON object or array of texts")


def _list(value: Any, place: str, column: str) -> Sequence[Any]:
    if value is None:
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise _row_error(f"{place}, {column}", f"{value!r:.80}", "a list")
    return value


def _uid(row: Mapping[str, Any], place: str) -> str:
    return find_uid(row) or place


def _row_error(place: str, found: str, wanted: str) -> DataError:
    return DataError(
        place, found=found, wanted=wanted, remedy="Fix the row, or remove it from the data set."
    )
