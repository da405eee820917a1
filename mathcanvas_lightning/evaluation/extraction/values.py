"""The values in a sentence: numbers with their units, prices, formulas, intervals, number words."""

import re

MONEY = "\N{FULLWIDTH DOLLAR SIGN}"
"""A dollar sign of a price; other dollar signs enclose formulas."""

_PRICE = re.compile(r"\\?\$(?=\d[\d,]*(?:\.\d+)?(?:[.,;:!?)]*(?:\s|$)|/))")
NUMBER = r"(?>\d{1,3}(?:,\d{3})++|\d++)(?>\.\d++)?"
_ATOM = (
    rf"(?:{NUMBER}|√\d+|√\([^()]*\)|π|\((?:[^()A-Za-z]|(?<![A-Za-z])[A-Za-z](?![A-Za-z]))*\)"
    r"|[A-Za-z]'{1,2}\([a-z]\)"
    rf"|(?<=\d)(?!st|nd|rd|th)[a-z]{{2}}(?![A-Za-z])|[A-Za-z]{{1,2}}(?=\^)|[A-Za-z](?![A-Za-z'’]))"
    r"[²³°'!]?"
)
_SIGN = r"[-\N{MINUS SIGN}±+]?"
_MORE = rf"(?:\s*[-\N{{MINUS SIGN}}+*/×·^:÷]\s*{_SIGN}(?:{_ATOM}|\{{[^{{}}]*\}})|{_ATOM})*+"
_RUN = rf"{_SIGN}\s?{_ATOM}{_MORE}"
_NAMES = (
    r"%|percent|°[CF]?|degrees?(?:\s(?:Celsius|Fahrenheit))?|radians?|[mck]?m|mm|dm"
    r"|in(?=[²³^.,;/]|$)|ft|yd|mi"
    r"|inch(?:es)?|foot|feet|yards?|miles?|(?:centi|milli|kilo|deci)?met(?:er|re)s?|[mk]?g"
    r"|(?:kilo|milli)?grams?|lbs?|pounds?|ounces?|oz|tons?|tonnes?|m?L|(?:milli)?lit(?:er|re)s?"
    r"|gallons?"
    r"|quarts?|pints?|s|sec(?:ond)?s?|min(?:ute)?s?|hours?|hrs?|h|days?|weeks?|months?|years?"
    r"|dollars?|cents?|euros?|yuan|rupees|pence|N|J|W|V|A|Hz|Pa|mph|km/h|m/s|thousand|million"
    r"|billion|dozen|[ap]\.?m\.?"
)
UNIT = (
    rf"(?:\s?(?:(?:square|cubic|sq\.?|cu\.?)\s)?(?:{_NAMES})(?:[²³]|\^\{{?[23]\}}?)?"
    rf"(?:\s?/\s?(?:{_NAMES})(?:²|\^\{{?2\}}?)?|\sper\s(?:{_NAMES})(?:\ssquared)?)?(?![A-Za-z]))?"
)
_DIRECTION = (
    r"(?:(?:\sunits?)?\s(?:to\sthe\s)?(?:left|right|up|down|upwards?|downwards?|(?:counter"
    r"|anti)?-?clockwise"
    r"|(?:due\s)?(?:north|south|east|west))\b)?"
)
_ONES = (
    r"(?:(?<=exactly )|(?<=only )|(?<=just )|(?<=is )|(?<=has )|(?<=at least ))one|two|three"
    r"|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen"
    "|sixteen|seventeen|eighteen|nineteen|twenty"
)
_PARTS = (
    r"halves|half|thirds?|quarters?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
)
_FORMULA = r"(?:\$[^$]+\$|\\\((?:(?!\\\)).)+\\\))"
_RELATION = r"(?:[=≈<>≤≥≠∈]|\\(?:le|ge|ne|in)q?)"
_BRACKETS = r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]"
VALUE = re.compile(
    rf"{_FORMULA}(?:\s*{_RELATION}\s*{_FORMULA})*{UNIT}"
    rf"|(?<![\w$])[A-Za-z]?{_BRACKETS}(?:\s*[∪U]\s*{_BRACKETS})*"
    rf"|(?<![\w.$]){_RUN}(?:\s*{_RELATION}\s*{_RUN})+{UNIT}"
    r"|\d+\s(?:in|out\sof)\s(?:every\s)?\d+(?=\schance)"
    rf"|(?<![\w$.'])[A-Za-z](?:\^\{{?\d\}}?|[²³])?\s?[-+\N{{MINUS SIGN}}]\s?{_ATOM}{_MORE}(?!\w)"
    rf"|\d{{1,2}}:\d\d(?:\s?[ap]\.?m\.?)?"
    rf"|[{MONEY}€£¥]\s?{NUMBER}(?:\s(?:thousand|million|billion))?"
    rf"|(?<![\w.$])(?=[-\N{{MINUS SIGN}}±]?\s?[\d√π(]){_SIGN}{_ATOM}{_MORE}(?!-[a-z]|\d*(?:st|nd"
    rf"|rd|th)\b){UNIT}{_DIRECTION}"
)
_PROSE = re.compile(r"(?<![\\A-Za-z{])[a-z]{3,}\s+[A-Za-z]|,\s*$|(?:and|or|to)\s*$")
_SIGN_OF_VALUE = re.compile(
    r"[\d=<>≤≥+*/^√π∞±∅]|(?<=\w)\s*-|\\(?:frac|sqrt|pi|infty|pm|cup|emptyset|varnothing|begin|le"
    r"|ge)"
)
"""What the name of a function or point lacks."""
WORDED = re.compile(
    rf"\b(?:(?:{_ONES})[\s-](?:{_PARTS})|(?:a |one )?(?:half|third|quarter|fourth|fifth"
    rf"|tenth)(?= of\b)|half past (?:{_ONES})|(?:a )?quarter (?:past"
    rf"|to) (?:{_ONES})"
    rf"|(?:(?:negative|minus) )?(?:{_ONES}))\b(?!-)",
    re.IGNORECASE,
)
_KNOWN = re.compile(r"\b(?:the|these|those|its|all|with)\s$", re.IGNORECASE)


def mark_prices(text: str) -> str:
    """Replaces the dollar signs of prices, so that the others enclose formulas.

    Args:
        text: A line of a response.
    """
    return _PRICE.sub(MONEY, text) if _has_prices(text) else text


def find_values(clause: str) -> list[re.Match[str]]:
    """Finds the values in a clause, in order.

    Args:
        clause: A clause whose prices are marked.
    """
    return [one for one in VALUE.finditer(clause) if _SIGN_OF_VALUE.search(one[0])]


def number_words(clause: str) -> list[re.Match[str]]:
    """Finds words that count something new: "two" of "has two roots", not "the two lines".

    Args:
        clause: A clause.
    """
    return [one for one in WORDED.finditer(clause) if not _KNOWN.search(clause[: one.start()])]


def _has_prices(line: str) -> bool:
    """Whether dollar signs are those of prices: they enclose no formulas."""
    between = line.split("$")[1::2]
    return line.count("$") % 2 == 1 or any(_PROSE.search(one) for one in between)
