"""The MathCanvas format: JSON interleaves of text and image items."""

import json
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
    text_field,
)
from mathcanvas_lightning.data.rows.schema import CORE_COLUMNS


@dataclass(frozen=True, slots=True)
class MathCanvas(SourceFormat):
    """MathCanvas JSON: the `content` of an image item is the path of its file."""

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
        raise RejectError(Reason.MISSING_FIELD, f"field {name!r} {found}")
    items = record[name]
    if isinstance(items, str):
        try:
            items = json.loads(items)
        except ValueError as error:
            raise RejectError(
                Reason.INVALID_FIELD, f"field {name!r} is not JSON: {error}"
            ) from None
    if not isinstance(items, list):
        raise RejectError(Reason.INVALID_FIELD, f"field {name!r} is {items!r:.80}, not an array")
    return [_interleave_part(item, f"{name}[{number}]") for number, item in enumerate(items)]


def _interleave_part(item: Any, where: str) -> Part:
    kind = item.get("type") if isinstance(item, Mapping) else None
    if kind not in ("text", "image"):
        raise RejectError(
            Reason.INVALID_FIELD, f"{where} is {item!r:.80}, not a text or image item"
        )
    content = item.get("content")
    if kind == "text" and content is None:
        return ""
    if not isinstance(content, str) or (kind == "image" and not content.strip()):
        raise RejectError(Reason.MISSING_FIELD, f"{where} ({kind}) has the content {content!r:.80}")
    return content if kind == "text" else Picture(content.strip())
