"""Parts of a question: how references and responses mark them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mathcanvas_lightning.evaluation.extraction.cleaning import EMPHASIS, clean, find_boxes
from mathcanvas_lightning.evaluation.extraction.marks import PHRASE

MAX_PARTS = 20
"""Maximum number of parts of a question."""

FULL_WIDTH = str.maketrans(
    {0xFF08: "(", 0xFF09: ")", 0xFF1A: ":", 0xFF0C: ", ", 0x3002: ". ", 0xFF1B: "; ", 0xFF0E: "."}
)
"""Full-width punctuation -> ASCII."""
_TAGGED = re.compile(r"<(\d{1,2})>((?:(?!</?\d{1,2}>).)*)</\1>", re.DOTALL)
_NUMBER = r"([0-9]{1,2}|[a-h]|i{1,3}|iv|vi?)"
_MARK = re.compile(rf"(?<![\w)}}\]\\^])(?:(?:(?:[Ff]or|[Ii]n)\s+)?[Pp]art\s+)?\({_NUMBER}\)[:.]?")
_TIGHT_MARK = re.compile(rf"(?<![A-Za-z)}}\]\\^])\({_NUMBER}\)[:.]?")
_PART = re.compile(
    r"\b(?:(?:[Ff]or|[Ii]n)\s+)?[Pp]art\s+\(?([0-9]{1,2}|[a-hA-H])\)?\s*[:.\-\N{EN DASH}]?"
)
_LINE_MARK = re.compile(r"^[ \t]*\(?([0-9]{1,2}|[a-h])[.):](?=\s)", re.MULTILINE)
_INLINE_MARK = re.compile(r"(?:^|(?<=[\s;,.]))([0-9]{1,2}|[a-h])\)(?=\s)")
_CIRCLED = re.compile("([①-⑳])")
_NUMBERINGS = (
    tuple(map(str, range(1, MAX_PARTS + 1))),
    tuple("abcdefgh"),
    ("i", "ii", "iii", "iv", "v", "vi"),
    tuple("ABCDEFGH"),
    tuple(map(chr, range(0x2460, 0x2460 + MAX_PARTS))),
)


def reference_parts(answer: Any) -> tuple[str, ...]:
    r"""Splits a reference answer into the answers to the parts of the question.

    Args:
        answer: A number; a text; a text with several parts, such as `<1>5</1><2>7</2>`,
            `(1) 5 (2) 7` or `\boxed{5}, \boxed{7}`; or a list with an answer for each part.

    Returns:
        The parts; empty if there is no answer.
    """
    if isinstance(answer, list | tuple):
        parts = tuple(clean(_reference_text(one)) for one in answer)
        return parts if any(parts) else ()
    text = _reference_text(answer)
    if found := dict(tagged(text)):
        return tuple(clean(found.get(part, "")) for part in range(max(found) + 1))
    boxes = find_boxes(text)
    if len(boxes) > 1:
        return tuple(clean(box.content) for box in boxes)
    for pattern in (_MARK, _TIGHT_MARK, _PART, _INLINE_MARK, _CIRCLED):
        for numbering in _NUMBERINGS:
            marks = _marks(text, pattern, numbering)
            if len(marks) > 1 and not text[: marks[0].start()].strip("$ "):
                pieces = tuple(clean(piece) for piece in _between(text, marks))
                if all(re.sub(r"[①-⑳\W]", "", piece) for piece in pieces):
                    return pieces
    return (clean(text),) if text else ()


def tagged(text: str) -> Iterator[tuple[int, str]]:
    """Yields index of the part, from 0, and content of each `<1>...</1>`.

    Args:
        text: A response or reference.
    """
    for tag in _TAGGED.finditer(text):
        if 1 <= int(tag[1]) <= MAX_PARTS:
            yield int(tag[1]) - 1, tag[2]


def sections(text: str, num_parts: int) -> list[str]:
    """The last pieces of a text with the marks (1), (2), ...

    Args:
        text: A response.
        num_parts: Number of pieces.

    Returns:
        The pieces; empty without marks.
    """
    text = EMPHASIS.sub("", text)
    tight = [_TIGHT_MARK] if re.match(r"\s*\(", text) else []
    for pattern in (_MARK, *tight, _PART):
        for numbering in _NUMBERINGS:
            if pieces := _between(text, _marks(text, pattern, numbering[:num_parts])):
                return pieces
    phrases = list(PHRASE.finditer(text))
    tail = text[phrases[-1].end() - 1 :] if phrases else ""
    for searched in (tail, text):
        for pattern in (_LINE_MARK, _INLINE_MARK):
            for numbering in _NUMBERINGS:
                # Steps of the reasoning are numbered too, but there are more of them.
                marks = _marks(searched, pattern, numbering)
                if len(marks) == num_parts:
                    return _between(searched, marks)
    return []


def _reference_text(answer: Any) -> str:
    is_missing = answer is None or (isinstance(answer, float) and math.isnan(answer))
    return "" if is_missing else str(answer).translate(FULL_WIDTH).strip()


def _marks(text: str, pattern: re.Pattern[str], numbering: Sequence[str]) -> list[re.Match[str]]:
    """The last marks with consecutive numbers from the first one, at least two."""
    run: list[re.Match[str]] = []
    best: list[re.Match[str]] = []
    for mark in pattern.finditer(text):
        if mark[1] == numbering[0]:
            run = [mark]
        elif 0 < len(run) < len(numbering) and mark[1] == numbering[len(run)]:
            run.append(mark)
        if len(run) > 1:
            best = run
    return best


def _between(text: str, marks: Sequence[re.Match[str]]) -> list[str]:
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [text[mark.end() : end] for mark, end in zip(marks, ends, strict=bool(marks))]
