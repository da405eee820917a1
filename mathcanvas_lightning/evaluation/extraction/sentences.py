"""The value that a sentence without a mark states: "So the ladder reaches 12 feet up the wall".

A sentence is reduced to its main clause. The value after its last verb counts before one in its
subject, and both before one behind a preposition ("in four weeks"). Coordinated values are a list.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from mathcanvas_lightning.evaluation.extraction.cleaning import WORD
from mathcanvas_lightning.evaluation.extraction.rules import (
    LINE,
    NAMED,
    PREDICATES,
    VALUES,
    first,
)
from mathcanvas_lightning.evaluation.extraction.values import (
    MONEY,
    VALUE,
    find_values,
    mark_prices,
    number_words,
)

MIN_WORDS = 3
"""A text with fewer words outside its values is no sentence."""

_CHINESE = re.compile("[一-鿿]")
_SENTENCE_END = re.compile(
    r"(?<=[\w)$\]%°}²³*\"'])(?<![ap]\.m)(?<!i\.e)(?<!approx)(?<!vs)[.!?]\s+(?=[A-Z$\\(*])"
    r"|[。!?]\s*(?=.)"
)
_ASIDE = re.compile(
    r"(?:note|remember|recall|(?:double[- ])?check(?:ing)?|verif\w+|notice|observe|let me|feel free"
    r"|i hope|hope|please|thanks?|good|great|perfect|nice)\b"
    r"|if you (?:have|need|want)\b.*\b(?:questions?|help|details?)\b"
    r"|.*\b(?:reject|discard|extraneous|ignore|exclude)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:[^\w$\\(\[]*(?:so|thus|hence|therefore|then|and|but|now|finally|however|consequently"
    r"|accordingly|ultimately|overall"
    r"|in total|altogether|in conclusion|in other words|as a result|that is|indeed|in summary"
    r"|this (?:means|implies|shows|tells us)|that (?:means|implies|shows)|it follows"
    r"|(?:we|i|you|one)\s+(?:can\s+)?(?:then\s+|thus\s+|also\s+)?(?:conclude|see|find|found|know"
    r"|deduce|get|have|obtain))\b(?:\s+that\b)?[,:]?\s*)+",
    re.IGNORECASE,
)
_RESULT = re.compile(
    r"(?:[,;]|\.{3}|…|—)\s*(?:and\s+)?(?:so|thus|hence|therefore|whence|which (?:means|implies"
    r"|gives|gives us"
    r"|makes|leaves|is)|meaning|giving(?: us)?|making|leaving|yielding|for a total of"
    r"|a (?:difference|total|sum) of|i\.e\.,?"
    r"|that is,?|or(?=\s\d[\d,.]*\s[a-z]+$))(?:\s+that\b)?[,:]?\s+",
    re.IGNORECASE,
)
_ADVERBIAL = re.compile(
    r"(?:since|because|as|if|when|while|after|before|by|from|in|on|at|for|with|without|using|to"
    r"|of|out of|based on"
    r"|according to|given|rounded|compared|once|among|between|under|during|assuming|let|[a-z]+ing)"
    r"\b",
    re.IGNORECASE,
)
_TRAILING = re.compile(
    r",?\s+(?:because|since|where|when|while|if|provided|assuming|given that|instead of|rather than"
    r"|by the time|compared (?:to|with)|than|before|which|who|as(?!\s[-\d$\\(])|unlike|so that"
    r"|attained|achieved|occurring|with\s+\S+\s+(?:\w+\s+)?(?:left|remaining|to spare)"
    r"|not counting|excluding|and not"
    r"|to (?:get|make|form|obtain|reach|have|cover|fill|build|cut|win|finish|buy|complete)"
    r"(?=\s[^,]*\d))\b.*$"
    r"|,\snot\s[^,:]*$|[;,]\s(?:and\s)?the\s(?:others?|rest|remaining)\b.*$"
)
_PARENTHESIS = re.compile(r"\s*\((?=[a-z]{2})(?!mod)[^()]*\)")
_OF = re.compile(r"\b(?:equation|line|circle|parabola|ellipse|hyperbola|function|curve|plane)s?\b"
                 r"|方程|直线|圆|抛物线|解析式|关系式", re.IGNORECASE)  # fmt: skip
_VERB = re.compile(
    r"(?:\b(?:is|are|was|were|be|been|equals?|gives?|gets?|got|have|has|had|needs?|costs?|takes?"
    r"|took"
    r"|weighs?|measures?|makes?|leaves?|contains?|earns?|pays?|paid|requires?|totals?|saves?"
    r"|spends?|spent|receives?|received|lasts?|shows?|reads?|represents?|becomes?|remains?"
    r"|reach(?:es|ed)?|sold|sells?|bought|buys?|eats?|ate|find|found|obtain|yields?"
    r"|divides|produces?|puts|ends\sup|lands|owes?|uses?|covers?|travels?|(?:simplifies|comes|reduces|evaluates"
    r"|adds up"
    r"|amounts|equal) to)\b"
    r"|\b(?:It|That|There|it|that|there)['’]s)(?=[\s:])"
)
_ADJUNCT = re.compile(
    r"(?:\bbetween\s[^,]*\sand\s|\bfrom\s[^,]*\sto\s"
    r"|\b(?:in|on|for|at|after|with|from|by|during|within|over|before|until|every|past|between"
    r"|among"
    r"|than|per|through|around)\s(?:(?:the|a|an|all|about|only|just|each|these|its|points?"
    r"|intervals?|every"
    r"|x|first|last|exactly|both)\s)*)$",
    re.IGNORECASE,
)
_CHANGED = re.compile(
    r"\b(?:\w+creased?s?|dropped|drops|rose|rises|fell|falls|grew|grows|changed?s?|exceeds"
    r"|[a-z]{3,}er)\sby\s"
    r"(?:(?:about|exactly|approximately)\s)?$"
)
_PLACED = re.compile(r"\b(?:puts\s\w+|ends?\sup|lands|arrives?)\sat\s(?:the\spoint\s)?$")
_COMPARED = re.compile(r"\b(?:for|of)\sall\s([a-z])\s(greater|less)\sthan\s(?=\S)")
_JOINED = re.compile(r"[,;&]|\b(?:and|or|but|while)\b")
_WITH = re.compile(
    r"\s(?:and\s)?with\s(?:an?\s)?(?:radius|cent(?:er|re)|slope|length|width|height|remainder)\s(?:of\s)?"
)
_PLAIN_GAP = re.compile(r"\s*(?:[,;&]|\band\b|\bor\b|\bto\b|\bby\b|\s)*\s*")
_LIST_GAP = re.compile(r"\s*(?:[,;&]|\band\b|\bor\b|\bthen\b|\s)+\s*")
_RATIO_GAP = re.compile(r"\s(?:to|by|x)\s")
_AND = re.compile(r"[,;]?\s(?:and|or|while|but)\s(?:that\s)?|[,;]\s(?=(?:the|its|their)\s)")
_MOVED = re.compile(
    r"\b(?:maps?|mapped|moves?|moved|sends?|goes|changes?d?|increases?d?|decreases?d?|rises?"
    r"|drops?)\b"
)
_WHERE = re.compile(r"^.*\b[a-z]\([a-z]\)\s*[<>≤≥]\s*0\s(?:when|for|if|on)\s")
_IT_IS = re.compile(r"(?:so|thus|hence|therefore)?,?\s*(?:it|that)(?:'s|\sis)\s", re.IGNORECASE)
DENIED = re.compile(
    r"\b(?:not(?!\s(?:defined|differentiable|continuous)\b)|never"
    r"|cannot)\b(?![^,]*\bbut\b)|n't\b"
)
_REJECTED = re.compile(
    r"\s(?:(?:does|do|did|is|are|was|were|would|will|could)(?:\snot|n['’]t)|can(?:not|['’]t|\snot)"
    r"|fails?|(?:is|are|would\sbe)\s(?:impossible|invalid|wrong|too|extraneous|rejected|excluded))\b"
)
"""What follows a value that is no answer: 4 does not work."""
_ALMOST = re.compile(
    r"\s?[,(]\s?(?:or\s|which\sis\s)?(?:about|approx(?:\.|imately)?|roughly|nearly)\s"
)
_DECISION = re.compile(r"(?:yes|no|true|false)\b(?!\s+(?:such|solution))", re.IGNORECASE)
_EQUAL = re.compile(r"(.*[^<>≤≥≠=])=\s*([^=<>≤≥]+)", re.DOTALL)


def stated_value(line: str) -> str:
    """Finds the value that the last sentence of a text states.

    Args:
        line: The last line of a response, without emphasis.

    Returns:
        The value or a list of values; empty if the sentence has none.
    """
    text = re.sub(r"(\d+) and (\d+/\d+)(?=\s[a-z]{3})", r"\1 \2", mark_prices(line))
    is_clear = _IT_IS.match(text) or _WHERE.match(text)
    is_short = not is_clear and len(WORD.findall(VALUE.sub("", text))) < MIN_WORDS
    if is_short or _CHINESE.search(text):
        return ""
    text = _COMPARED.sub(lambda one: f"{one[1]} {'>' if one[2] == 'greater' else '<'} ", text)
    text = re.sub(r"(?<=\d) to the power (?:of )?(?=\d)", "^", text)
    text = _ALMOST.sub(" ≈ ", text)
    if stated := first(LINE, text):
        return _as_fraction(stated.replace(MONEY, "$"))
    for sentence in reversed(_SENTENCE_END.split(text)):
        sentence = sentence.strip(" .!*#>")
        if sentence and not _ASIDE.match(without_lead(_PARENTHESIS.sub("", sentence))):
            return _as_fraction(_of_clause(main_clause(sentence)).replace(MONEY, "$"))
    return ""


def stated_words(line: str) -> str:
    """Finds the words that the last sentence of a text says of its subject, or the one it names.

    Args:
        line: The last line of a response, without emphasis.

    Returns:
        "isosceles" of "So the triangle is isosceles"; "Emma" of "Emma finishes first"; empty if the
        sentence says nothing in a few words.
    """
    sentence = _SENTENCE_END.split(line)[-1].strip(" .!*#>")
    sentence = re.sub(r"\b([Tt]hey|[Ii]t|[Tt]hat)['’](re|s)\b", r"\1 is", sentence)
    if _CHINESE.search(line) or _DECISION.match(sentence) or re.match(r"\(?[A-H][.):]", line):
        return ""
    clause = main_clause(sentence)
    if named := first(NAMED, clause):
        return named
    clause = re.sub(r"\s(?:with|having)\s.*", "", clause)
    is_denied = DENIED.search(clause) or re.match(r"no\s", clause, re.IGNORECASE)
    return "" if is_denied else first(PREDICATES, clause)


def _as_fraction(value: str) -> str:
    """Writes a chance as a fraction: 3 out of 8."""
    return re.sub(r"^(\d+)\s(?:in|out\sof)\s(?:every\s)?(\d+)$", r"\1/\2", value)


def main_clause(sentence: str) -> str:
    """Reduces a sentence to the clause that states its result.

    Args:
        sentence: A sentence without its full stop.
    """
    if results := [one for one in _RESULT.finditer(sentence) if _is_outside(sentence, one.start())]:
        sentence = sentence[results[-1].end() :]
    clause = without_lead(_WHERE.sub("", sentence))
    while _ADVERBIAL.match(clause) and (end := _clause_end(clause)):
        clause = without_lead(clause[end:])
    return without_trailing(clause)


def without_trailing(clause: str) -> str:
    """Removes conditions, reasons and remarks behind the value of a clause, if it has one before.

    Args:
        clause: A clause.
    """
    shorter = _TRAILING.sub("", _PARENTHESIS.sub("", clause))
    return shorter if find_values(shorter) or not find_values(clause) else clause


def without_lead(clause: str) -> str:
    """Removes words such as "therefore" and "we see that" from the beginning of a clause.

    Args:
        clause: A clause.
    """
    lead = _LEAD.match(clause)
    rest = clause[lead.end() :] if lead else clause
    return rest if rest.strip() else clause


def _is_outside(text: str, position: int) -> bool:
    """Whether a position is in no formula and in no brackets."""
    before = text[:position]
    return before.count("$") % 2 == 0 and before.count("(") == before.count(")")


def _clause_end(clause: str) -> int:
    """The end of the first comma that no number, formula or bracket holds; 0 without one."""
    for comma in re.finditer(r",\s+(?!and\b|or\b)", clause):
        if _is_outside(clause, comma.start()) and len(clause) > comma.end() + 3:
            return comma.end()
    return 0


def _of_clause(clause: str) -> str:
    if named := first(VALUES, clause):
        return named
    parts = [_of_clause(one) for one in _AND.split(clause)] if _are_clauses(clause) else []
    if parts:
        return ", ".join(parts)
    values = [
        one
        for one in find_values(clause) or number_words(clause)
        if not (DENIED.search(clause[: one.start()]) or _REJECTED.match(clause, one.end()))
    ]
    if _MOVED.search(clause):  # from the first value to the second
        values = [one for one in values if not clause[one.end() :].startswith(" to ")]
    verbs = [verb.end() for verb in _VERB.finditer(clause) if _is_outside(clause, verb.start())]
    free = _without_adjuncts(clause, values)
    for group in (free, values):
        for start in reversed(verbs):
            if behind := [one for one in group if one.start() >= start]:
                return _joined(clause, behind)
        if group:
            return _joined(clause, group)
    return ""


def _are_clauses(clause: str) -> bool:
    """Whether a text consists of clauses that state a value each: x is 5 and y is 7."""
    parts = _AND.split(clause)
    if VALUE.fullmatch(parts[0].strip()):  # 8 and the remainder is 3
        parts = parts[1:] if len(parts) == 2 else parts
    elif len(parts) < 2:
        return False
    return all(
        (verb := _VERB.search(part)) and verb.start() > 0 and find_values(part[verb.end() :])
        for part in parts
    )


def _without_adjuncts(clause: str, values: Sequence[re.Match[str]]) -> list[re.Match[str]]:
    """The values that no preposition governs; coordinated values are governed alike."""
    free: list[re.Match[str]] = []
    end, is_free = 0, True
    for value in values:
        gap = clause[end : value.start()]
        if not (end and (_LIST_GAP.fullmatch(gap) or _is_pair(gap, value[0]))):
            before = clause[: value.start()]
            is_governed = any(one.search(before) for one in (_CHANGED, _PLACED))
            is_free = is_governed or not _ADJUNCT.search(before)
        end = value.end()
        free += [value] if is_free else []
    return free


def _is_pair(gap: str, value: str) -> bool:
    """Whether a gap joins two values: 4 to 9, 5 m by 8 m, at (1, 2) with radius 3."""
    is_time = re.search(r"[ap]\.?m\b", value) is not None
    return bool(_WITH.fullmatch(gap) or (_RATIO_GAP.fullmatch(gap) and not is_time))


def _joined(clause: str, values: Sequence[re.Match[str]]) -> str:
    """The first value, with those that are coordinated with it."""
    run = [values[0]]
    for value in values[1:]:
        gap = clause[run[-1].end() : value.start()]
        if not (gap == " " or _JOINED.search(gap) or _is_pair(gap, value[0])):
            break
        run.append(value)
    gaps = [clause[a.end() : b.start()] for a, b in pairwise(run)]
    if all(_PLAIN_GAP.fullmatch(gap) for gap in gaps):
        text = clause[run[0].start() : run[-1].end()]
        return _right_side(clause, text) if len(run) == 1 else text
    return ", ".join(_right_side(clause, one[0]) for one in run)


def _right_side(clause: str, text: str) -> str:
    """The value of an expression that is calculated; the whole text of other equations."""
    plain = text.strip("$ ").removeprefix("\\(").removesuffix("\\)")
    sides = _EQUAL.fullmatch(plain)
    if (
        sides is None
        or _OF.search(clause)
        or re.search(r"(?<![A-Za-z\\])[xy](?![A-Za-z])", sides[1])
    ):
        return text
    return sides[2].strip()
