"""The value that a sentence without a mark states: "So the ladder reaches 12 feet up the wall".

A sentence is reduced to its main clause. The value after its last verb counts before one in its
subject, and both before one behind a preposition ("in four weeks"). Coordinated values are a list.
"""

import re
from collections.abc import Sequence
from itertools import pairwise

from mathcanvas_lightning.evaluation.extraction.values import (
    MONEY,
    NUMBER,
    UNIT,
    VALUE,
    find_values,
    mark_prices,
    number_words,
)

MIN_WORDS = 3
"""A text with fewer words outside its values is no sentence."""

_CHINESE = re.compile("[一-鿿]")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")
_SENTENCE_END = re.compile(
    r"(?<=[\w)$\]%°}²³*\"'])(?<![ap]\.m)(?<!i\.e)(?<!approx)(?<!vs)[.!?]\s+(?=[A-Z$\\(*])"
    r"|[。!?]\s*(?=.)"
)
_ASIDE = re.compile(
    r"(?:note|remember|recall|check|verify|notice|observe)\b|.*\b(?:reject|discard|extraneous"
    r"|ignore"
    r"|exclude)",
    re.IGNORECASE,
)
_LEAD = re.compile(
    r"(?:[^\w$\\(\[]*(?:so|thus|hence|therefore|then|and|but|now|finally|consequently"
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
    r",?\s+(?:because|since|where|when|while|if|provided|assuming|given that|instead of"
    r"|rather than"
    r"|by the time|compared (?:to|with)|than|before|which|who|as(?!\s[-\d$\\(])|unlike|so that"
    r"|attained|achieved"
    r"|occurring|with\s+\S+\s+(?:\w+\s+)?(?:left|remaining|to spare)|not counting|excluding)\b.*$"
)
_PARENTHESIS = re.compile(r"\s*\((?=[a-z]{2})[^()]*\)")
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
    r"\s(?:and\s)?with\s(?:an?\s)?(?:radius|cent(?:er|re)|slope|length|width|height)\s(?:of\s)?"
)
_PLAIN_GAP = re.compile(r"\s*(?:[,;&]|\band\b|\bor\b|\bto\b|\bby\b|\s)*\s*")
_LIST_GAP = re.compile(r"\s*(?:[,;&]|\band\b|\bor\b|\bthen\b|\s)+\s*")
_RATIO_GAP = re.compile(r"\s(?:to|by|x)\s")
_AND = re.compile(r"[,;]?\s(?:and|or|while|but)\s(?:that\s)?|[,;]\s(?=(?:the|its|their)\s)")
_BY_NAME = re.compile(
    r"\bby\s(?:the\s)?(SSS|SAS|ASA|AAS|HL|AA)\b.*$|\b(?:falls|is|lands|was|happens"
    r"|occurs)\s(?:on\s)?(?:an?\s)?((?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)$"
)
_IN_TOTAL = re.compile(
    rf"({NUMBER})(?:\s[a-z]+){{0,2}}\s(?:altogether|in\stotal|in\sall)$"
    rf"|\ba\stotal\sof\s({NUMBER}{UNIT})"
)
_LETTERED = re.compile(
    r"\b(?:is|be)\s(?:therefore\s|thus\s|hence\s)?(\(?[A-H][.):]\s?\S(?:[^.]|\.\d){0,60})\.?$"
)
_MOVED = re.compile(
    r"\b(?:maps?|mapped|moves?|moved|sends?|goes|changes?d?|increases?d?|decreases?d?|rises?"
    r"|drops?)\b"
)
_FALSE = re.compile(
    r".*\b(?:statement|option|choice|conclusion)\s\(?([A-Ha-h])\)?\sis\s(?:false|incorrect"
    r"|not\s\w+)"
)
_CHANCE = re.compile(
    r"\b(?:chance|probability|odds|likelihood)\b.*?\b(\d+)\s(?:in|out\sof)\s(\d+)\b"
)
_WHERE = re.compile(r"^.*\b[a-z]\([a-z]\)\s*[<>≤≥]\s*0\s(?:when|for|if|on)\s")
_UNTRUE = re.compile(r".*\sis\s(not\s(?:true|correct|valid))")
_IT_IS = re.compile(r"(?:so|thus|hence|therefore)?,?\s*(?:it|that)(?:'s|\sis)\s", re.IGNORECASE)
_ORIGIN = re.compile(r"\b(?:is|at|through)\s(?:at\s)?(the\sorigin)$")
_ALL_REALS = re.compile(r"(?:\b(?:is|are)\s|^)(all\s(?:real\s)?(?:numbers|reals)\b.{0,60})")
_IS_LETTER = re.compile(
    r"\b(?:is|be|except(?:\sfor)?|closest\sto|nearest\sto)\s(?:option\s|choice\s)?\(?([A-H])\)?$"
)
_BOUND = re.compile(
    r"^([A-Za-z]\s(?:is|must\sbe)\s(?:at\s(?:most|least)|(?:less|greater|more|no\smore"
    r"|no\sless)\sthan)\s\S+)$"
)
_DENIED = re.compile(
    r"\b(?:not(?!\s(?:defined|differentiable|continuous)\b)|never"
    r"|cannot)\b(?![^,]*\bbut\b)|n't\b"
)
_DECISION = re.compile(r"(?:yes|no|true|false)\b(?!\s+(?:such|solution))", re.IGNORECASE)
_DECIDED = re.compile(r"\s*(yes|no|true|false)[,:]\s", re.IGNORECASE)
_NONE = re.compile(
    r"(?:.*\s)?(?:has|have|is|are)\s((?:no|infinitely\smany)\s(?:real\s|such\s"
    r"|integer\s)?(?:solutions?|roots?|values?|integers?"
    r"|maximum|minimum|limit|inverse|asymptotes?))"
)
_BEHAVES = re.compile(
    r"[^,;=$]{2,60}\s(converges|diverges|increases|decreases|doubles|stays\sthe\ssame)"
)
_RELATED = re.compile(
    r"[^,;=$]{1,80}?\s(?:is|are)\s(perpendicular|parallel|tangent|congruent|similar|orthogonal"
    r"|closed"
    r"|proportional)\s.*"
)
_CHOSEN = re.compile(
    r"[^,;=$]{2,80}?\s(?:chose|choose|prefers?|preferred|belongs?\sto|continues\swith"
    r"|stands\sfor|denotes|likes?"
    r"|liked|picked"
    r"|selected|voted\sfor"
    r"|corresponds?\sto|(?:lowest|highest|greatest|least|most|fewest|largest|smallest"
    r"|tallest)\s(?:in|on|for))"
    r"\s(?:the\s|an?\s)?([A-Za-z][\w'-]*(?:\s[A-Za-z][\w'-]*){0,2})"
)
_SUBJECT = (
    r"(?:the\s+)?([A-Za-z][\w'-]*(?:\s(?-i:[A-Z])[\w'-]*)*"
    r"|[a-z]+(?:\s(?!ones?\b)[a-z]+)?)(?:\sones?)?"
)
_ONLY = re.compile(
    r"only\s+(?:the\s+)?((?:(?!that\b|when\b|if\b)[\w'-]+\s){0,2}?(?:(?!one)[\w'-]+))"
    r"(?:\s(?:one|ones|graph|figure|shape|option|choice|statement|function|equation))?\s"
    r"(?:is|are|has|have|shows?|represents?|satisf\w+|works?|match\w*|can|does|will)\b",
    re.IGNORECASE,
)
_FIRST_OF = re.compile(
    rf"{_SUBJECT}\s(?:(?:is|are|was|has|had|will\s(?:be|have)|finish(?:es|ed)|comes?|came"
    rf"|arrives?|runs?"
    r"|ran|sold|scored|won|got|holds?|weighs?)\s(?:the\s)?(?:more|less|fewer|first|last|winner"
    r"|favorite"
    r"|most|least|fewest|best|worst"
    r"|[a-z]{3,}est"
    r"|(?!number|never|neither|either|under|over|order|center|together|other|another)[a-z]{3,}er)"
    r"\b|wins?\b|won\b)(?!\s(?:common|prime|integer|number|even|odd))",
    re.IGNORECASE,
)
_PREDICATE = re.compile(
    r"[^,;=$]{1,80}?\s(?:is|are|(?:must|should|will|would|has to|can only)\sbe|becomes?|remains?"
    r"|(?:folds|turns)\sinto|forms?|looks?\slike|resembles?|depicts?)"
    r"\s(?:called\s|labell?ed\s|named\s|made\sof\s|an?\s|the\s|always\s|both\s|therefore\s"
    r"|thus\s|also\s)*"
    r"((?!(?:[a-z]+\s)*(?:of|in|on|at|to|about|for|by|with|than|from|under|that|which|is|are)\b)"
    r"[A-Za-z][A-Za-z'-]*(?:\s[A-Za-z'-]+){0,3})"
)
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
    is_short = not is_clear and len(_WORD.findall(VALUE.sub("", text))) < MIN_WORDS
    if is_short or _CHINESE.search(text):
        return ""
    text = _COMPARED.sub(lambda one: f"{one[1]} {'>' if one[2] == 'greater' else '<'} ", text)
    if stated := _LETTERED.search(text) or _DECIDED.match(text):
        return stated[1].replace(MONEY, "$")
    if chance := _CHANCE.search(text):
        return f"{chance[1]}/{chance[2]}"
    for sentence in reversed(_SENTENCE_END.split(text)):
        sentence = sentence.strip(" .!*#>")
        if sentence and not _ASIDE.match(_LEAD.sub("", sentence)):
            value = _of_clause(main_clause(sentence)).replace(MONEY, "$")
            return re.sub(r"^(\d+) (?:in|out of) (?:every )?(\d+)$", r"\1/\2", value)
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
    if (false := _FALSE.fullmatch(clause)) is not None:
        return false[1].upper()
    if named := _ONLY.match(clause) or _FIRST_OF.match(clause):
        return named[1]
    for pattern in (_NONE, _BEHAVES, _CHOSEN, _UNTRUE):
        if found := pattern.fullmatch(clause):
            return found[1]
    clause = re.sub(r"\s(?:with|having)\s.*", "", clause)
    predicate = _RELATED.fullmatch(clause) or _PREDICATE.fullmatch(clause)
    is_denied = _DENIED.search(clause) or re.match(r"no\s", clause, re.IGNORECASE)
    return predicate[1] if predicate and not is_denied else ""


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
    for pattern in (_BOUND, _IS_LETTER, _BY_NAME, _IN_TOTAL, _ALL_REALS, _ORIGIN):
        if found := pattern.search(clause):
            return str(next(filter(None, found.groups())))
    parts = [_of_clause(one) for one in _AND.split(clause)] if _are_clauses(clause) else []
    if parts:
        return ", ".join(parts)
    values = [
        one
        for one in find_values(clause) or number_words(clause)
        if not _DENIED.search(clause[: one.start()])
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
