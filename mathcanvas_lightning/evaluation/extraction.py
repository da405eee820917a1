r"""The final answer of a response: `\boxed{...}`, "the answer is ...", or a plain last line.

All patterns run in time linear in the length of the text.
"""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

from mathcanvas_lightning.generation.run.post_processors import remove_thinking

MAX_CHARACTERS = 300
MAX_WORDS = 15
"""Longer candidates are reasoning, not an answer."""
MAX_ENCLOSED = 2000
"""From longer texts, `clean` removes no enclosing characters."""
MAX_PHRASES = 20
"""Number of phrases such as "answer is" that are tried, from the end."""
MAX_PARTS = 20
"""Maximum number of parts of a question."""

_FULL_WIDTH = str.maketrans({0xFF08: "(", 0xFF09: ")", 0xFF1A: ":", 0xFF0C: ",", 0x3002: "."})

_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)\s*\{|\\.|[{}]")
_BETWEEN_BOXES = re.compile(r"(?:[\s$,;.&*()\[\]\\]|\\text\{|\}|\\q?quad|\band\b|\bor\b)*")
_EMPHASIS = re.compile(r"(?<![\w)*])(\*\*|__)(?=\S)|(?<=\S)(\*\*|__)(?![\w(*])")
_PHRASE = re.compile(
    r"\banswers?\b"
    r"(?:\s+(?:to|for|of)\b[^\n.:=]{0,100}?)?"
    r"(?:\s*\b(?:is|are|would\ be|should\ be|must\ be|will\ be)\b(?!\s+not\b)\s*:?|\s*[:=]"
    r"|\s*\n|\s+(?=\(?(?-i:[A-Z])\)?(?!\w)))\s*",
    re.IGNORECASE | re.VERBOSE,
)
_CHOSEN = re.compile(
    r"\b(?:[Oo]ption|[Cc]hoice|[Cc]hoose|[Ss]elect|[Pp]ick)\b(?:\s+(?:is|option|choice))?\s*:?\s*"
    r"\(?([A-Z])\)?(?![\w'])(?!\s+(?:is|are|was)\s+(?:not|in|wrong|false))"
)
_LEAD = re.compile(
    r"^(?:(?:therefore|thus|hence|so|approximately|about|equal to|given by|simply|option|choice)\b"
    r"[\s,:]*|[:=]\s*)",
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s+(?:because|since|which|where|so that|as)\s", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?;](?=\s|$)")
_DISPLAY = re.compile(r"\\\[(.*?)\\\]|\$\$(.*?)\$\$", re.DOTALL)
_CONCLUSION = re.compile(r"\b(?:is|are|equals?|gives|get|have|be)\b:?\s+|[=≈]\s*")
_REFUSAL = re.compile(r"(?:i'm sorry|sorry|i can(?:no|')t|i am unable|i don't|unable to)\b", re.I)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!and\b|or\b)(?:[a-z]{2}|[A-Z][a-z])")
_TAGGED = re.compile(r"<(\d{1,2})>((?:(?!</?\d{1,2}>).)*)</\1>", re.DOTALL)
_MARK = re.compile(r"(?<![\w)}\]\\^])(?:Part\s+)?\(([0-9]{1,2}|[a-h]|i{1,3}|iv|vi?)\)[:.]?")
_LINE_MARK = re.compile(r"^[ \t]*([0-9]{1,2})[.)](?=\s)", re.MULTILINE)
_NUMBERINGS = (
    tuple(map(str, range(1, MAX_PARTS + 1))),
    tuple("abcdefgh"),
    ("i", "ii", "iii", "iv", "v", "vi"),
)
_ENCLOSING = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ('"', '"'), ("`", "`"))
_LETTER_IN_BRACKETS = re.compile(
    r"\(([A-Z])\)|\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Z])\)?\.?\s*\}"
)


def extract_answer(text: str) -> str:
    r"""Finds the final answer of a response; usable as a post-processor.

    Tries in this order: the last `\boxed{...}` (or several, separated only by commas or "and");
    the text after the last "answer is" or "Answer:"; the last "option B"; the end of the last
    line; the whole response, if it is short enough to be only an answer.

    Args:
        text: A response, with or without `<think>...</think>`.

    Returns:
        The answer on one line, without enclosing characters; empty if there is none. The function
        is idempotent.
    """
    text = _final_text(text)
    while (found := _extract_once(text)) != text:
        text = found
    return text


def extract_answers(text: str, num_parts: int) -> tuple[str, ...]:
    """Finds the answers to the parts of a question.

    Args:
        text: A response.
        num_parts: Number of parts of the question.

    Returns:
        An answer for each part, empty where there is none. A single answer is assigned to the
        first part.
    """
    if num_parts == 1:
        return (extract_answer(text),)
    text = _final_text(text)
    found = dict(_tagged(text)) or dict(enumerate(_pieces(text, num_parts)))
    return tuple(extract_answer(found.get(part, "")) for part in range(num_parts))


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
    if tagged := dict(_tagged(text)):
        return tuple(clean(tagged.get(part, "")) for part in range(max(tagged) + 1))
    boxes = [content for content, _, _ in _boxes(text)]
    if len(boxes) > 1:
        return tuple(map(clean, boxes))
    for numbering in _NUMBERINGS:
        marks = _marks(text, _MARK, numbering)
        if len(marks) > 1 and not text[: marks[0].start()].strip("$ "):
            return tuple(clean(piece) for piece in _between(text, marks))
    return (clean(text),) if text else ()


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


def _final_text(response: str) -> str:
    """Removes the thoughts, and replaces full-width punctuation by ASCII."""
    return remove_thinking(response).translate(_FULL_WIDTH)


def _reference_text(answer: Any) -> str:
    is_missing = answer is None or (isinstance(answer, float) and math.isnan(answer))
    return "" if is_missing else str(answer).translate(_FULL_WIDTH).strip()


def _extract_once(text: str) -> str:
    """Returns the first candidate that is short enough to be an answer."""
    for candidate in _candidates(text):
        answer = clean(candidate)
        if answer and _is_answer(answer):
            return answer
    return ""


def _candidates(text: str) -> Iterator[str]:
    """Yields possible answers, the most reliable first."""
    yield from _boxed(text)
    text = _EMPHASIS.sub("", text)
    ends = [phrase.end() for phrase in _PHRASE.finditer(text)][-MAX_PHRASES:]
    stated = [_statement(text[end : end + 4 * MAX_CHARACTERS]) for end in reversed(ends)]
    # "The answer is 5. This answer is consistent with the figure."
    yield from sorted(stated, key=_is_plain, reverse=True)
    chosen = _CHOSEN.findall(text)
    yield from chosen[-1:]
    last_line = text.strip().rpartition("\n")[2].strip()
    if len(last_line) <= 4 * MAX_CHARACTERS:
        yield _conclusion(last_line)
        if last_line != text.strip() and _is_plain(last_line):
            yield last_line
    if "\n" not in text.strip() and not _REFUSAL.match(text.strip()):
        yield text


def _boxed(text: str) -> Iterator[str]:
    """Yields the adjacent boxes at the end, joined, then the earlier boxes."""
    boxes = _boxes(text)
    first = max(len(boxes) - 1, 0)
    while first and _BETWEEN_BOXES.fullmatch(text[boxes[first - 1][2] : boxes[first][1]][:100]):
        first -= 1
    yield ", ".join(dict.fromkeys(content.strip() for content, _, _ in boxes[first:]))
    yield from (content for content, _, _ in reversed(boxes[:first]))


def _boxes(text: str) -> list[tuple[str, int, int]]:
    """Content, start and end of each closed box, without empty boxes and boxes in boxes."""
    found: list[tuple[str, int, int]] = []
    opened: list[tuple[int, int] | None] = []
    for token in _BOX_TOKEN.finditer(text):
        if token[0] == "}":
            box = opened.pop() if opened else None
            if box is not None and (content := text[box[1] : token.start()]).strip():
                while found and found[-1][1] > box[0]:
                    found.pop()
                found.append((content, box[0], token.end()))
        elif token[0] == "{":
            opened.append(None)
        elif token[0].endswith("{") and len(token[0]) > 2:
            opened.append(token.span())
    return found


def _statement(text: str) -> str:
    """The rest of a sentence after "is", up to its end or to "because"."""
    if display := _DISPLAY.match(text):
        return display[1] or display[2]
    line = text.partition("\n")[0]
    while (shorter := _LEAD.sub("", line)) != line:
        line = shorter
    skip = 2 if re.match(r"[A-Z]\.\s", line) else 0
    for end in (_SENTENCE_END.search(line, skip), _REASON.search(line)):
        if end is not None:
            line = line[: min(end.start(), len(line))]
    return line


def _conclusion(line: str) -> str:
    """The text after the last "is" or equals sign of a line, if it is mathematics."""
    sentence = line.rstrip(".! ")
    verbs = list(_CONCLUSION.finditer(sentence))
    if not verbs or not _PROSE.search(sentence[: verbs[-1].start()]):
        return ""
    tail = sentence[verbs[-1].end() :]
    return tail if _is_plain(tail) else ""


def _is_plain(text: str) -> bool:
    """Whether a text is a letter, or a number or formula with at most three words."""
    text = clean(text)
    if re.fullmatch(r"[A-Z]|[A-Z][.)].{0,60}", text):
        return True
    return bool(re.match(r"[-+(\[$\\{√]|\d|[A-Za-z]\b", text)) and len(_WORD.findall(text)) <= 3


def _is_answer(text: str) -> bool:
    is_short = len(text) <= MAX_CHARACTERS and len(_WORD.findall(text)) <= MAX_WORDS
    return is_short and "\\boxed" not in text  # a truncated box


def _peeled(text: str) -> str:
    """Removes one layer of enclosing characters."""
    text = _EMPHASIS.sub("", text).strip()
    if not text.endswith(("\\,", "\\;", "\\.")):
        text = re.sub(r"(?<=[^.])[.,;:]$", "", text).rstrip()
    boxes = _boxes(text)
    if len(boxes) == 1 and boxes[0][1:] == (0, len(text)):
        return boxes[0][0].strip()
    for left, right in _ENCLOSING:
        inner = text[len(left) : -len(right)]
        encloses = len(text) > len(left + right) and text == left + inner + right
        if encloses and left not in inner and right not in inner:
            return inner.strip()
    letter = _LETTER_IN_BRACKETS.fullmatch(text)
    return (letter[1] or letter[2]) if letter else text


def _pieces(text: str, num_parts: int) -> list[str]:
    """Splits a text into pieces that contain the answers to the parts."""
    boxes = [content for content, _, _ in _boxes(text)]
    if len(boxes) >= num_parts:
        return boxes[-num_parts:]
    for marked in (*boxes[-1:], text):
        if sections := _sections(marked, num_parts):
            return sections
    answer = extract_answer(text)
    items = split_list(answer)
    return items if len(items) == num_parts else [answer]


def _tagged(text: str) -> Iterator[tuple[int, str]]:
    """Yields index of the part, from 0, and content of each `<1>...</1>`."""
    for tag in _TAGGED.finditer(text):
        if 1 <= int(tag[1]) <= MAX_PARTS:
            yield int(tag[1]) - 1, tag[2]


def _sections(text: str, num_parts: int) -> list[str]:
    """The last pieces of a text with the marks (1), (2), ...; empty without marks."""
    for numbering in _NUMBERINGS:
        if pieces := _between(text, _marks(text, _MARK, numbering[:num_parts])):
            return pieces
    phrases = list(_PHRASE.finditer(text))
    tail = text[phrases[-1].end() - 1 :] if phrases else ""
    return _between(tail, _marks(tail, _LINE_MARK, _NUMBERINGS[0][:num_parts]))


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
