"""The BlockMoving format: chains of thought whose images are `<image>` tags in the text."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources.base import (
    Draft,
    Part,
    Picture,
    SourceFormat,
    options_text,
    text_field,
)

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
_TAG = re.compile(r"<image>|</image>")


@dataclass(frozen=True, slots=True)
class BlockMoving(SourceFormat):
    """Chains of thought about BlockMoving tasks: text with `<image>path</image>` tags.

    The question is the first image and the text before it; the rest is the solution. If
    `task_<id>/data.json` lists options, the prompt and the options replace the question's text.
    """

    prompt: str | None = BLOCKMOVING_PROMPT
    """Text before the options; None keeps the question text of the chain of thought."""

    name = "blockmoving"
    id_field = "task_id"
    fields = frozenset({"task_id", "gt", "pred", "cot_text"})
    recognised_by = frozenset({"task_id", "cot_text"})

    def uid(self, record: Mapping[str, Any]) -> str | None:
        """Returns `task_<id>`, or None if the record has no id."""
        value = record.get(self.id_field)
        return f"task_{value}" if isinstance(value, str | int) else None

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """See `SourceFormat.parse`."""
        task_id, answer = text_field(record, "task_id"), text_field(record, "gt")
        for name in ("pred", "cot_text"):
            if name not in record:
                raise RejectError(Reason.MISSING_FIELD, f"field {name!r} is absent")
        if str(record["pred"]).strip() != answer:
            raise RejectError(
                Reason.WRONG_ANSWER, f"pred is {record['pred']!r:.80}, gt is {answer!r}"
            )
        text = record["cot_text"]
        if not isinstance(text, str | None):
            raise RejectError(Reason.INVALID_FIELD, f"field 'cot_text' is {text!r:.80}, not text")
        if not text or not text.strip():
            raise RejectError(Reason.EMPTY, "field 'cot_text' is empty")
        if RENDER_MARK in text:
            raise RejectError(Reason.RENDER_RESULT, f"field 'cot_text' holds {RENDER_MARK}")
        before, *rest = split_image_tags(text)
        if not rest:
            raise RejectError(
                Reason.NO_IMAGE, "field 'cot_text' holds no image, so it has no question"
            )
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
            raise RejectError(Reason.BAD_TASK_FILE, f"{path}: not JSON: {error}") from None
        options = task.get("options") if isinstance(task, Mapping) else task
        if options is not None and not isinstance(options, Mapping | list):
            raise RejectError(Reason.BAD_TASK_FILE, f"{path}: options are {options!r:.80}")
        return options_text(options or {})


def split_image_tags(text: str) -> list[Part]:
    """Splits a text at its `<image>path</image>` tags.

    Args:
        text: Any text.

    Returns:
        Texts and images alternately; the first and the last are texts. Texts are unchanged and
        may be empty.

    Raises:
        RejectError: If a tag is unclosed, unopened or empty.
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


def _tag_error(reason: Reason, text: str, position: int, what: str) -> RejectError:
    around = text[max(0, position - 20) : position + 40]
    return RejectError(reason, f"the image tag at character {position} {what}: {around!r}")
