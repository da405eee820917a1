"""Periodic solutions: π/4 + kπ with k ∈ ℤ, also as ±, as several families, and as intervals."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import lcm
from typing import Any

import sympy  # type: ignore[import-untyped]

from mathcanvas_lightning.evaluation.comparison import structure
from mathcanvas_lightning.evaluation.comparison.algebra import DIGITS, read_formula

MAX_RESIDUES = 400
PLACES = 15
"""Decimal places of a position, relative to the common period, that are compared."""

_INTEGERS = r"(?:ℤ|Z|N|ℕ|\\mathbb\{Z\})(?:\^?[_{+*]*\}?)?"
_NAME = r"(?P<name>[a-zA-Z])"
_QUANTIFIER = re.compile(
    r"[,;]?\s*\(?(?:where|for|with|其中)?,?\s*(?:any|all|every|each|some)?\s*"
    rf"(?:{_NAME}\s*(?:∈\s*{_INTEGERS}|(?:is|being|=)?\s*(?:an|any)\s(?:arbitrary\s)?integer"
    rf"|\s*[为是取]?(?:任意)?整数)"
    r"|(?:integers?|integral)(?:\svalues?\sof)?\s(?P<integer>[a-zA-Z]))\)?$"
)
_BUILDER = re.compile(r"⦃\s*(?:[A-Za-zα-ω](?:∈ℝ)?)\s*[|:](.*)⦄")
_PARAMETER = re.compile(r"(?<![\\A-Za-z_{])([knm])(?![A-Za-z_(])")


@dataclass(frozen=True, slots=True)
class Family:
    """Values or intervals that repeat with a period."""

    period: Any
    starts: tuple[Any, ...]
    """The value at 0, or both ends of an interval."""
    brackets: str = ""


def same_families(given: str, expected: str) -> bool | None:
    """Compares periodic solutions as sets.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether they are the same set; None unless both are periodic.
    """
    firsts, seconds = read_families(given), read_families(expected)
    if not firsts or not seconds:
        return None
    periods = {one.period for one in (*firsts, *seconds)}
    unit = min(periods, key=float)
    ratios = [sympy.nsimplify(one / unit) for one in periods]
    if not all(ratio.is_Rational for ratio in ratios):
        return False
    period = unit * lcm(*(int(one.p) for one in ratios))
    positions = [set(_positions(families, period)) for families in (firsts, seconds)]
    return positions[0] == positions[1] and len(positions[0]) < MAX_RESIDUES


def read_families(text: str) -> list[Family]:
    """Reads periodic solutions.

    Args:
        text: A text in canonical form: "x=π/6+2kπ or x=5π/6+2kπ, k∈ℤ".

    Returns:
        The families; empty if the text is something else.
    """
    if builder := _BUILDER.fullmatch(text):
        text = builder[1]
    quantifier = _QUANTIFIER.search(text)
    body = text[: quantifier.start()] if quantifier else text
    if quantifier is None and "π" not in body and "°" not in body:
        return []
    names = {quantifier["name"] or quantifier["integer"]} if quantifier else set()
    names = names or set(_PARAMETER.findall(body))
    if len(names) != 1:
        return []
    found = [_family(item, *names) for item in next(structure.readings(body.strip(" ()")
             if body.count("(") != body.count(")") else body))]  # fmt: skip
    return [one for one in found if one] if all(found) else []


def _family(item: str, name: str) -> Family | None:
    item = item.rpartition("∈")[2] if re.match(r"[A-Za-zα-ω]∈", item) else item
    if chain := re.fullmatch(r"([^<>≤≥]+)([<≤])[A-Za-zα-ω]([<≤])([^<>≤≥]+)", item):
        left, right = "(" if chain[2] == "<" else "[", ")" if chain[3] == "<" else "]"
        return _repeated((chain[1], chain[4]), name, left + right)
    if interval := structure.bracketed(item):
        is_interval = len(interval.items) == 2 and interval.left in "(["
        return (
            _repeated(interval.items, name, interval.left + interval.right) if is_interval else None
        )
    values = structure.statement(item).values
    return _repeated(values[:1], name, "") if values else None


def _repeated(texts: tuple[str, ...], name: str, brackets: str) -> Family | None:
    symbol = sympy.Symbol(name)
    ends = [read_formula(text) for text in texts]
    if any(end is None or end.free_symbols - {symbol} for end in ends):
        return None
    slopes = {sympy.simplify(sympy.diff(end, symbol)) for end in ends}
    (slope,) = slopes if len(slopes) == 1 else (symbol,)
    if slope.free_symbols or not slope.is_real or slope.is_zero is not False:
        return None
    return Family(
        abs(slope), tuple(end.subs(symbol, 0) for end in ends if end is not None), brackets
    )


def _positions(families: list[Family], period: Any) -> Iterator[tuple[str, Fraction, Fraction]]:
    """The place of each member within the common period, and its length."""
    for family in families:
        length = _rounded((family.starts[-1] - family.starts[0]) / period)
        for number in range(min(int(sympy.nsimplify(period / family.period)), MAX_RESIDUES)):
            start = _rounded((family.starts[0] + number * family.period) / period)
            yield family.brackets, start % 1, length


def _rounded(value: Any) -> Fraction:
    return Fraction(str(round(sympy.N(value, DIGITS), PLACES)))
