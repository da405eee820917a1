"""What an answer says, without words that only introduce or explain it."""

import re

from mathcanvas_lightning.evaluation.comparison import structure
from mathcanvas_lightning.evaluation.comparison.quantities.measures import parse_quantity
from mathcanvas_lightning.evaluation.comparison.quantities.numbers import parse_number

_LEAD = re.compile(
    r"^(?:(?:approximately|approx\.?|about|roughly|around|nearly|约为?|大约)\s*(?=[\d\\.-])"
    r"|(?:the\s+)?(?:vertex|vertices|cent(?:er|re)|focus|foci|midpoint|endpoints?|顶点|圆心|点|坐标"
    r"|焦点)(?:\s*[:为是])?\s*(?=[(⟨])"
    r"|(?:the\s+)?(?:points?|intervals?|set|vector|ordered pairs?|statements?|coordinates|values?"
    r"|numbers?)"
    r"(?:\s*(?=[(\[⦃⟨⟦])|\s+(?=[\d\\-]|[A-Z]\())"
    r"|[Tt]he\s+[a-z]+(?:\s+(?!not\b)[a-z]+){0,4}\s+(?:is|are|equals)\s*(?=[(\[⦃⟨⟦\d\\-])"
    r"|(?:the\s+)?(?:line|curve|circle|parabola|function|equation|直线|圆|曲线|抛物线|椭圆|函数)\s*"
    r"(?:[A-Za-z](?:_\{?\w\}?)?\s*:|\s(?![A-Za-z]:))?\s*(?=[^=]{1,40}=)"
    r"|[A-Za-z](?:_\{?\w\}?)?\s?:\s*(?=[^=:]{1,60}=[^=:]+$)"
    r"|[^=<>,;≤≥∈]{0,20}[一-鿿](?<![不非])[为是:]\s*(?=[-\d(\[⦃A-Za-z\\])"
    r"|(?:an? |the )?(?:total|sum|value|distance|length|area|volume|maximum|minimum|average) of "
    r"(?=[-\d\\]))"
)
_NOTE = re.compile(r"(?<=.)\s?\((?=[a-z\s]*[a-z]{4})[a-z]{2,}(?:\s[a-z]+){0,4}\)$")
_EXCEPT = re.compile(
    r"(?:all )?(?:the )?reals?(?: numbers)?,? (?:except|but|other than)(?: for)?\s*(.+)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"(^|[,;]\s*)([A-Za-z][A-Za-z \-]{2,30}?|[一-鿿]{1,8})\s?:\s*(?=[-\d(\\$√π])(?![^,;]*:)"
)
_ROLE = re.compile(r"(?<=[)\]⟩])\s*(?:is|are) (?:the|an?) [a-z ]+$")
_MIXED = re.compile(
    r"([a-z0-9\s-]+ and [a-z\s-]*(?:half|halves|thirds?|quarters?|fourths?|fifths?|eighths?)) "
    r"([a-z]{2,}.*)",
    re.IGNORECASE,
)
_CHANGE_OF = re.compile(
    r"^(?:an? |the )?(increase|decrease|discount|profit|loss) of (\S.*)$", re.IGNORECASE
)
_MULTIPLE = re.compile(r"\s?\((?:multiplicity|double|repeated|twice|with multiplicity)[^()]*\)")
_OUT_OF = re.compile(r"(\d+) (?:in|out of)(?: every)? (\d+)")
_QUADRANT = re.compile(
    r"(?:in )?(?:the )?(first|second|third|fourth|[1-4]|I{1,3}|IV) ?quadrant"
    r"|(?:in )?[Qq]uadrant ?([1-4]|I{1,3}|IV)|第?([1-4])象限",
)
_QUADRANTS = {"first": "1", "second": "2", "third": "3", "fourth": "4", "I": "1", "II": "2",
              "III": "3", "IV": "4"}  # fmt: skip
_MEMBER = re.compile(r"([A-Za-zα-ω])∈⦃([^⦃⦄]*)⦄")


def essence(text: str) -> str:
    """Removes "about" and "the point"; writes x ∈ {1, 4} as x = 1, x = 4.

    Args:
        text: An answer in canonical form.
    """
    text = _CHANGE_OF.sub(lambda found: f"{found[2]} {found[1].lower()}", text)
    text = _MULTIPLE.sub("", _ROLE.sub("", text))
    if (mixed := _MIXED.fullmatch(text)) and (number := parse_number(mixed[1])) is not None:
        text = f"{number.value} {mixed[2]}"
    text = _LABEL.sub(lambda found: f"{found[1]}{found[2].replace('-', ' ')}=", text)
    text = _NOTE.sub("", _LEAD.sub("", text))
    if re.fullmatch(r"(?:the )?origin|原点", text):
        return "(0,0)"
    if quadrant := _QUADRANT.fullmatch(text):
        name = quadrant[1] or quadrant[2] or quadrant[3]
        return _QUADRANTS.get(name, name)
    if share := _OUT_OF.fullmatch(text):
        return f"{share[1]}/{share[2]}"
    if excluded := _EXCEPT.fullmatch(text):
        return f"ℝ∖⦃{re.sub(r'[a-z][=≠]', '', excluded[1])}⦄"
    text = _points(text)
    sides = re.split(r"\s*(?:\bby\b|\*|\bx\b)\s*", text)
    if len(sides) > 1 and all(parse_quantity(one).units for one in sides):
        return ", ".join(sides)  # 20 cm by 15 cm
    member = _MEMBER.fullmatch(text)
    if member is None or re.search("[|:]", member[2]):
        return text
    return ", ".join(
        f"{member[1]}={item}" for item in structure.split_items(member[2], in_brackets=True)
    )


def _points(text: str) -> str:
    """Writes "x = 1, y = 0 or x = 0, y = 1" as points."""
    lists = [structure.split_items(one) for one in re.split(r"\s*(?:\bor\b|;)\s*", text)]
    if len(lists) < 2 or any(len(items) < 2 for items in lists):
        return text
    names = [sorted(structure.item_names(items)) for items in lists]
    if not all(names[0]) or len(set(names[0])) < 2 or any(one != names[0] for one in names):
        return text
    return ", ".join(f"({','.join(structure.named_values(items))})" for items in lists)
