"""Chinese numerals: 十二 is 12, 三分之二 is 2/3, 百分之五 is 5%, 零点五 is 0.5, 1.2万 is 12000."""

import re
from decimal import Decimal
from functools import partial

_DIGITS = {"零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4, "五": 5, "六": 6, "七": 7,
           "八": 8, "九": 9}  # fmt: skip
_SCALES = {"十": 10, "百": 100, "千": 1000}
_GROUPS = {"万": 10**4, "亿": 10**8}
_ONE = "".join(_DIGITS)
_CHINESE = "[〇一-鿿]"
_NUMERAL = rf"[{_ONE}十](?:[{_ONE}十百千万亿]*[{_ONE}十百千万亿])?(?:点[{_ONE}]+(?![分钟半刻]))?"
_VALUE = rf"(?:\d+(?:\.\d+)?|{_NUMERAL})"
_WORDS = "一切|一样|一定|一致|一共|一直|一般|任一|万一|十分|一半|[一二]次函数"
"""Words that begin with a numeral."""
_BEFORE = (
    rf"(?:(?<!{_CHINESE})|(?<=[第正负约为是共比点时分月年和或与且又周])|(?<=[上下中]午)"
    r"|(?<=[早晚]上)|(?<=星期)|(?<=零下))"
)
_BEHIND = (
    rf"(?!{_CHINESE})|(?=[个只本支张条棵辆种次名人件位块台朵头颗根页道题倍间盒袋瓶元分厘毫米平立公克斤吨"
    r"秒小时天日周星月年度弧点刻比号层组对双套班排行列步圈场局成又份岁升牛伏和或与且象]|角(?!形)|千[克米]"
    r"|个半|半[钟]?$)"
)
_ALONE = re.compile(rf"{_WORDS}|{_BEFORE}({_NUMERAL})(?:{_BEHIND})")
_FRACTIONS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"({_VALUE})\s*又\s*({_VALUE})\s*分之\s*({_VALUE})", r"<\1> <\3>/<\2>"),
        (rf"百分之\s*({_VALUE})", r"<\1>%"),
        (rf"千分之\s*({_VALUE})", r"<\1>/1000"),
        (rf"({_VALUE})\s*分之\s*({_VALUE})", r"<\2>/<\1>"),
    )
)
_ENDINGS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (rf"(\d+(?:\.\d+)?)成(?!{_CHINESE})", r"\g<1>0%"),
        (r"正负\s*(?=[\d\\])", "±"),
        (r"(?:负|零下)\s*(?=[\d\\])", "-"),
        (rf"(?<!{_CHINESE})正(?=\d)|第(?=\d+(?!\d|{_CHINESE}))", ""),
        (r"(?<=[\d)])\s*比\s*(?=[\d(])", ":"),
        (r"^\s*一半\s*$", "1/2"),
        (rf"(?<!\d)(?<!{_CHINESE})半个?(?=[小天年月米斤杯公千])", "0.5"),
        (r"倍?根号\s*(?=[\d(A-Za-z])", r"\\sqrt "),
        (r"每(小时|分钟|秒|分|天|时)\s*(\d+(?:\.\d+)?\s*[一-鿿A-Za-z]+)", r"\2/\1"),
    )
)


def arabic_numerals(text: str) -> str:
    """Rewrites Chinese numerals, fractions, percentages and signs.

    Args:
        text: An answer with plain Unicode characters.

    Returns:
        The answer with Arabic numerals; words such as 一样 and 三角形 stay as they are.
    """
    if not re.search(_CHINESE, text):
        return text
    for pattern, replacement in _FRACTIONS:
        text = pattern.sub(partial(_filled, replacement), text)
    text = _ALONE.sub(lambda found: _arabic(found[1]) if found[1] else found[0], text)
    text = re.sub(r"(\d+(?:\.\d+)?)\s*([万亿])(?!分)", _scaled, text)
    text = re.sub(r"(\d+)个半", lambda found: f"{found[1]}.5", text)
    for pattern, replacement in _ENDINGS:
        text = pattern.sub(replacement, text)
    return text


def _filled(template: str, found: re.Match[str]) -> str:
    return re.sub("<(.*?)>", lambda numeral: _arabic(numeral[1]), found.expand(template))


def _scaled(found: re.Match[str]) -> str:
    return f"{(Decimal(found[1]) * _GROUPS[found[2]]).normalize():f}"


def _arabic(numeral: str) -> str:
    """The numeral in digits; unchanged if it is malformed."""
    if numeral[0].isdigit() and numeral[0].isascii():
        return numeral
    whole, _, places = numeral.partition("点")
    value = _whole(whole)
    if value is None:
        return numeral
    decimals = "".join(str(_DIGITS[one]) for one in places)
    return f"{value}.{decimals}" if decimals else str(value)


def _whole(numeral: str) -> int | None:
    """The value of 三万五千, 一百零五, 二〇二四."""
    if all(one in _DIGITS for one in numeral):
        return int("".join(str(_DIGITS[one]) for one in numeral))
    total, section, digit, last_scale = 0, 0, None, 1
    for position, one in enumerate(numeral):
        if one in _DIGITS:
            if digit:
                return None
            digit = _DIGITS[one]
            last_scale = 1 if digit == 0 else last_scale
            continue
        if one in _SCALES:
            section += (1 if digit is None and position == 0 else digit or 1) * _SCALES[one]
            last_scale = _SCALES[one] // 10
        else:
            total = (total + section + (digit or 0)) * _GROUPS[one]
            section, last_scale = 0, _GROUPS[one] // 10
        digit = None
    return total + section + (digit or 0) * max(last_scale, 1)
