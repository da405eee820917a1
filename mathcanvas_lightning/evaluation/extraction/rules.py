"""How a response states its answer without a mark: a table of rules by kind, each with an example.

The tables are in the order of their reliability, and so are the rules of a table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mathcanvas_lightning.evaluation.extraction.values import NUMBER, UNIT


@dataclass(frozen=True, slots=True)
class Rule:
    """One way to state an answer."""

    example: str
    """A text that the rule reads; its answer is between « and »."""
    pattern: re.Pattern[str]
    """Its first group that takes part is the answer."""


def first(rules: Sequence[Rule], text: str) -> str:
    """The answer by the first rule that finds one; empty if none does.

    Args:
        rules: A table.
        text: A sentence, a clause or a line, as the table says.
    """
    found = (rule.pattern.search(text) for rule in rules)
    return next((_answer(match) for match in found if match), "")


def last(rules: Sequence[Rule], text: str) -> str:
    """The last answer that any of the rules finds in a text.

    Args:
        rules: A table.
        text: A response.
    """
    found = [match for rule in rules for match in rule.pattern.finditer(text)]
    return _answer(max(found, key=lambda match: match.end())) if found else ""


def _answer(match: re.Match[str]) -> str:
    return next(filter(None, match.groups()), "")


def _anywhere(example: str, *pieces: str, flags: int = 0) -> Rule:
    return Rule(example, re.compile("".join(pieces), flags))


def _whole(example: str, *pieces: str, flags: int = 0) -> Rule:
    return Rule(example, re.compile(rf"\A(?:{''.join(pieces)})\Z", flags))


def _start(example: str, *pieces: str, flags: int = 0) -> Rule:
    return Rule(example, re.compile(rf"\A(?:{''.join(pieces)})", flags))


def _end(example: str, *pieces: str, flags: int = 0) -> Rule:
    return Rule(example, re.compile(rf"(?:{''.join(pieces)})\Z", flags))


_LETTER = r"\(?([A-H])\)?"
_NOT_WRONG = r"(?!\s+(?:(?:is|are|was)\s+(?:not|in|wrong|false)|would\b|could\b|isn't|can't))"

CORRECT = (
    _anywhere(
        "«A and C» are correct.",
        r"\b((?:\(?[A-H]\)?(?:\s*(?:,|&|\band\b)\s*)*)+?)\s*(?:is|are|must be)\s+",
        r"(?:the\s+|both\s+|all\s+)?(?:correct|right|true)\b",
    ),
    _anywhere(
        "«A» is the only choice.",
        r"\b([A-H])\s+(?:is\s+the\s+only|(?:must|has\s+to|would)\s+be\s+(?:the|our)\s+)",
    ),
    _anywhere(
        "Here only option «B» satisfies all conditions.",
        rf"\bonly\s+(?:option\s+|choice\s+)?{_LETTER}\s+",
        r"(?:satisf|match|is\b|works|fits|meets|holds|can\b)",
    ),
    _anywhere("其中«①③»正确", r"((?:[①-⑳][、,和]?\s?){1,10}?)(?:都)?(?:是)?正确"),
    _anywhere("所以选项 «B» 正确", rf"选项\s*{_LETTER}\s*(?:是)?(?:正确|符合|满足)"),
    _anywhere(
        "A、B都不对,只有«C»符合。",
        rf"只有\s*(?:选项|图)?\s*{_LETTER}\s*项?(?:能|可|符合|正确|满足|是|对)",
    ),
    _anywhere(
        "Statements «I and III» are true.",
        r"\b(?:statements?|conclusions?|propositions?)\s+",
        r"((?:\(?(?:\b(?:[ivx]+|[IVX]+|\d)\b|[①-⑳])\)?(?:\s*(?:,|&|\band\b)\s*)*)+?)",
        r"\s*(?:is|are)\s+(?:correct|true|right)",
        flags=re.IGNORECASE,
    ),
)
"""Letters or statements that a response calls correct; the last ones count."""

CHOSEN = (
    _anywhere(
        "For these reasons I choose option «C».",
        r"\b(?:[Oo]ption|[Cc]hoice|[Cc]hoose|[Ss]elect|[Pp]ick|[Pp]refer)\b(?:\s+(?:is|option|choice))?\s*:?",
        rf"\s*(?:\(([A-Za-z])\)|([A-Z])(?![\w'])\)?){_NOT_WRONG}",
    ),
)
"""Letters that a response chooses; the last one counts."""

GUESSED = (
    _anywhere(
        "I am not sure, but I guess «B».",
        r"\b(?:I\s+guess|I\s+think|it\s+is|it's|it\s+must\s+be|I(?:'d|\s+would)\s+(?:say|choose",
        r"|pick)|go\s+with|going\s+with|goes\s+with)\s+",
        rf"(?:option\s+|choice\s+)?{_LETTER}(?=[.!]?\s*(?:\n|$))",
        flags=re.IGNORECASE,
    ),
)
"""Letters at the end of a line that says "I guess"; the last one counts."""

FIRST_LINE = (
    _start(
        "**«B»**\n\nBoth lines are parallel.",
        r"\s*[*_#\s]*\(?([A-H]|[Yy]es|[Nn]o|[Tt]rue|[Ff]alse)\)?[.)]?[*_\s]*(?:\n|$)",
    ),
    _start(
        "«Yes». The angles add up to 180 degrees.", r"\s*[*_#\s]*(Yes|No|True|False)\.\s+(?=[A-Z])"
    ),
    _start("«A», since 5 is prime.", r"\s*[*_#\s]*([A-H]),?\s+(?:since|because|as)\b"),
)
"""Answers before any reasoning."""

LINE = (
    _anywhere(
        "The best estimate is therefore «C. 40 cm».",
        r"\b(?:is|be)\s(?:therefore\s|thus\s|hence\s)?(\(?[A-H][.):]\s?\S(?:[^.]|\.\d){0,60})\.?$",
    ),
    _start("«No», it is not possible.", r"\s*(yes|no|true|false)[,:]\s", flags=re.IGNORECASE),
    _anywhere(
        "The chance is «3 out of 8».",
        r"\b(?:chance|probability|odds|likelihood)\b.*?\b(\d+\s(?:in|out\sof)\s\d+)\b",
    ),
    _anywhere(
        "So «3 out of 8» equal parts are shaded.",
        r"\b(\d+\s(?:out\s)?of\s(?:the\s)?\d+)\sequal\s(?:parts|pieces|sections|slices)",
    ),
)
"""Answers in a whole line, before it is reduced to a clause."""

VALUES = (
    _whole("«C»", _LETTER),
    _end("Not A, not B, not C: «D»", r"\bnot\b.*:\s*", _LETTER),
    _anywhere("Here only «7» fits", rf"\bonly\s({NUMBER})\s(?:fits|works|satisf|remains)"),
    _whole(
        "«x is at most 7»",
        r"([A-Za-z]\s(?:is|must\sbe)\s(?:at\s(?:most|least)|(?:less|greater|more|no\smore",
        r"|no\sless)\sthan)\s\S+)",
    ),
    _end(
        "The value is closest to («B»)",
        r"\b(?:is|be|except(?:\sfor)?|closest\sto|nearest\sto)\s(?:option\s|choice\s)?",
        _LETTER,
    ),
    _end(
        "Turning the tile by 90° gives picture «B»",
        r"\b(?:is|be|gives?|shows?|yields?|produces|becomes|matches|resembles|looks?\slike",
        r"|corresponds\sto)\s(?:the\s)?(?:[a-z]+\s)?",
        _LETTER,
    ),
    _end(
        "The kangaroo ends up at point «E»",
        r"\b(?:ends?\sup|lands?|leaves?|arrives?|stops?|exits?|comes\sout|finish(?:es)?|leads)\s",
        r"(?:at|in|on|to|through|by|via|from|of)\s(?:the\s)?(?:[a-z]+\s)?",
        _LETTER,
    ),
    _end(
        "The mirror image is the one labeled «D»",
        r"\b(?:labell?ed|marked)\s(?:with\s)?(?:the\sletter\s)?",
        _LETTER,
    ),
    _anywhere(
        "Both triangles are congruent by «SAS»",
        r"\bby\s(?:the\s)?(SSS|SAS|ASA|AAS|HL|AA)\b.*$",
    ),
    _end(
        "Her birthday falls on a «Sunday»",
        r"\b(?:falls|is|be|lands|was|happens|occurs)\s(?:on\s)?(?:an?\s)?",
        r"((?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day)(?:\s(?:this|next)\s\w+)?",
    ),
    _end(
        "There are «9» balls altogether",
        rf"({NUMBER})(?:\s[a-z]+){{0,2}}\s(?:altogether|in\stotal|in\sall)",
    ),
    _anywhere("This is a total of «24 cm» of wire", rf"\ba\stotal\sof\s({NUMBER}{UNIT})"),
    _anywhere(
        "The domain is «all real numbers except x = 2»",
        r"(?:\b(?:is|are)\s|^)(all\s(?:real\s)?(?:numbers|reals)\b.{0,60})",
    ),
    _end("The center is at «the origin»", r"\b(?:is|at|through)\s(?:at\s)?(the\sorigin)"),
)
"""Values in a clause that are no numbers or formulas."""

_SUBJECT = (
    r"(?:the\s+)?([A-Za-z][\w'-]*(?:\s(?-i:[A-Z])[\w'-]*)*"
    r"|[a-z]+(?:\s(?!ones?\b)[a-z]+)?)(?:\sones?)?"
)
NAMED = (
    _whole(
        "statement («c») is false",
        r".*\b(?:statement|option|choice|conclusion)\s\(?([A-Ha-h])\)?\sis\s(?:false|incorrect",
        r"|not\s\w+)",
    ),
    _start(
        "only («B») is consistent with the views",
        r"(?:[Oo]nly\s(?:[a-z]+\s)?",
        _LETTER,
        r"\s[a-z]|",
        _LETTER,
        r"\sis\s(?:what|the\s(?:odd|only|one|missing|best|right|correct|same|figure|shape|picture|net))\b)",
    ),
    _start(
        "figure «B» can be folded to a cube",
        r"(?:the\s)?(?:[Ff]igure|[Pp]icture|[Nn]et|[Pp]iece|[Ss]hape|[Dd]iagram|[Oo]ption|[Tt]ile)\s",
        _LETTER,
        r"\s(?:can(?!\s?not|['’]t)|fits|matches|works)\b",
    ),
    _start(
        "only the «second» graph represents a function",
        r"only\s+(?:the\s+)?((?:(?!that\b|when\b|if\b)[\w'-]+\s){0,2}?(?:(?!one)[\w'-]+))"
        r"(?:\s(?:one|ones|graph|figure|shape|option|choice|statement|function|equation))?\s"
        r"(?:is|are|has|have|shows?|represents?|satisf\w+|works?|match\w*|can|does|will)\b",
        flags=re.IGNORECASE,
    ),
    _start(
        "«Emma» finishes first",
        _SUBJECT,
        r"\s(?:(?:is|are|was|has|had|will\s(?:be|have)|finish(?:es|ed)|comes?|came|arrives?|runs?",
        r"|ran|sold|scored|won|got|holds?|weighs?)\s(?:the\s)?(?:more|less|fewer|first|last",
        r"|winner|favorite|most|least|fewest|best|worst|[a-z]{3,}est",
        r"|(?!number|never|neither|either|under|over|order|center|together|other|another)",
        r"[a-z]{3,}er)\b|wins?\b|won\b)(?!\s(?:common|prime|integer|number|even|odd))",
        flags=re.IGNORECASE,
    ),
    _whole(
        "the system has «no solution»",
        r"(?:.*\s)?(?:has|have|is|are)\s((?:no|infinitely\smany)\s(?:real\s|such\s|integer\s)?",
        r"(?:solutions?|roots?|values?|integers?|maximum|minimum|limit|inverse|asymptotes?))",
    ),
    _whole(
        "the series «diverges»",
        r"[^,;=$]{2,60}\s(converges|diverges|increases|decreases|doubles|stays\sthe\ssame)",
    ),
    _whole(
        "most students chose «soccer»",
        r"[^,;=$]{2,80}?\s(?:chose|choose|prefers?|preferred|belongs?\sto|continues\swith",
        r"|stands\sfor|denotes|likes?|liked|picked|selected|voted\sfor|corresponds?\sto",
        r"|(?:lowest|highest|greatest|least|most|fewest|largest|smallest|tallest)\s(?:in|on|for))",
        r"\s(?:the\s|an?\s)?([A-Za-z][\w'-]*(?:\s[A-Za-z][\w'-]*){0,2})",
    ),
    _whole("the claim is «not true»", r".*\sis\s(not\s(?:true|correct|valid))"),
)
"""Words that a clause says of its subject, or the subject that it names."""

PREDICATES = (
    _whole(
        "the lines are «perpendicular» to each other",
        r"[^,;=$]{1,80}?\s(?:is|are)\s(perpendicular|parallel|tangent|congruent|similar",
        r"|orthogonal|closed|proportional)\s.*",
    ),
    _whole(
        "the triangle is «isosceles»",
        r"[^,;=$]{1,80}?\s(?:is|are|(?:must|should|will|would|has to|can only)\sbe|becomes?",
        r"|remains?|(?:folds|turns)\sinto|forms?|looks?\slike|resembles?|depicts?)",
        r"\s(?:called\s|labell?ed\s|named\s|made\sof\s|an?\s|the\s|always\s|both\s|therefore\s",
        r"|thus\s|also\s)*((?!(?:[a-z]+\s)*(?:of|in|on|at|to|about|for|by|with|than|from|under",
        r"|that|which|is|are)\b)[A-Za-z][A-Za-z'-]*(?:\s[A-Za-z'-]+){0,3})",
    ),
)
"""Words behind "is", in clauses that deny nothing."""

LAST_SENTENCE = (
    _whole("«AC = 5»", r"((?![A-Za-z]*[a-z]{3})[A-Za-z∠△°_0-9()]{1,8}\s*=\s*[^=]{1,60})"),
    _whole(
        "Slope: «2»",
        r"(?!(?:[Cc]onfidence|[Nn]ote|[Cc]heck|[Vv]erification|[Ee]xplanation|[Rr]eason|[Rr]easoning"
        r"|[Tt]ime|[Dd]ifficulty|[Ss]ource|[Ss]tep|[Hh]int|[Ss]core|[Pp]age|[Mm]ethod|[Gg]iven)\b)",
        r"[A-Z][A-Za-z ]{1,40}:\s*(\S.{0,60})",
    ),
    _whole(
        r"$\lim_{x \to 0} (x + 2) = «2»$",
        r"\$?\\(?:lim|int|sum|prod|det)(?![A-Za-z]).*=\s*([^=$]+)\$?",
    ),
    _anywhere(
        "This missing piece is piece «D»",
        rf"\b(?:piece|figure|graph|shape|diagram|picture|net|image|cube|tile)\s+{_LETTER}",
        r"(?:\s+(?:shows|is|represents|matches|completes|fits)\s.*\b(?:correct|missing|answer",
        r"|right)\b.*)?$",
        flags=re.IGNORECASE,
    ),
    _end(
        "经检验,«x=3»是原方程的解", r"([A-Za-z]\s*=\s*[^\s,，是]+)是(?:原)?(?:分式)?方程的(?:解|根)"
    ),
    _end(
        "所以直线的解析式为«y=2x+1»",
        r"(?:方程|解析式|表达式|关系式|公式)[为是:]\s*([^一-鿿$]{3,})",
    ),
    _end(
        "所以这个图形是一个«圆柱»",
        r"(?:(?:所以|因此|故|答).{0,30}|^.{0,9}(?:说法|结论|命题|判断|图形|关系))是(?:一[个条种])?",
        r"([一-鿿]{2,8}?)的?",
    ),
    _start(
        "所以«小明»跑得最快",
        r"(?:所以|因此|故|答\s*:)\s*([一-鿿]{2,3}?)(?<!的)",
        r"(?:最?先|最[多少快慢高大小]|跑得|获胜|赢)(?![的值])",
    ),
    _end("排除A、B、C,只剩下«D»", rf"只剩下?(?:选项|图)?\s*{_LETTER}"),
    _end("这个说法«错误»", r"(?:说法|结论|命题|判断)(?:是)?(不?正确|错误|不?对|不?成立)的?"),
    _end("小红排在第«3»名", r"第(\d+)[名个位]?"),
    _end("两条直线互相«垂直»", r"(垂直|平行|相等|全等|相似|相切|相交|相离|重合)"),
    _end("函数图象的顶点在«第二象限»", r"在(第[一二三四]象限)"),
    _whole("答:«小明»", r"答\s*:\s*([^\s,，\d]{1,8})"),
    _end("所以原方程«无解»", r"(无解|无实数解|无实数根|没有解|不存在|不成立|成立)"),
    _end(
        "Eliminating A, B, and C, we are left with «D»",
        rf"\b(?:left with|down to|leaves|leaving)\s+(?:only\s+)?(?:option\s+)?{_LETTER}",
    ),
    _whole(
        "综上,«a≤-2或a≥1»",
        r"(?:综上(?:所述)?|所以|因此|故|即|解得|∴)[,，:]?\s*([^一-鿿]+(?:[或和且][^一-鿿]+)*)",
    ),
    _anywhere(
        "The set of solutions is «all real numbers»",
        r"(?:\b(?:is|are)\s+|^)((?:all (?:real )?numbers|all reals"
        r"|no (?:real |integer )?solutions?|undefined)\b.{0,60})",
    ),
    _end("The limit «does not exist»", r"\b(does not exist|doesn't exist)"),
)
"""Answers in the last sentence of a response, which may be Chinese."""

TABLES = {
    "CORRECT": CORRECT,
    "CHOSEN": CHOSEN,
    "GUESSED": GUESSED,
    "FIRST_LINE": FIRST_LINE,
    "LINE": LINE,
    "VALUES": VALUES,
    "NAMED": NAMED,
    "PREDICATES": PREDICATES,
    "LAST_SENTENCE": LAST_SENTENCE,
}
"""All tables by name."""
