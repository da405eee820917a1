"""What a response states as its answer, most reliable statement first."""

import re
from collections.abc import Iterator

from mathcanvas_lightning.evaluation.extraction.cleaning import (
    EMPHASIS,
    WORD,
    clean,
    without_contrast,
)
from mathcanvas_lightning.evaluation.extraction.marks import (
    MAX_CHARACTERS,
    MAX_PHRASES,
    PHRASE,
    is_plain,
    marked,
    phrased,
)
from mathcanvas_lightning.evaluation.extraction.rules import (
    CHOSEN,
    CORRECT,
    FIRST_LINE,
    GUESSED,
    LAST_SENTENCE,
    first,
    last,
)
from mathcanvas_lightning.evaluation.extraction.sentences import (
    DENIED,
    stated_value,
    stated_words,
    without_lead,
    without_trailing,
)
from mathcanvas_lightning.evaluation.extraction.values import VALUE, find_values

_CONCLUSION = re.compile(
    r"\b(?:value|total|area|length|sum|number|probability|distance|volume|perimeter|cost|price"
    r"|speed|rate|average|mean|median|score|angle|radius|amount|maximum|minimum|height|width)"
    r"\s+of\s+(?=[-\d$\\])"
    r"|\b(?:is|are|equals?|gives|yields?|get|gets|have|has|be|needs?|costs?|takes?|took|weighs?"
    r"|measures?|makes?"
    r"|leaves?|contains?|earns?|pays?|requires?|totals?|saves?|spends?|received?"
    r"|lasts?)\b:?\s+(?:(?:them|him|her|it|us|you|me)\s+)?"
    r"|\bIt's\s+|\b(?:at|after|in|within)\s+(?=\d)|[=≈]\s*|(?:等于|共有|共|为|是|得|有)\s*:?\s*"
)
_ENDING_CHINESE = re.compile(
    r"(?:^|[,;。])\s*(?:所以|因此|综上|故|答|则|即|那么|于是|从而|由此|可见|∴)[^\d]{0,60}?"
    r"(-?\d[\d,./]*\s*[^\s\d,.;。，；]{0,10}?)[.。]?$"
    r"|[,;。]\s*[^\d,;。]{0,10}(?:共|剩|需要|还有|比[^\d,]{1,6}[多少])[^\d,]{0,4}"
    r"(\d[\d./]*[^\s\d,.;。，；]{0,6})[.。]?$"
)
_REMAINDER = re.compile(r"((?:每|平均)[^,\d]*\d[^,\d]*),\s*还?[剩余][^,]*$")
MIN_WORDS = 4
"""A text with fewer words is no sentence."""
_CLAUSE = re.compile(r"[^\d$]{1,30}?(-?\d[\d./]*[^\s\d,;。，；是为]{0,6})[.。]?")
_LAST_DISPLAY = re.compile(
    r"(?:\\\[((?:(?!\\\[).)*)\\\]|\$\$((?:(?!\$\$).)*)\$\$)[.\s]*$", re.DOTALL
)
_SEGMENT = r"(?:\$[^$\n]{1,80}\$|\\\([^\n]{1,80}?\\\)|[A-Za-z]\w?\s*=\s*[^\s,$;或和且]{1,40})"
_SEGMENTS = re.compile(
    rf"{_SEGMENT}(?:(?:\s*[,;])?\s*(?:and|or|,|;|或|和|且)\s*{_SEGMENT})+(?=[.!\s]*$)"
)
_CLOSING = re.compile(
    r"\s*(?:[-*_]{3,}|#+|(?:\W{0,4}(?:let me know|feel free|i hope|hope this|if you|please let"
    r"|is there any|would you|do you|this (?:is|was) (?:a |my )|happy to|good luck|great question)"
    r"|希望|如果|如有|欢迎).*)\s*",
    re.IGNORECASE,
)
"""Last lines that only say goodbye."""
_CHECK = re.compile(
    r"\n\W{0,4}(?:(?:double|sanity)[- ])?(?:check(?:ing)?|verif(?:y|ying|ication)|验证|检验)\b"
    r"[^\n:]{0,30}:(?:(?!\n\W{0,4}(?:so|thus|hence|therefore|final|answer|conclusion|result|total"
    r"|所以|因此|综上|答)).){0,600}\Z",
    re.IGNORECASE | re.DOTALL,
)
"""A check of the answer at the end, without another conclusion."""
_ENDS_IN_FORMULA = re.compile(
    r"(?:\b(?:is|are|be|equals?|gives?|becomes?|get|obtain|have|equation|function|formula)"
    r"|[为是得]):?\s*(?:\$([^$]+)\$|\\\(([^$]+)\\\))$"
)
_REFUSAL = re.compile(r"(?:i'm sorry|sorry|i can(?:no|')t|i am unable|i don't|unable to)\b", re.I)
_PROSE = re.compile(r"(?<![\\A-Za-z{])(?!and\b|or\b)(?:[a-z]{2}|[A-Z][a-z])|[一-鿿]")


def candidates(text: str) -> Iterator[str]:
    """Yields possible answers, the most reliable first.

    Args:
        text: A response without thoughts.
    """
    text = without_contrast(text)
    found = sorted(marked(text), key=lambda one: one.start)
    yield from (one.text for one in reversed(found[-MAX_PHRASES:]))
    plain = EMPHASIS.sub("", text)
    yield from (phrased(plain, one) for one in reversed([*PHRASE.finditer(plain)][-MAX_PHRASES:]))
    yield last(CORRECT, plain)
    yield last(CHOSEN, plain).upper()
    yield last(GUESSED, plain).upper()
    yield first(FIRST_LINE, plain)
    plain = _without_closing(plain)
    last_line = _REMAINDER.sub(r"\1", plain.strip().rpartition("\n")[2].strip())
    if len(last_line) <= 4 * MAX_CHARACTERS:
        yield stated_value(last_line)
        yield stated_words(last_line)
        yield from _last_line(last_line)
        if display := _LAST_DISPLAY.search(plain[-4 * MAX_CHARACTERS :]):
            yield display[1] or display[2]
        yield _conclusion(last_line)
        if ending := _ENDING_CHINESE.search(last_line):
            yield ending[1] or ending[2]
        if last_line != plain.strip() and is_plain(last_line):
            yield last_line
        yield _only_value(last_line)
    if "\n" not in plain.strip() and not _REFUSAL.match(plain.strip()):
        yield without_lead(plain.strip())


def _last_line(line: str) -> Iterator[str]:
    """Yields results in the forms that last lines have, the most reliable first."""
    if segments := _SEGMENTS.search(line):
        yield segments[0]
    sentence = (
        re.split(r"(?<=[a-z0-9)$][.!?])\s+(?=[A-Z$*])", line)[-1].rstrip(".! ").lstrip("#*> ")
    )
    sentence = re.sub(r"^[-•]\s+(?=[A-Za-z])", "", sentence)
    yield first(LAST_SENTENCE, sentence.rstrip("。 "))
    if not re.match("所以|因此|综上|故|答|∴", line):
        return
    pieces = [one.strip() for one in re.split(r"[,，;；](?![^()]*\))", line)]
    clauses = [_CLAUSE.fullmatch(one) for one in pieces]
    clauses = clauses if clauses[0] else clauses[1:]
    if len(clauses) > 1 and all(clauses):
        yield ", ".join(one[1] for one in clauses if one)


def _only_value(line: str) -> str:
    """The value in a sentence that states no other: "They sold 48 more books on Friday"."""
    values = find_values(line)
    num_words = len(WORD.findall(VALUE.sub("", line))) + len(re.findall("[一-鿿]{2}", line))
    is_clear = len(values) == 1 and num_words >= MIN_WORDS and not DENIED.search(line)
    return values[0][0] if is_clear else ""


def _without_closing(text: str) -> str:
    lines = _CHECK.sub("", text.rstrip()).split("\n")
    while len(lines) > 1 and _CLOSING.fullmatch(lines[-1] or "---"):
        lines.pop()
    return "\n".join(lines)


def _conclusion(line: str) -> str:
    """The text after the last "is" or equals sign of a line, if it is mathematics."""
    sentence = without_trailing(clean(line).rstrip(".! "))
    if formula := _ENDS_IN_FORMULA.search(sentence):
        return formula[1] or formula[2]
    verbs = list(_CONCLUSION.finditer(sentence))
    if not verbs or not _PROSE.search(sentence[: verbs[-1].end()]):
        return ""
    tail = re.sub(r"^either\s+", "", sentence[verbs[-1].end() :])
    is_outside = sentence[: verbs[-1].start()].count("$") % 2 == 0
    if len(verbs) > 1 and "≈" in verbs[-1][0] and is_outside:
        tail = sentence[verbs[-2].end() :]
    tail = tail if tail.count("$") % 2 == 0 or tail.startswith("$") else tail.replace("$", " ")
    return tail if is_plain(tail) else ""
