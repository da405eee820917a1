"""Exact numbers with units, parsed from answers."""

import re
from dataclasses import dataclass
from fractions import Fraction

RELATIVE_TOLERANCE = Fraction(1, 10**6)
"""Tolerance if one of the numbers is a decimal: 0.333333 is a third, 0.333 is not."""
MAX_DIGITS = 60
MAX_EXPONENT = 60


@dataclass(frozen=True, slots=True)
class Unit:
    """A unit of measurement, or the name of counted things."""

    kind: str
    """Dimension, or the name itself for an unknown unit."""
    power: int = 1
    """Exponent: 2 for areas, 3 for volumes."""
    factor: Fraction = Fraction(1)
    """Size relative to the base unit, with the power applied."""


@dataclass(frozen=True, slots=True)
class Number:
    """An exact number."""

    value: Fraction
    is_decimal: bool
    """Whether it was written with a decimal point and may be rounded."""


def _table() -> dict[str, tuple[str, Fraction]]:
    kinds = {
        "length": "mm 1/1000;cm 1/100;dm 1/10;m 1;km 1000;inch 127/5000;in 127/5000;"
        "foot 381/1250;feet 381/1250;ft 381/1250;yard 1143/1250;mile 201168/125;"
        "millimeter 1/1000;centimeter 1/100;meter 1;kilometer 1000;"
        "millimetre 1/1000;centimetre 1/100;metre 1;kilometre 1000",
        "mass": "mg 1/1000;g 1;gram 1;kg 1000;kilogram 1000;ton 1000000;tonne 1000000",
        "time": "s 1;sec 1;second 1;min 60;minute 60;h 3600;hr 3600;hour 3600;day 86400",
        "volume": "ml 1/1000;mL 1/1000;l 1;L 1;liter 1;litre 1",
        "angle": "° 1;degree 1;deg 1",
        "percent": "% 1;percent 1",
    }
    return {
        name: (kind, Fraction(factor))
        for kind, units in kinds.items()
        for name, factor in (unit.split() for unit in units.split(";"))
    }


_UNITS = _table()
_DIGITS = r"(?:\d{1,3}(?:(?:,|\s)\d{3})+|\d+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.\d*)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:"
    rf"(?P<whole>\d+)?\s*\\frac\{{(?P<over>\d+)\}}\{{(?P<under>\d+)\}}"
    rf"|(?:(?P<mixed>\d+)\s)?(?P<top>{_DIGITS})/(?P<bottom>{_DIGITS})"
    rf"|(?P<decimal>{_DECIMAL})"
    rf"(?:(?:[eE]|\\(?:times|cdot)\s?10\^\{{?)(?P<exponent>[-+]?\d+)\}}?)?"
    rf")"
)
_SIGNED_FRACTION = re.compile(r"\\frac\{-(\d+)\}\{(\d+)\}")
_UNIT = re.compile(
    r"(?P<body>.*[\d)}\]]|.*\\pi)(?P<gap>\s*)(?P<prefix>(?:square|cubic|sq\.?)\s)?"
    r"(?P<name>%|°|[A-Za-z]+(?:\s?/\s?[A-Za-z]+)?)\s?(?:\^?(?P<power>[23]))?"
)
_NO_UNITS = frozenset({"unit", "units", "squareunit"})


def parse_number(text: str) -> Number | None:
    """Parses a number.

    Args:
        text: Integer (also 1,000), decimal (also 1.2e-3), fraction or mixed number in canonical
            form.

    Returns:
        The number; None for other texts, and for numbers with too many digits.
    """
    if len(text) > MAX_DIGITS:
        return None
    text = _SIGNED_FRACTION.sub(r"-\\frac{\1}{\2}", text)
    match = _NUMBER.fullmatch(text)
    if match is None:
        return None
    part = {name: re.sub(r"[,\s]", "", found or "") for name, found in match.groupdict().items()}
    top, bottom = part["over"] or part["top"], part["under"] or part["bottom"]
    if bottom and not int(bottom):
        return None
    if bottom:
        value = int(part["whole"] or part["mixed"] or 0) + Fraction(int(top), int(bottom))
    else:
        exponent = int(part["exponent"] or 0)
        if abs(exponent) > MAX_EXPONENT:
            return None
        value = Fraction(part["decimal"].rstrip(".")) * Fraction(10) ** exponent
    return Number(-value if part["sign"] == "-" else value, "." in part["decimal"])


def split_unit(text: str) -> tuple[str, Unit | None]:
    """Splits an answer into value and unit.

    Args:
        text: Answer in canonical form.

    Returns:
        The text before the unit, and the unit; the whole text and None without a unit.
    """
    match = _UNIT.fullmatch(text)
    if match is None:
        return text, None
    name, body = re.sub(r"\s", "", match["name"]), match["body"]
    if name in _NO_UNITS:
        return body, None
    is_apart = bool(match["gap"]) or not name.isalpha()
    if len(name) == 1 and not is_apart:  # 5m is a product, 5 m a length
        return text, None
    singular = name if name in _UNITS else re.sub(r"(?<=.)(?:(?<=ch)es|s)$", "", name)
    prefix = (match["prefix"] or "").strip()
    power = {"square": 2, "sq": 2, "sq.": 2, "cubic": 3}.get(prefix, int(match["power"] or 1))
    if singular in _UNITS or (singular := singular.lower()) in _UNITS:
        kind, factor = _UNITS[singular]
        if kind == "volume":
            return body, Unit("length", 3, factor / 1000)
        return body, Unit(kind, power, factor**power)
    if len(singular) > 2 and parse_number(body) is not None:
        return body, Unit(singular, power)
    return text, None


def same_quantity(
    given: Number, given_unit: Unit | None, expected: Number, expected_unit: Unit | None
) -> bool:
    """Compares two numbers with their units.

    A missing unit is assumed to be that of the other number. A percentage also equals its value:
    50 % equals 50 and 0.5.

    Args:
        given: Number of the answer.
        given_unit: Unit of the answer.
        expected: Number of the reference.
        expected_unit: Unit of the reference.

    Returns:
        Whether the quantities are equal.
    """
    if given_unit is not None and expected_unit is not None:
        if not same_dimension(given_unit, expected_unit):
            return False
        factor = given_unit.factor / expected_unit.factor
        return _same_number(given, expected, factor)
    if _same_number(given, expected):
        return True
    if expected_unit is not None and expected_unit.kind == "percent":
        return _same_number(given, expected, Fraction(100))
    is_percent = given_unit is not None and given_unit.kind == "percent"
    return is_percent and _same_number(given, expected, Fraction(1, 100))


def same_dimension(first: Unit, second: Unit) -> bool:
    """Whether one unit can be converted into the other."""
    return (first.kind, first.power) == (second.kind, second.power)


def _same_number(given: Number, expected: Number, factor: Fraction = Fraction(1)) -> bool:
    value = given.value * factor
    if given.is_decimal or expected.is_decimal:
        size = max(abs(value), abs(expected.value))
        return abs(value - expected.value) <= RELATIVE_TOLERANCE * size
    return value == expected.value
