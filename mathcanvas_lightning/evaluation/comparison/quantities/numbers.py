"""Exact numbers: integers, decimals, fractions, mixed and repeating ones, number words."""

import re
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 80
MAX_EXPONENT = 400
MIN_SIGNIFICANT = 6
"""A decimal stands for a number that it rounds if it has so many digits: 0.333333 is a third."""
FLOAT_DIGITS = 15
"""Decimals with so many digits may carry the rounding of floating-point arithmetic."""
FLOAT_TOLERANCE = Fraction(1, 10**12)

_DIGITS = r"(?:\d{1,3}(?:(?:,|\s)\d{3})+|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:"
    rf"(?:(?P<whole>\d+)\s?)?\\frac\{{(?P<over>[-+]?\d+)\}}\{{(?P<under>[-+]?\d+)\}}"
    rf"|(?:(?P<mixed>\d+)\s)?(?P<top>{_DIGITS})/(?P<bottom>[-+]?{_DIGITS})"
    rf"|(?P<decimal>{_DIGITS}(?:\.\d*)?|\.\d+)"
    rf"(?P<repeating>\\(?:overline|bar|dot)\{{?\d+\}}?(?:\d*\\dot\{{?\d\}}?)?|\(\d+\)|\.\.\.)?"
    rf"(?:(?:[eE]|\s?\*\s?10\s?\^\s?\{{?)(?P<exponent>[-+]?\d+)\}}?)?"
    rf")"
)
_POWER_OF_TEN = re.compile(r"([-+]?)10\^\{?([-+]?\d+)\}?")
SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "dozen": 12,
    "dozens": 12,
    "万": 10**4,
    "亿": 10**8,
}
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_WORDS = (
    {word: value for value, word in enumerate(_ONES)}
    | {word: 10 * value for value, word in enumerate(_TENS, start=2)}
    | {"a": 1, "an": 1}
)
_ORDINALS = {word: value for value, word in enumerate(
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split(), 1)
} | {"once": 1, "twice": 2, "thrice": 3}  # fmt: skip
_PARTS = {
    "half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4,
    "fourths": 4, "fifth": 5, "fifths": 5, "sixth": 6, "sixths": 6, "seventh": 7, "sevenths": 7,
    "eighth": 8, "eighths": 8, "ninth": 9, "ninths": 9, "tenth": 10, "tenths": 10,
    "hundredth": 100, "hundredths": 100, "thousandth": 1000, "thousandths": 1000,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number."""

    value: Fraction
    places: int | None = None
    """Digits after the decimal point, scaled by the exponent; None unless it is a decimal."""

    @property
    def num_significant(self) -> int:
        """Significant digits of a decimal."""
        return len(str(abs(int(self.value * 10 ** max(self.places or 0, 0)))))


def parse_number(text: str) -> Number | None:
    r"""Parses a number.

    Args:
        text: Integer (also 1,000), decimal (also 1.2*10^{-3}), fraction, mixed number, repeating
            decimal (0.\overline{3}, 0.(3), 0.333...) or number words, in canonical form.

    Returns:
        The number; None for other texts, and for numbers with too many digits.
    """
    text = text.strip()
    if not text or len(text) > MAX_DIGITS:
        return None
    if power := _POWER_OF_TEN.fullmatch(text):
        if abs(int(power[2])) > MAX_EXPONENT:
            return None
        return Number((-1 if power[1] == "-" else 1) * Fraction(10) ** int(power[2]))
    match = _NUMBER.fullmatch(text)
    return _words(text) if match is None else _matched(match)


def same_number(given: Number, expected: Number) -> bool:
    """Compares two numbers; a decimal with enough digits equals a number that it rounds.

    Args:
        given: A number.
        expected: Another one.

    Returns:
        Whether they are equal.
    """
    if given.value == expected.value:
        return True
    decimals = [one for one in (given, expected) if one.places is not None]
    if not decimals:
        return False
    difference = abs(given.value - expected.value)
    has_float = max(one.num_significant for one in decimals) >= FLOAT_DIGITS
    if has_float and difference <= FLOAT_TOLERANCE * abs(expected.value):
        return True
    if len(decimals) == 2 and given.places == expected.places:
        return False
    coarse = min(decimals, key=lambda one: one.places or 0)
    is_precise = coarse.num_significant >= MIN_SIGNIFICANT
    return is_precise and difference < Fraction(1, 10) ** (coarse.places or 0)


def _matched(match: re.Match[str]) -> Number | None:
    part = {name: re.sub(r"[,\s]", "", found or "") for name, found in match.groupdict().items()}
    top, bottom = part["over"] or part["top"], part["under"] or part["bottom"]
    sign = -1 if part["sign"] == "-" else 1
    if bottom:
        whole = int(part["whole"] or part["mixed"] or 0)
        if not int(bottom) or (whole and (int(top) < 0 or int(bottom) < 0)):
            return None
        return Number(sign * (whole + Fraction(int(top), int(bottom))))
    exponent = int(part["exponent"] or 0)
    if abs(exponent) > MAX_EXPONENT:
        return None
    value, is_exact = _decimal(part["decimal"], part["repeating"])
    if value is None:
        return None
    places = len(part["decimal"].partition(".")[2])
    scaled = sign * value * Fraction(10) ** exponent
    return Number(scaled, None if is_exact or not places else places - exponent)


def _decimal(digits: str, repeating: str) -> tuple[Fraction | None, bool]:
    """The value of a decimal with a repeating end, and whether it is exact."""
    value = Fraction(digits.rstrip(".") or "0")
    if not repeating:
        return value, False
    before = digits.partition(".")[2]
    if repeating == "...":
        period = _period(before)
        if period is None:
            return value, False
        return value + _tail(period, len(before)), True
    period = re.sub(r"\D", "", repeating)
    return (value + _tail(period, len(before)), True) if "." in digits else (None, False)


def _tail(period: str, places: int) -> Fraction:
    return Fraction(int(period), (10 ** len(period) - 1) * 10**places)


def _period(digits: str) -> str | None:
    """The period of a decimal that ends in dots: 3 of 0.1333..., 12 of 0.121212..."""
    for length in range(1, len(digits) // 2 + 1):
        period = digits[-length:]
        times = 3 if length == 1 else 2
        if digits.endswith(period * times):
            return period
    return None


def _words(text: str) -> Number | None:
    """Reads "twenty-one", "3 million", "two thirds", "one and a half"."""
    words = re.sub(r"(?<=[A-Za-z])-(?=[a-z])", " ", text.lower()).split()
    if len(words) > 1 and words[0] in ("negative", "minus"):
        found = _words(" ".join(words[1:]))
        return None if found is None else Number(-found.value)
    if "point" in words[1:-1]:
        at = words.index("point")
        whole, places = _count(words[:at]), [_WORDS.get(word, 10) for word in words[at + 1 :]]
        if whole is None or max(places) > 9:
            return None
        return Number(Fraction(f"{whole}.{''.join(map(str, places))}"), len(places))
    if len(words) == 1 and words[0] in _ORDINALS:
        return Number(Fraction(_ORDINALS[words[0]]))
    if not 0 < len(words) <= 12 or words[-1] in ("a", "an") or not words[-1][-1].isalpha():
        return None
    if words[-1][-1] in SCALES and words[-1][:-1]:  # 3万
        words[-1:] = [words[-1][:-1], words[-1][-1]]
    if words[-1] in _PARTS:
        count = _count(words[:-1]) if words[:-1] else Fraction(words[0] in ("half", "quarter"))
        if count is None and "and" in words:  # two and a half
            at = words.index("and")
            whole, part = _count(words[:at]), _count(words[at + 1 : -1])
            if whole is None or part is None:
                return None
            return Number(whole + part / _PARTS[words[-1]])
        return Number(count / _PARTS[words[-1]]) if count else None
    count = _count(words)
    return None if count is None else Number(count)


def _count(words: list[str]) -> Fraction | None:
    """The value of number words, or of a number with words for its scale."""
    if words in (["a"], ["an"]):
        return Fraction(1)
    total, current, seen = Fraction(0), Fraction(0), False
    for position, word in enumerate(words):
        if word in _WORDS:
            if seen and _WORDS[word] >= 10 and current % 100:
                return None
            if seen and current % 10 and current % 100:
                return None
            current, seen = current + _WORDS[word], True
        elif word == "hundred" or word in ("dozen", "dozens"):
            current, seen = (current or Fraction(1)) * SCALES[word], True
        elif word in SCALES:
            total, current, seen = (
                total + (current or Fraction(1)) * SCALES[word],
                Fraction(0),
                True,
            )
        elif word == "and" and 0 < position < len(words) - 1 and words[position - 1] in SCALES:
            continue
        elif position == 0 and len(words) > 1 and _NUMBER.fullmatch(word):
            number = parse_number(word)
            if number is None or not all(one in SCALES for one in words[1:]):
                return None
            current, seen = number.value, True
        else:
            return None
    return total + current if seen else None
