"""What a response states as its answer, most reliable statement first."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.evaluation.extraction.cleaning import EMPHASIS, Box, clean, find_boxes
from mathcanvas_lightning.evaluation.extraction.sentences import (
    stated_value,
    stated_words,
    without_lead,
)

MAX_CHARACTERS = 300
MAX_PHRASES = 20
"""Number of phrases such as "answer is" that are tried, from the end."""

PHRASE = re.compile(
    r"(?:\b(?:answers?|ans)\b\.?"
    r"(?:\s+(?:to|for|of)\b[^\n.:=]{0,100}?)?"
    r"(?:\s*\b(?:is|are|would\ be|should\ be|must\ be|will\ be)\b\s+not\b[^\n.]{1,40}?\bbut\s"
    r"|\s*\b(?:is|are|would\ be|should\ be|must\ be|will\ be)\b(?!\s+not\b)\s*:?|\s*[:=]"
    r"|\s*\n|\s+(?=\(?(?-i:[A-Z])\)?(?!\w)))\s*"
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
_TAG = re.compile(r"<answer>(.{1,2000}?)</answer>", re.DOTALL | re.IGNORECASE)
_HASHES = re.compile(r"^#{4}[ \t]*(\S.{0,200}?)[ \t]*$", re.MULTILINE)
_LETTER = r"(?:\(([A-Za-z])\)|([A-Z])(?![\w'])\)?)"
_CHOSEN = re.compile(
    rf"\b(?:[Oo]ption|[Cc]hoice|[Cc]hoose|[Ss]elect|[Pp]ick)\b(?:\s+(?:is|option|choice))?\s*:?\s*"
    rf"{_LETTER}(?!\s+(?:(?:is|are|was)\s+(?:not|in|wrong|false)|would\b|could\b|isn't|can't))"
)
_CORRECT = re.compile(
    r"\b((?:\(?[A-H]\)?(?:\s*(?:,|&|\band\b)\s*)*)+)\s*(?:is|are|must be)\s+"
    r"(?:the\s+|both\s+|all\s+)?(?:correct|right|true)\b"
    r"|\b([A-H])\s+(?:is\s+the\s+only|(?:must|has\s+to|would)\s+be\s+(?:the|our)\s+)"
    r"|\bonly\s+(?:option\s+|choice\s+)?\(?([A-H])\)?\s+"
    r"(?:satisf|match|is\b|works|fits|meets|holds|can\b)"
    r"|((?:[①-⑳][、,和]?\s?){1,10})(?:都)?(?:是)?正确|选项\s*([A-H])\s*(?:是)?正确"
    r"|\b(?:statements?|conclusions?|propositions?)\s+((?:\(?(?:\b(?:[ivx]+|[IVX]+|\d)\b|[①-⑳])\)?"
    r"(?:\s*(?:,|&|\band\b)\s*)*)+)\s+(?:is|are)\s+(?:correct|true|right)"
)
_GUESS = re.compile(
    r"\b(?:I\s+guess|I\s+think|it\s+is|it's|it\s+must\s+be|I(?:'d|\s+would)\s+(?:say|choose"
    r"|pick)|go\s+with|going\s+with|goes\s+with)\s+"
    r"(?:option\s+|choice\s+)?\(?([A-H])\)?(?=[.!]?\s*(?:\n|$))",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"^(?:(?:therefore|thus|hence|so|approximately|approx\.?|about|roughly|around|nearly|equal to"
    r"|given by|the letter|the number|either|simply|just|exactly|clearly|now|then"
    r"|(?:option|choice)(?!\s*\d)"
    r"|约为?|大约)(?![A-Za-z])"
    r"[\s,:]*|[:=]\s*)",
    re.IGNORECASE,
)
_REASON = re.compile(r",?\s+(?:because|since|which|where|so that|as)\s", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<!\.)[.!?](?=\s|$)|;(?=\s+[A-Za-z]{2,}\s)|,\s(?=not\s)")
_FACTORIAL = re.compile(r"(?<=[\dA-Za-z)])!(?=$)")
_DISPLAY = re.compile(r"\\\[(.*?)\\\]|\$\$(.*?)\$\$", re.DOTALL)
_LETTER_AND_TEXT = re.compile(r"(\(?[A-Z]\)?)[.,:]\s+(?=\S)")
_PROSE_AHEAD = re.compile(
    r"(?:options?|note|since|because|choices?|this|that|the other|however|we|it)\b", re.I
)
_CONCLUSION = re.compile(
    r"\b(?:value|total|area|length|sum|number|probability|distance|volume|perimeter|cost|price"
    r"|speed|rate|average|mean|median|score|angle|radius|amount|maximum|minimum|height|width)"
    r"\s+of\s+(?=[-\d$\\])"
    r"|\b(?:is|are|equals?|gives|get|gets|have|has|be|needs?|costs?|takes?|took|weighs?"
    r"|measures?|makes?"
    r"|leaves?|contains?|earns?|pays?|requires?|totals?|saves?|spends?|received?"
    r"|lasts?)\b:?\s+(?:(?:them|him|her|it|us|you|me)\s+)?"
    r"|\bIt's\s+|\b(?:at|after|in|within)\s+(?=\d)|[=≈]\s*|(?:等于|共有|共|为|是|得|有)\s*:?\s*"
)
_BEHIND = re.compile(
    r"\s(?:in|on|of|for|from|that|left|altogether|to|who|which|in total|more|with|as|works)\b.*"
)
_ENDING_CHINESE = re.compile(
    r"(?:所以|因此|综上|故|答|则|那么|于是|从而|∴)[^\d]{0,60}?"
    r"(-?\d[\d,./]*\s*[^\s\d,.;。，；]{0,10}?)[.。]?"
)
_NAMED = re.compile(
    r"(?![A-Za-z]*[a-z]{3})[A-Za-z∠△°_0-9()]{1,8}\s*=\s*[^=]{1,60}"
    r"|[A-Z][A-Za-z ]{1,40}:\s*(\S.{0,60})"
)
_NO_RESULT = re.compile(
    r"(?:confidence|note|check|verification|explanation|reason|reasoning|time|difficulty|source"
    r"|step|hint|score|page|method"
    r"|given)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(
    r"\s(?:when|where|if|for|at|with|occurring at)\s[^=,]{0,30}=[^=,]*$"
    r"|,?\s(?:where|since|because|provided|given that|attained|achieved|reached|occurring)\s.*$"
    r"|\s\((?!mod)[a-z]{3,}[^()]*\)$"
)
_FIGURE = re.compile(
    r"\b(?:piece|figure|graph|shape|diagram|picture|net|image|cube|tile)\s+\(?([A-H])\)?"
    r"(?:\s+(?:shows|is|represents|matches|completes|fits)\s.*\b(?:correct|missing|answer"
    r"|right)\b.*)?$",
    re.IGNORECASE,
)
_CHINESE_END = re.compile(
    r"([A-Za-z]\s*=\s*[^\s,，是]+)是(?:原)?(?:分式)?方程的(?:解|根)$"
    r"|(?:方程|解析式|表达式|关系式|公式)[为是:]\s*([^一-鿿$]{3,})$"
    r"|(?:(?:所以|因此|故|答).{0,30}|^.{0,9}(?:说法|结论|命题|判断|图形|关系))是(?:一[个条种])?([一-鿿]{2,8}?)的?$"
    r"|^(?:所以|因此|故|答\s*:)\s*([一-鿿]{2,3}?)(?<!的)(?:最?先|最[多少快慢高大小]|跑得|获胜|赢)(?![的值])"
    r"|(?:说法|结论|命题|判断)(?:是)?(不?正确|错误|不?对|不?成立)的?$"
    r"|第(\d+)[名个位]?$|(垂直|平行|相等|全等|相似|相切|相交|相离|重合)$|在(第[一二三四]象限)$|^答\s*:\s*([^\s,，\d]{1,8})$"
    r"|(无解|无实数解|无实数根|没有解|不存在|不成立|成立)$"
)
_REMAINDER = re.compile(r"((?:每|平均)[^,\d]*\d[^,\d]*),\s*还?[剩余][^,]*$")
_PIECE = re.compile(
    r"\$[^$]+\$|\\\(.+?\\\)|[(\[][^()\[\]]*,[^()\[\]]*[)\]]"
    r"|(?<![\w.])[-−]?\\?\$?\d[\d,]*(?:\.\d+)?(?:/\d+)?(?:\s?[A-Za-z°%/²³^]+)?"
)
_VALUE_SIGN = re.compile(r"\d|[(\[<>=]|\\pi|\\infty")
_NAME_PIECE = re.compile(r"\b(?:(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|SSS|SAS|ASA|AAS|HL)\b")
MIN_WORDS = 4
"""A text with fewer words is no sentence."""
_DENIED = re.compile(r"\b(?:not|no|never|cannot|isn't|aren't|doesn't|can't)\b", re.IGNORECASE)
_CHINESE_LEAD = re.compile(
    r"^(?:综上(?:所述)?|所以|因此|故|即|解得|∴)[,，:]?\s*([^一-鿿]+(?:[或和且][^一-鿿]+)*)$"
)
_LETTER_BEHIND = re.compile(r"(?:the )?[a-z ]+,\s*\(?([A-H])\)?[.]?$")
_LEFT_WITH = re.compile(
    r"\b(?:left with|leaves|leaving)\s+(?:only\s+)?(?:option\s+)?\(?([A-H])\)?$"
)
_OF_THE = re.compile(r"(\$[^$]+\$)\s+(?:of|in|for)\s+(?:the|a|an|all|its|their)\b.*$")
_FIRST_LINE = re.compile(
    r"\s*[*_#\s]*(?:\(?([A-H]|[Yy]es|[Nn]o|[Tt]rue|[Ff]alse)\)?[.)]?[*_\s]*(?:\n|$)"
    r"|(Yes|No|True|False)\.\s+(?=[A-Z])|([A-H]),?\s+(?:since|because|as)\b)"
)
_PHRASE_END = re.compile(
    r"(?:\b(?:is|are)\s+|^)((?:all (?:real )?numbers|all reals|no (?:real |integer )?solutions?"
    r"|undefined)\b.{0,60})|\b(does not exist|doesn't exist)$"
)
_CLAUSE = re.compile(r"[^\d$]{1,30}?(-?\d[\d./]*[^\s\d,;。，；是为]{0,6})[.。]?")
_LAST_DISPLAY = re.compile(
    r"(?:\\\[((?:(?!\\\[).)*)\\\]|\$\$((?:(?!\$\$).)*)\$\$)[.\s]*$", re.DOTALL
)
_ID_EST = re.compile(
    r",?\s+(?:i\.e\.,?|that is,?|namely,?|which is|(?:or )?equivalently,?)\s+(?=[-\d\\$√π])"
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
_ENDS_IN_FORMULA = re.compile(
    r"(?:\b(?:is|are|be|equals?|gives?|becomes?|get|obtain|have|equation|function|formula)"
    r"|[为是得]):?\s*(?:\$([^$]+)\$|\\\(([^$]+)\\\))$"
)
_REFUSAL = re.compile(r"(?:i'm sorry|sorry|i can(?:no|')t|i am unable|i don't|unable to)\b", re.I)
_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
_PROSE = re.compile(r"(?<![\\A-Za-z{])(?!and\b|or\b)(?:[a-z]{2}|[A-Z][a-z])|[一-鿿]")
_BETWEEN_BOXES = re.compile(
    r"(?:[\s$,;.&*()\[\]\\]|\\text\{|\}|\\q?quad|\band\b|\bor\b"
    r"|[A-Za-z]\s*=)*"
)


@dataclass(frozen=True, slots=True)
class Marked:
    """An answer with a mark: a box, a tag, a phrase."""

    text: str
    start: int


def candidates(text: str) -> Iterator[str]:
    """Yields possible answers, the most reliable first.

    Args:
        text: A response without thoughts.
    """
    marked = sorted(_marked(text), key=lambda one: one.start)
    yield from (one.text for one in reversed(marked[-MAX_PHRASES:]))
    plain = EMPHASIS.sub("", text)
    yield from (_stated(plain, one) for one in reversed([*PHRASE.finditer(plain)][-MAX_PHRASES:]))
    yield from _chosen(plain)
    if first := _FIRST_LINE.match(plain):
        yield next(filter(None, first.groups()))
    plain = _without_closing(plain)
    last_line = _REMAINDER.sub(r"\1", plain.strip().rpartition("\n")[2].strip())
    if len(last_line) <= 4 * MAX_CHARACTERS:
        yield stated_value(last_line)
        yield stated_words(last_line)
        yield from _last_line(last_line)
        if display := _LAST_DISPLAY.search(plain[-4 * MAX_CHARACTERS :]):
            yield display[1] or display[2]
        yield _conclusion(last_line)
        if ending := _ENDING_CHINESE.fullmatch(last_line):
            yield ending[1]
        if last_line != plain.strip() and is_plain(last_line):
            yield last_line
        yield _only_value(last_line)
    if "\n" not in plain.strip() and not _REFUSAL.match(plain.strip()):
        yield without_lead(plain.strip())


def statement(text: str, *, is_line: bool = False) -> str:
    """The rest of a sentence after "is", up to its end or to "because".

    Args:
        text: The text after a phrase such as "the answer is".
        is_line: Whether it follows "Answer:"; an exclamation mark is a factorial then.
    """
    if display := _DISPLAY.match(text):
        return display[1] or display[2]
    line = _ID_EST.sub(" ≈ ", text.lstrip("*_ ").partition("\n")[0])
    while (shorter := _LEAD.sub("", line)) != line:
        line = shorter
    if meant := re.match(r"\(?([A-H])\)?\s*≈", line):
        return meant[1]
    if part := _OF_THE.match(line) or _LETTER_BEHIND.match(line):
        return part[1]
    letter = _LETTER_AND_TEXT.match(line)
    if letter and line[letter.end()].isalpha() and _is_prose(line, letter.end()):
        return letter[1]
    if is_line and _FACTORIAL.search(line.rstrip()):
        return line
    skip = letter.end() if letter and letter[0][-2] != "," else 0
    for end in (_SENTENCE_END.search(line, skip), _REASON.search(line)):
        if end is not None:
            line = line[: min(end.start(), len(line))]
    return re.sub(r"\s(?:itself|again|too)$", "", line)


def _is_prose(line: str, start: int) -> bool:
    return len(_WORD.findall(line)) > 6 or _PROSE_AHEAD.match(line, start) is not None


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
    return bool(begins) and len(_WORD.findall(re.sub(r"\\text\{([^{}]*)\}", "", text))) <= 3


def _marked(text: str) -> Iterator[Marked]:
    """Yields boxes, tags, and phrases with a plain answer, unsorted."""
    yield from _box_groups(text)
    yield from (Marked(tag[1], tag.start()) for tag in _TAG.finditer(text))
    for one in _HASHES.finditer(text):
        if is_plain(one[1]) or not text[one.end() :].strip():
            yield Marked(one[1], one.start())
    for found in _JSON.finditer(text):
        yield Marked(_json_text(found[1]), found.start())
    for phrase in [*PHRASE.finditer(text)][-MAX_PHRASES:]:
        stated = EMPHASIS.sub("", _stated(text, phrase))
        if is_plain(stated) and not find_boxes(stated):
            yield Marked(stated, phrase.start())


def _stated(text: str, phrase: re.Match[str]) -> str:
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


def _chosen(text: str) -> Iterator[str]:
    """Yields letters that a sentence calls correct, or chooses."""
    if correct := ["".join(filter(None, one.groups())) for one in _CORRECT.finditer(text)]:
        yield correct[-1].strip(" ,&")
    chosen = ["".join(filter(None, one.groups())).upper() for one in _CHOSEN.finditer(text)]
    yield from chosen[-1:]
    guesses = _GUESS.findall(text)
    yield from (letter.upper() for letter in guesses[-1:])


def _last_line(line: str) -> Iterator[str]:
    """Yields results in the forms that last lines have, the most reliable first."""
    if segments := _SEGMENTS.search(line):
        yield segments[0]
    sentence = (
        re.split(r"(?<=[a-z0-9)$][.!?])\s+(?=[A-Z$*])", line)[-1].rstrip(".! ").lstrip("#*> ")
    )
    if (named := _NAMED.fullmatch(sentence)) and not _NO_RESULT.match(sentence):
        yield named[1] or named[0]
    for pattern in (_FIGURE, _CHINESE_END, _LEFT_WITH, _CHINESE_LEAD):
        if found := pattern.search(sentence.rstrip("。 ")):
            yield next(filter(None, found.groups()))
    if phrase := _PHRASE_END.search(sentence):
        yield phrase[1] or phrase[2]
    if not re.match("所以|因此|综上|故|答|∴", line):
        return
    pieces = [one.strip() for one in re.split(r"[,，;；](?![^()]*\))", line)]
    clauses = [_CLAUSE.fullmatch(one) for one in pieces]
    clauses = clauses if clauses[0] else clauses[1:]
    if len(clauses) > 1 and all(clauses):
        yield ", ".join(one[1] for one in clauses if one)


def _only_value(line: str) -> str:
    """The value in a sentence that states no other: "They sold 48 more books on Friday"."""
    num_words = len(_WORD.findall(_PIECE.sub("", line))) + len(re.findall("[一-鿿]{2}", line))
    if num_words < MIN_WORDS or _DENIED.search(line):
        return ""
    pieces = [one for one in _PIECE.findall(line.rstrip(".! ")) if _VALUE_SIGN.search(one)]
    pieces = pieces or _NAME_PIECE.findall(line)
    return _BEHIND.sub("", pieces[0]) if len(pieces) == 1 else ""


def _without_closing(text: str) -> str:
    lines = text.rstrip().split("\n")
    while len(lines) > 1 and _CLOSING.fullmatch(lines[-1] or "---"):
        lines.pop()
    return "\n".join(lines)


def _conclusion(line: str) -> str:
    """The text after the last "is" or equals sign of a line, if it is mathematics."""
    sentence = _CONDITION.sub("", clean(line).rstrip(".! "))
    if formula := _ENDS_IN_FORMULA.search(sentence):
        return formula[1] or formula[2]
    verbs = list(_CONCLUSION.finditer(sentence))
    if not verbs or not _PROSE.search(sentence[: verbs[-1].end()]):
        return ""
    tail = re.sub(r"^either\s+", "", sentence[verbs[-1].end() :])
    is_outside = sentence[: verbs[-1].start()].count("$") % 2 == 0
    if len(verbs) > 1 and "≈" in verbs[-1][0] and is_outside:
        tail = sentence[verbs[-2].end() :]
    if re.match(r"\\?[$-]?\d", tail):
        tail = _BEHIND.sub("", tail)  # 15 students in the class
    tail = tail if tail.count("$") % 2 == 0 or tail.startswith("$") else tail.replace("$", " ")
    return tail if is_plain(tail) else ""
