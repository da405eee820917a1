"""The marks of answers: boxes, `<answer>`, `####`, JSON, and phrases such as "the answer is"."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.evaluation.extraction.cleaning import (
    EMPHASIS,
    WORD,
    Box,
    clean,
    find_boxes,
)

MAX_CHARACTERS = 300
MAX_PHRASES = 20
"""Number of phrases such as "answer is" that are tried, from the end."""

PHRASE = re.compile(
    r"(?:\b(?:answers?|ans)\b\.?"
    r"(?:\s+(?:to|for|of)\b[^\n.:=]{0,100}?)?"
    r"(?:\s*\b(?:is|are|would\ be|should\ be|must\ be|will\ be)\b\s+not\b[^\n.]{1,40}?\bbut\s"
    r"|\s*\b(?:is|are|would\ be|should\ be|must\ be|will\ be)\b(?!\s+not\b)\s*:?"
    r"|\s*[:=]|\s[-–—](?=\s)|\s*\n|\s+(?=\(?(?-i:[A-Z])\)?(?!\w)))\s*"
    r"|\b(?:correct|right|best)\s+(?:option|choice)s?\s+(?:is|are|would\ be"
    r"|must\ be)(?!\s+not\b)\s*:?\s*"
    r"|(?<=[?.]\ )A:\s|\bans\.\s"
    r"|(?:答案|结果)(?:应该|应)?[】是为选择:\s]{1,4}项?"
    r"|正确的(?:选项|说法|结论|有|是|为|序号)+\s*:?\s*(?=[(A-H①-⑳])"
    r"|(?:故选|应选|因此选|所以选|选择|正确选项[是为]|选)\s*:?\s*(?=[(A-H]))",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
_JSON = re.compile(
    r'"(?:final[_ ])?answer"\s*:\s*("(?:[^"\\]|\\.){1,300}"|-?\d[\d.]*|\[[^\[\]]{1,200}\])', re.I
)
_TAG = re.compile(
    r"<answer>(.{1,2000}?)</answer>|<\|begin_of_box\|>(.{1,2000}?)<\|end_of_box\|>",
    re.DOTALL | re.IGNORECASE,
)
_HASHES = re.compile(r"^#{4}[ \t]*(\S.{0,200}?)[ \t]*$", re.MULTILINE)
_LEAD = re.compile(
    r"^(?:(?:therefore|thus|hence|so|approximately|approx\.?|about|roughly|around|nearly|equal to"
    r"|given by|the letter|the number|either|simply|just|exactly|clearly|now|then"
    r"|(?:option|choice)(?!\s*\d)"
    r"|约为?|大约)(?![A-Za-z])"
    r"[\s,:]*|[:=]\s*)",
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s+(?:because|since|which|where|so that|as)\s", re.IGNORECASE)
_SENTENCE_END = re.compile(
    r"(?<!\.)[.!?](?=\s|$|</)|</|而(?:不|非)|;(?=\s+[A-Za-z]{2,}\s)|,\s(?=not\s)"
)
_FACTORIAL = re.compile(r"(?<=[\dA-Za-z)])!(?=$)")
_FENCE = re.compile(r"^\s*```\w*\n")
_DISPLAY = re.compile(r"\\\[(.*?)\\\]|\$\$(.*?)\$\$", re.DOTALL)
_LETTER_AND_TEXT = re.compile(r"(\(?[A-Z]\)?)[.,:]\s+(?=\S)")
_PROSE_AHEAD = re.compile(
    r"(?:options?|note|since|because|choices?|this|that|the other|however|we|it)\b", re.I
)
_LETTER_BEHIND = re.compile(r"(?:the )?[a-z ]+,\s*\(?([A-H])\)?[.]?$")
_ID_EST = re.compile(
    r",?\s+(?:i\.e\.,?|that is,?|namely,?|which is|(?:or )?equivalently,?)\s+(?=[-\d\\$√π])"
)
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&*()\[\]\\]|\\text\{|\}|\\q?quad|\band\b|\bor\b"
    r"|[A-Za-z]\s*=)*"
)


@dataclass(frozen=True, slots=True)
class Marked:
    """An answer with a mark: a box, a tag, a phrase."""

    text: str
    start: int


def statement(text: str, *, is_line: bool = False) -> str:
    """The rest of a sentence after "is", up to its end or to "because".

    Args:
        text: The text after a phrase such as "the answer is".
        is_line: Whether it follows "Answer:"; an exclamation mark is a factorial then.
    """
    text = _FENCE.sub("", text)
    if display := _DISPLAY.match(text):
        return display[1] or display[2]
    line = _ID_EST.sub(" ≈ ", text.lstrip("*_ ").partition("\n")[0])
    while (shorter := _LEAD.sub("", line)) != line:
        line = shorter
    if meant := re.match(r"\(?([A-H])\)?\s*≈", line):
        return meant[1]
    if part := _LETTER_BEHIND.match(line):
        return part[1]
    letter = _LETTER_AND_TEXT.match(line)
    if letter and line[letter.end()].isalpha() and _is_prose(line, letter.end()):
        return letter[1]
    if is_line and _FACTORIAL.search(line.rstrip()):
        return line
    skip = letter.end() if letter and letter[0][-2] != "," else 0
    if re.match(r"[^?\n]{1,40}\?\s+\S", line):  # a question, which is answered behind it
        return ""
    for end in (_SENTENCE_END.search(line, skip), _REASON.search(line)):
        if end is not None:
            line = line[: min(end.start(), len(line))]
    return re.sub(r"\s(?:itself|again|too)$", "", line)


def _is_prose(line: str, start: int) -> bool:
    return len(WORD.findall(line)) > 6 or _PROSE_AHEAD.match(line, start) is not None


def is_plain(text: str) -> bool:
    """Whether a text is a letter, or a number or formula with at most three words.

    Args:
        text: A candidate.
    """
    text = clean(text)
    if re.fullmatch(r"[A-Z]|[A-Z][.)].{0,60}", text):
        return True
    begins = re.match(
        r"[-\N{MINUS SIGN}+(\[$\\{√±≈€£¥①-⑳π∞]|\d|(?!a\s|an\s|I\s)[A-Za-z](?![A-Za-z'])", text
    )
    return bool(begins) and len(WORD.findall(re.sub(r"\\text\{([^{}]*)\}", "", text))) <= 3


def marked(text: str) -> Iterator[Marked]:
    """Yields boxes, tags, and phrases with a plain answer, unsorted."""
    yield from _box_groups(text)
    yield from (Marked(tag[1] or tag[2], tag.start()) for tag in _TAG.finditer(text))
    for one in _HASHES.finditer(text):
        if is_plain(one[1]) or not text[one.end() :].strip():
            yield Marked(one[1], one.start())
    for found in _JSON.finditer(text):
        yield Marked(_json_text(found[1]), found.start())
    for phrase in [*PHRASE.finditer(text)][-MAX_PHRASES:]:
        stated = EMPHASIS.sub("", phrased(text, phrase))
        if is_plain(stated) and not find_boxes(stated):
            yield Marked(stated, phrase.start())


def phrased(text: str, phrase: re.Match[str]) -> str:
    """The answer behind a phrase.

    Args:
        text: A response.
        phrase: A match of `PHRASE` in it.
    """
    rest = text[phrase.end() : phrase.end() + 4 * MAX_CHARACTERS]
    return statement(rest, is_line=phrase[0].rstrip().endswith((":", "=")))


def _box_groups(text: str) -> Iterator[Marked]:
    """Joins adjacent boxes: several answers."""
    group: list[Box] = []
    for box in find_boxes(text):
        if group and not _BETWEEN_BOXES.fullmatch(text[group[-1].end : box.start][:100]):
            yield _joined(group)
            group = []
        group.append(box)
    if group:
        yield _joined(group)


def _joined(group: list[Box]) -> Marked:
    contents = dict.fromkeys(box.content.strip() for box in group)
    return Marked(", ".join(contents), group[-1].start)


def _json_text(value: str) -> str:
    try:
        found = json.loads(value)
    except ValueError:
        return value.strip('"')
    return ", ".join(map(str, found)) if isinstance(found, list) else str(found)
