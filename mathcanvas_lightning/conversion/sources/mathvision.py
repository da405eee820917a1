"""The MathVision format: questions with `<image1>` marks and a list of image files."""

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

_MARK = re.compile(r"<image(\d*)>")


@dataclass(frozen=True, slots=True)
class MathVision(SourceFormat):
    """MathVision JSONL: a question with `<image1>` marks, options, and an optional solution.

    An image is inserted at its first mark, or at the end of the question if it has no mark. The
    public data set merges all images of a problem into one file; then every mark means that file.
    """

    name = "mathvision"
    fields = frozenset({"id", "question", "options", "answer", "solution", "image"})
    recognised_by = frozenset({"question", "image"})

    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:  # noqa: ARG002
        """See `SourceFormat.parse`."""
        options = record.get("options") or []
        if not isinstance(options, Mapping | list):
            raise RejectError(
                Reason.INVALID_FIELD, f"field 'options' is {options!r:.80}, not an array"
            )
        question = "\n".join([text_field(record, "question"), options_text(options)])
        solution = record.get("solution") or ""
        if not isinstance(solution, str):
            raise RejectError(
                Reason.INVALID_FIELD, f"field 'solution' is {solution!r:.80}, not text"
            )
        return Draft(
            uid=text_field(record, "id"),
            question=_insert_images(question, _paths(record.get("image"))),
            solution=[_MARK.sub("", solution)],  # its marks refer to the question's images
            answer=text_field(record, "answer"),
        )


def _paths(value: Any) -> list[str]:
    paths = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(paths, list) or not all(isinstance(p, str) and p.strip() for p in paths):
        raise RejectError(
            Reason.INVALID_FIELD, f"field 'image' is {value!r:.80}, not a path or a list"
        )
    return paths


def _insert_images(text: str, paths: list[str]) -> list[Part]:
    text, *marked = _MARK.split(text)  # text, number, text, number, text ...
    parts: list[Part] = []
    placed: set[int] = set()
    for count, (number, after) in enumerate(zip(marked[::2], marked[1::2], strict=True)):
        index = int(number) - 1 if number else count
        if len(paths) == 1 and index > 0:
            index = 0
        if not 0 <= index < len(paths):
            raise RejectError(
                Reason.IMAGE_MARK, f"<image{number}> refers to none of the {len(paths)} images"
            )
        if index in placed:
            text += after
        else:
            parts += [text, Picture(paths[index])]
            text = after
            placed.add(index)
    unmarked = [Picture(path) for index, path in enumerate(paths) if index not in placed]
    return [*parts, text, *unmarked]
