"""Source formats: a record of a JSON file -> texts and paths of pictures, or a reason to refuse it.

A new format is a subclass of `SourceFormat` with one method; `tools/generate_dataset_handler.py`
writes a working one.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

from mathcanvas_lightning.conversion.input.images import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, Reject
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS, Scalar

BLOCKMOVING_PROMPT = (
    "The picture shows a stack of coloured cubes before (top row) and after (bottom row) a series "
    "of moves, each from several viewpoints; the x, y and z axes are drawn in. A move shifts one "
    "cube by one unit along an axis. If the target cell is empty, the cube takes it; if another "
    "cube is there, the two swap places. Nothing floats: a cube that has lost its support falls "
    "until something carries it. Cells are named by their coordinates (x, y, z). Which of the "
    "options turns the first stack into the second? Answer with its letter."
)
RENDER_MARK = "[render_result]"
MAX_TASK_FILE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture named by its path relative to the image folder; its bytes are read later."""

    path: str


Part = str | Picture


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a source format makes of a record, before the pictures are read.

    Texts need no cleaning: they are stripped and empty ones dropped later.
    """

    uid: str
    question: Sequence[Part]
    solution: Sequence[Part]
    answer: str


class SourceFormat(ABC):
    """Base class of source formats. Instances are sent to worker processes: keep them small."""

    name: ClassVar[str]
    """Also the default name of the shards."""
    id_field: ClassVar[str] = "id"
    """Which field names the record in `rejects.jsonl`."""
    fields: ClassVar[frozenset[str]]
    """The fields that `parse` uses; all other scalar fields are carried along as columns."""
    recognised_by: ClassVar[frozenset[str]]
    """`--source auto` takes the format whose fields these are, all present in the first object."""

    @abstractmethod
    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """Turns a record into texts and pictures in reading order.

        Args:
            record: A JSON object of the input.
            files: Reads further files of the image folder, should the format have them.

        Returns:
            The sample's texts and pictures.

        Raises:
            Reject: If the record must not become a row.
        """

    def uid(self, record: Mapping[str, Any]) -> str | None:
        """The record's id for reports, None if it has none."""
        value = record.get(self.id_field)
        return str(value) if isinstance(value, str | int) else None

    def extras(self, record: Mapping[str, Any]) -> dict[str, Scalar]:
        """The further scalar fields, which become columns."""
        return {
            name: value
            for name, value in record.items()
            if name not in self.fields and (value is None or isinstance(value, str | int | float))
        }


def text_field(record: Mapping[str, Any], name: str) -> str:
    """A field as text; numbers are written out.

    Raises:
        Reject: If it is absent, null, empty, or neither text nor a number.
    """
    value = record.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "is empty" if name in record else "is absent"
        raise Reject(Reason.MISSING_FIELD, f"field {name!r} {found}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Reject(Reason.INVALID_FIELD, f"field {name!r} is {value!r:.80}, not text")
    return str(value).strip()


def options_text(options: Mapping[str, Any] | Sequence[Any]) -> str:
    """Answer options as lettered lines below the line `Options:`; "" where there are none."""
    if not isinstance(options, Mapping):
        options = dict(zip(ascii_uppercase, options, strict=False))
    lines = [f"{letter}: {options[letter]}" for letter in sorted(options)]
    return "\n".join(["Options:", *lines]) if lines else ""


_TAG = re.compile(r"<image>|</image>")


def split_image_tags(text: str) -> list[Part]:
    """Cuts a text at its `<image>path</image>` tags.

    Args:
        text: Any text.

    Returns:
        Texts (as they stand, also empty ones) and pictures in turn, beginning and ending with
        a text.

    Raises:
        Reject: If a tag is unclosed, unopened or empty.
    """
    parts: list[Part] = []
    start, opened = 0, False
    for tag in _TAG.finditer(text):
        if tag[0] == "<image>":
            if opened:
                raise _tag_error(Reason.UNCLOSED_TAG, text, start, "has no </image>")
            parts.append(text[start : tag.start()])
        else:
            if not opened:
                raise _tag_error(Reason.UNOPENED_TAG, text, tag.start(), "has no <image>")
            path = text[start : tag.start()].strip()
            if not path:
                raise _tag_error(Reason.EMPTY_TAG, text, start, "names no file")
            parts.append(Picture(path))
        start, opened = tag.end(), tag[0] == "<image>"
    if opened:
        raise _tag_error(Reason.UNCLOSED_TAG, text, start, "has no </image>")
    return [*parts, text[start:]]


def _tag_error(reason: Reason, text: str, position: int, what: str) -> Reject:
    around = text[max(0, position - 20) : position + 40]
    return Reject(reason, f"the image tag at character {position} {what}: {around!r}")


@dataclass(frozen=True, slots=True)
class BlockMoving(SourceFormat):
    """Chain of thought over BlockMoving tasks: text with `<image>path</image>` tags.

    The first image is the question's, with the text before it; all after it is the solution.
    Where `task_<id>/data.json` lists options, the question's text is the prompt and the options.
    """

    prompt: str | None = BLOCKMOVING_PROMPT
    """None leaves the question as it stands in the chain of thought."""

    name = "blockmoving"
    id_field = "task_id"
    fields = frozenset({"task_id", "gt", "pred", "cot_text"})
    recognised_by = frozenset({"task_id", "cot_text"})

    def uid(self, record: Mapping[str, Any]) -> str | None:
        """`task_<id>`."""
        value = record.get(self.id_field)
        return f"task_{value}" if isinstance(value, str | int) else None

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """See `SourceFormat.parse`."""
        task_id, answer = text_field(record, "task_id"), text_field(record, "gt")
        for name in ("pred", "cot_text"):
            if name not in record:
                raise Reject(Reason.MISSING_FIELD, f"field {name!r} is absent")
        if str(record["pred"]).strip() != answer:
            raise Reject(Reason.WRONG_ANSWER, f"pred is {record['pred']!r:.80}, gt is {answer!r}")
        text = record["cot_text"]
        if not isinstance(text, str | None):
            raise Reject(Reason.INVALID_FIELD, f"field 'cot_text' is {text!r:.80}, not text")
        if not text or not text.strip():
            raise Reject(Reason.EMPTY, "field 'cot_text' is empty")
        if RENDER_MARK in text:
            raise Reject(Reason.RENDER_RESULT, f"field 'cot_text' holds {RENDER_MARK}")
        before, *rest = split_image_tags(text)
        if not rest:
            raise Reject(Reason.NO_IMAGE, "field 'cot_text' holds no image, so it has no question")
        options = self._options(task_id, files)
        if self.prompt is not None and options:
            before = f"{self.prompt}\n\n{options}"
        return Draft(
            uid=f"task_{task_id}", question=(before, rest[0]), solution=rest[1:], answer=answer
        )

    def _options(self, task_id: str, files: SourceFiles) -> str:
        path = f"task_{task_id}/data.json"
        data = files.read_optional(path, max_bytes=MAX_TASK_FILE_BYTES)
        if data is None:
            return ""
        try:
            task = json.loads(data)
        except ValueError as error:
            raise Reject(Reason.BAD_TASK_FILE, f"{path}: not JSON: {error}") from None
        options = task.get("options") if isinstance(task, Mapping) else task
        if options is not None and not isinstance(options, Mapping | list):
            raise Reject(Reason.BAD_TASK_FILE, f"{path}: options are {options!r:.80}")
        return options_text(options or {})


@dataclass(frozen=True, slots=True)
class MathCanvas(SourceFormat):
    """MathCanvas JSON: interleaves whose image items name their file in `content`."""

    name = "mathcanvas"
    fields = frozenset(CORE_COLUMNS)
    recognised_by = frozenset({"question_interleave", "solution_interleave"})

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:  # noqa: ARG002
        """See `SourceFormat.parse`."""
        return Draft(
            uid=text_field(record, "id"),
            question=_interleave_parts(record, "question_interleave"),
            solution=_interleave_parts(record, "solution_interleave"),
            answer=text_field(record, "answer"),
        )


def _interleave_parts(record: Mapping[str, Any], name: str) -> list[Part]:
    if record.get(name) is None:
        found = "is null" if name in record else "is absent"
        raise Reject(Reason.MISSING_FIELD, f"field {name!r} {found}")
    items = record[name]
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except ValueError as error:
            raise Reject(Reason.INVALID_FIELD, f"field {name!r} is not JSON: {error}") from None
    if not isinstance(items, list):
        raise Reject(Reason.INVALID_FIELD, f"field {name!r} is {items!r:.80}, not an array")
    return [_interleave_part(item, f"{name}[{number}]") for number, item in enumerate(items)]


def _interleave_part(item: Any, where: str) -> Part:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in ("text", "image"):
        raise Reject(Reason.INVALID_FIELD, f"{where} is {item!r:.80}, not a text or image item")
    content = item.get("content")
    if kind == "text" and content is None:
        return ""
    if not isinstance(content, str) or (kind == "image" and not content.strip()):
        raise Reject(Reason.MISSING_FIELD, f"{where} ({kind}) has the content {content!r:.80}")
    return content if kind == "text" else Picture(content.strip())


_MARK = re.compile(r"<image(\d*)>")


@dataclass(frozen=True, slots=True)
class MathVision(SourceFormat):
    """MathVision JSONL: a question with `<image1>` marks, options, and perhaps a solution.

    A picture goes where it is first marked, or to the question's end if it never is. The public
    set joins all pictures of a problem into one file: then the further marks are in that picture.
    """

    name = "mathvision"
    fields = frozenset({"id", "question", "options", "answer", "solution", "image"})
    recognised_by = frozenset({"question", "image"})

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:  # noqa: ARG002
        """See `SourceFormat.parse`."""
        options = record.get("options") or []
        if not isinstance(options, Mapping | list):
            raise Reject(Reason.INVALID_FIELD, f"field 'options' is {options!r:.80}, not an array")
        question = "\n".join([text_field(record, "question"), options_text(options)])
        solution = record.get("solution") or ""
        if not isinstance(solution, str):
            raise Reject(Reason.INVALID_FIELD, f"field 'solution' is {solution!r:.80}, not text")
        return Draft(
            uid=text_field(record, "id"),
            question=_place_marks(question, _paths(record.get("image"))),
            solution=[_MARK.sub("", solution)],  # what it marks is the question's picture
            answer=text_field(record, "answer"),
        )


def _paths(value: Any) -> list[str]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) and p.strip() for p in paths):
        raise Reject(Reason.INVALID_FIELD, f"field 'image' is {value!r:.80}, not a path or a list")
    return paths


def _place_marks(text: str, paths: list[str]) -> list[Part]:
    text, *marked = _MARK.split(text)  # text, number, text, number, text ...
    parts: list[Part] = []
    placed: set[int] = set()
    for count, (number, after) in enumerate(zip(marked[::2], marked[1::2], strict=True)):
        index = int(number) - 1 if number else count
        if len(paths) == 1 and index > 0:
            index = 0
        if not 0 <= index < len(paths):
            raise Reject(
                Reason.IMAGE_MARK, f"<image{number}> stands for none of {len(paths)} images"
            )
        if index in placed:
            text += after
        else:
            parts += [text, Picture(paths[index])]
            text = after
            placed.add(index)
    unmarked = [Picture(path) for index, path in enumerate(paths) if index not in placed]
    return [*parts, text, *unmarked]


BUILT_IN: tuple[type[SourceFormat], ...] = (BlockMoving, MathCanvas, MathVision)
