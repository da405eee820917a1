"""Values with units: 12 cm, 1 hour 30 minutes, 3:2, 50 %."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from fractions import Fraction

from mathcanvas_lightning.evaluation.comparison.quantities.numbers import (
    Number,
    parse_number,
    same_number,
)
from mathcanvas_lightning.evaluation.comparison.quantities.units import (
    Unit,
    find_units,
    is_unitless,
)

MAX_RATIO = 4
MAX_PLACES = 25
_PIECE = re.compile(
    r"\s*(?P<number>\d[\d,]*(?:\.\d+)?|\d+/\d+)\s*(?P<unit>[^\W\d_]+|[°'\"]|'')(?:\s+and(?=\s))?"
)
_INNER_UNITS = {("s", "m"): "min", ("s", "分"): "min", ("°", "'"): "'", ("°", "分"): "'",
                ("°", "秒"): '"', ("m", "'"): "ft", ("m", '"'): "in"}  # fmt: skip
_DESCRIBED = re.compile(
    r"(.*\d)\s(red|green|blue|yellow|white|black|orange|purple|small|large|big|old|new|boy|girl)"
    r"(\s[a-z]+)"
)
_NUMBER_WORDS = re.compile(
    r"\b(?:(?:twen|thir|for|fif|six|seven|eigh|nine)ty[\s-])?(?:one|two|three|four|five|six|seven"
    r"|eight|nine|ten|eleven|twelve|(?:thir|four|fif|six|seven|eigh|nine)teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty)\b(?=\s[a-z])"
)
_NOTED = re.compile(
    r"(?<=[\w%°²³}])\s(of [a-z]+(?: [a-z]+)?|(?:due )?(?:north|south|east|west|north ?east"
    r"|north ?west|south ?east|south ?west)|(?:to the )?(?:left|right)|up|down|upwards?"
    r"|downwards?|(?:counter|anti)?clockwise"
    r"|increase|decrease|profit|loss|off|discount|angle)$"
    r"|(?<=[天年月个时分秒米元克次种钟])((?:以?内|之内)?完成|以?后[一-鿿]{0,4}|左右|以后|多|以?内)$"
    r"|(?:(?<=\d[个人只本支张条棵辆种次名件位块台朵头颗根页道题间盒袋瓶])|(?<=[吨克米升斤元]))"
    r"([一-鿿]{1,7})$"
)
_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
          "eight": "8",
          "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_BASE = rf"(\d{{1,2}}|{'|'.join(_BASES)})"
_BASED = re.compile(
    rf"\(?([0-9A-Fa-f]+)\)?(?:_\{{\(?{_BASE}\)?\}}|\s*\(?(?:in )?base\s?{_BASE}\)?)"
)
_PREFIXED = re.compile(r"0([bx])([0-9A-Fa-f]+)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A value and its unit."""

    body: str
    """The value in canonical form."""
    units: tuple[Unit, ...] = ()
    """Meanings of the unit; empty without one."""
    is_doubtful: bool = False
    """Whether the unit may be a factor: 5m is a length or a product."""
    note: str = ""
    """Words that describe the unit: "of water", "east", "increase"."""


def parse_quantity(text: str) -> Quantity:
    """Splits an answer into value and unit.

    Args:
        text: Answer in canonical form.

    Returns:
        The value and the known unit; the whole text as value if it has none.
    """
    if (compound := parse_compound(text)) is not None:
        return compound
    for found in re.finditer(
        r"(?<=[\d)}\]π!⟧a-zA-Z])\s*(?=[^\W\d_]|[°'\"%‰¢\\])|(?<=\d)\s+(?=1/)", text
    ):
        body, name = text[: found.start()].strip(), text[found.end() :].strip()
        is_apart = found[0] != "" or not name[0].isalpha() or not name[0].isascii()
        if body[-1:].isalpha() and body[-1] != "π" and not (is_apart and parse_number(body)):
            continue
        if body.count("(") != body.count(")") or (
            name == "°" and "\\" in body and "frac" not in body
        ):
            continue  # \\sin 30° is a number
        if is_unitless(name):
            return Quantity(body)
        if units := find_units(name):
            return Quantity(body, units, is_doubtful=len(name) == 1 and not is_apart)
    return _noted(text)


def _noted(text: str) -> Quantity:
    """Reads "5 gallons of water" and "12 red marbles"."""
    if described := _DESCRIBED.fullmatch(text):
        return replace(parse_quantity(described[1] + described[3]), note=described[2])
    noted = _NOTED.search(text)
    found = parse_quantity(text[: noted.start()]) if noted else None
    is_counted = found is not None and found.body != text[: noted.start() if noted else 0]
    if noted and found and (is_counted or text[noted.start() :].startswith(" of the ")):
        note = noted[1] or noted[2] or noted[3]
        return replace(found, note=note.removeprefix("to the "))
    return Quantity(text)


def same_quantity(
    given: Quantity, expected: Quantity, same_value: Callable[[str, str], bool]
) -> bool:
    """Compares two values with their units.

    A missing unit is assumed to be that of the other value. A percentage also equals its value:
    50 % equals 50 and 0.5; a multiple of pi may be an angle in radians.

    Args:
        given: Value of the answer.
        expected: Value of the reference.
        same_value: Compares two values without units.

    Returns:
        Whether the quantities are equal.
    """
    if given.units and expected.units:
        return any(
            _same_in_units(given.body, one, expected.body, other, same_value)
            for one in given.units
            for other in expected.units
            if one.dimension == other.dimension
        )
    unit = (given.units or expected.units)[0]
    with_unit, bare = (given, expected) if given.units else (expected, given)
    if unit.is_percent:
        is_share = same_value(_scaled(with_unit.body, Fraction(1, 100)), bare.body)
        number = parse_number(with_unit.body)
        is_small = number is not None and abs(number.value) < 1
        return is_share or (not is_small and same_value(given.body, expected.body))
    if unit.dimension == (("°", 1),) and "π" in bare.body and not unit.pi_power:
        return same_value(
            _scaled(with_unit.body, unit.factor), _scaled(bare.body, Fraction(180), -1)
        )
    return same_value(given.body, expected.body)


def same_digits(given: str, expected: str) -> bool | None:
    """Compares numbers with bases; a missing base is assumed to be that of the other.

    Args:
        given: Answer in canonical form, such as 101_{2} or "101 base 2".
        expected: Reference in canonical form.

    Returns:
        Whether digits and base are the same; None unless one has a base.
    """
    first, second = _based(given), _based(expected)
    if not (first[1] or second[1]):
        return None
    return first[0] == second[0] and (not first[1] or not second[1] or first[1] == second[1])


def ratio_terms(text: str) -> list[str]:
    """Splits a ratio such as 3:2 into its terms; empty if the text is not a ratio."""
    terms = [
        term.strip() for term in re.split(r":|(?<=[\dA-Za-z])\sto\s(?!the\b)(?=[\dA-Za-z])", text)
    ]
    is_ratio = (
        not re.search(r"[,;]|\b(?:and|or)\b", text)
        and 2 <= len(terms) <= MAX_RATIO
        and all(terms)
        and "|" not in text
    )
    numbers = [parse_number(term) for term in terms]
    if is_ratio and all(number is not None for number in numbers):
        return [str(number.value) for number in numbers if number is not None]
    return terms if is_ratio and all(re.search(r"[\dA-Zπ}a-z]", term) for term in terms) else []


def _scaled(body: str, factor: Fraction, pi_power: int = 0) -> str:
    """The text of a value times a factor."""
    number = parse_number(body)
    if number is None or pi_power:
        turns = {0: "", 1: "*π", -1: "/π"}[pi_power]
        return f"({body if number is None else number.value})*({factor}){turns}"
    value = number.value * factor
    if number.places is None or 10**MAX_PLACES % value.denominator:
        return str(value)
    return f"{Decimal(value.numerator) / Decimal(value.denominator):f}"  # it may be rounded


def _same_in_units(
    given: str, unit: Unit, expected: str, other: Unit, same_value: Callable[[str, str], bool]
) -> bool:
    if (unit.factor, unit.zero, unit.pi_power) == (other.factor, other.zero, other.pi_power):
        return same_value(given, expected)
    first, second = parse_number(given), parse_number(expected)
    if first is None or second is None or unit.pi_power != other.pi_power:
        return same_value(
            _scaled(given, unit.factor / other.factor, unit.pi_power - other.pi_power), expected
        )
    value = (first.value * unit.factor + unit.zero - other.zero) / other.factor
    back = (second.value * other.factor + other.zero - unit.zero) / unit.factor
    return same_number(Number(value), second) or same_number(first, Number(back))


def parse_compound(text: str) -> Quantity | None:
    """Adds the parts of "1 hour 30 minutes", "2 ft 3 in", "30°15'".

    Args:
        text: A text in canonical form.

    Returns:
        The sum in base units; None if the text is something else.
    """
    text = _NUMBER_WORDS.sub(_digits, text)
    total, position, last = Fraction(0), 0, None
    count = 0
    while position < len(text):
        piece = _PIECE.match(text, position)
        if piece is None or (number := parse_number(piece["number"])) is None:
            return None
        unit = _unit_of(piece["unit"], last)
        if unit is None or (last is not None and not _is_finer(unit, last)):
            return None
        total += number.value * unit.factor
        position, last, count = piece.end(), unit, count + 1
    if count < 2 or last is None:
        return None
    base = Unit(last.dimension)
    return Quantity(str(total), (base,))


def _digits(words: re.Match[str]) -> str:
    number = parse_number(words[0])
    return words[0] if number is None else str(number.value)


def _unit_of(name: str, last: Unit | None) -> Unit | None:
    name = '"' if name == "''" else name
    if last is None:
        # 5'3" is a length, 30°15' an angle.
        units = find_units("ft" if name == "'" else name)
        return units[-1] if units else None
    base = last.dimension[0][0] if last.dimension else ""
    units = find_units(_INNER_UNITS.get((base, name), name))
    return next((unit for unit in units if unit.dimension == last.dimension), None)


def _is_finer(unit: Unit, last: Unit) -> bool:
    return unit.dimension == last.dimension and unit.factor < last.factor


def _based(text: str) -> tuple[str, str]:
    if prefixed := _PREFIXED.fullmatch(text):
        return prefixed[2].upper(), {"b": "2", "x": "16"}[prefixed[1]]
    match = _BASED.fullmatch(text)
    if match is None:
        return text, ""
    base = match[2] or match[3]
    return match[1].upper(), _BASES.get(base, base)
