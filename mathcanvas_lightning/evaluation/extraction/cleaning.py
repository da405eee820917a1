r"""Boxes, and what encloses an answer: emphasis, dollars, quotes, a full stop."""

import re
from dataclasses import dataclass

MAX_ENCLOSED = 2000
"""From longer texts, `clean` removes no enclosing characters."""

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\(?:boxed|fbox)\s+[^\s{}$\\.,;]+|\\.|[{}]")
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
EMPHASIS = re.compile(r"(?<![\w)*])(\*\*|__)(?=\S)|(?<=\S)(\*\*|__)(?![\w(*])")
_EMOJI = re.compile(
    "[\N{BLACK SUN WITH RAYS}-\N{SOCCER BALL}✅✨❌❗⭐\U0001f300-\U0001faff\ufe0f]+"
)
_THEREFORE = re.compile(
    r"^(?:\\(?:therefore|because|implies|Rightarrow)(?![A-Za-z])|∴|=>|⇒|→)\s*|(?<=\S)\s+[✓✔]+$"
)
_PROVED = re.compile(
    r"[\s.]*(?:\$?\\(?:blacksquare|square|qed|Box)(?![A-Za-z])\$?|\bQED|Q\.E\.D\.?|∎|□|■)$"
)
_ALSO = re.compile(
    r"(?<=\S)\s*\((?:approximately|approx\.?|about|roughly|or|i\.e\.,?|that is,?|since|because"
    r"|≈|\\approx)"
    r"\s[^()]*\)$|(?<=\S)\s*\(\d+\s[a-z]{3,}\s(?:\+|and)\s[^()]*\)$"
)
"""A second form of the answer: "12π (about 37.7)"."""
_OTHER_UNIT = re.compile(r"^(\d[\d.,]*\s[A-Za-z]+)\s\(\d[\d.,]*\s?[A-Za-z]+\)$")
"""The same value in another unit: 12 minutes (720 seconds)."""
_NOT_BUT = re.compile(
    r"(?:n['’]t|\b[Nn]ot)\s[^,.\n]{1,40}?\sbut\s(?:rather\s)?|不是[^,。\n]{1,20},?\s?而(?=是)"
)
_ENCLOSING = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"'), ("`", "`"))
_LETTER_IN_BRACKETS = re.compile(
    r"\(([A-Z])\)|\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Z])\)?\.?\s*\}"
)


@dataclass(frozen=True, slots=True)
class Box:
    r"""A `\boxed{...}`, `\fbox{...}` or `\boxed 7`."""

    content: str
    start: int
    end: int


def clean(answer: str) -> str:
    """Removes enclosing emphasis, dollars, quotes, box and full stop from an answer.

    Args:
        answer: An answer.

    Returns:
        The answer on one line; brackets around a single letter are removed too.
    """
    text = " ".join(answer.split())
    if len(text) <= MAX_ENCLOSED:
        while (peeled := _peeled(text)) != text:
            text = peeled
    return text


def without_contrast(text: str) -> str:
    """Removes what a text denies before it states the opposite: "not 20 but 21".

    Args:
        text: A response.
    """
    return _NOT_BUT.sub(" ", text)


def find_boxes(text: str) -> list[Box]:
    """Finds closed boxes, without empty boxes and boxes in boxes.

    Args:
        text: A response.
    """
    found: list[Box] = []
    opened: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "}":
            box = opened.pop() if opened else None
            if box is not None and (content := text[box[1] : token.start()]).strip():
                while found and found[-1].end > box[0]:
                    found.pop()
                found.append(Box(content, box[0], token.end()))
        elif token[0] == "{":
            opened.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            opened.append(token.span())
        elif len(token[0]) > 2:
            found.append(Box(token[0].split(maxsplit=1)[1], token.start(), token.end()))
    return found


def split_list(answer: str) -> list[str]:
    """Splits at commas, semicolons, "and" and "or" outside brackets.

    Args:
        answer: An answer, such as "1, 4 and 7".

    Returns:
        The items; a single one if the answer is not a list.
    """
    items, start, depth = [], 0, 0
    for match in re.finditer(r"\\[{}]|[(\[{]|[)\]}]|,|;|\s(?:and|or)\s", answer):
        token = match[0]
        if token in ("(", "[", "{", r"\{"):
            depth += 1
        elif token in (")", "]", "}", r"\}"):
            depth -= 1
        elif depth == 0:
            items.append(answer[start : match.start()])
            start = match.end()
    items.append(answer[start:])
    return [item.strip() for item in items if item.strip()]


def _peeled(text: str) -> str:
    """Removes one layer of enclosing characters."""
    text = _EMOJI.sub("", EMPHASIS.sub("", text)).strip()
    text = _OTHER_UNIT.sub(r"\1", text)
    text = _ALSO.sub("", _THEREFORE.sub("", _PROVED.sub("", text)))
    if not text.endswith(("\\,", "\\;", "\\.")):
        text = re.sub(r"(?<=[^.])[.,;:]$|(?<=\.{3})\.$", "", text).rstrip()
    boxes = find_boxes(text)
    if len(boxes) == 1 and (boxes[0].start, boxes[0].end) == (0, len(text)):
        return boxes[0].content.strip()
    for left, right in _ENCLOSING:
        inner = text[len(left) : -len(right)]
        encloses = len(text) > len(left + right) and text == left + inner + right
        if encloses and left not in inner and right not in inner:
            return inner.strip()
    letter = _LETTER_IN_BRACKETS.fullmatch(text)
    return (letter[1] or letter[2]) if letter else text
