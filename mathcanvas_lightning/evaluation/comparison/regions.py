"""Sets of real numbers: intervals, unions, inequalities in one variable, set-builder notation."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sympy  # type: ignore[import-untyped]
from sympy.solvers.inequalities import (  # type: ignore[import-untyped]
    solve_univariate_inequality,
)

from mathcanvas_lightning.evaluation.comparison.algebra import (
    is_formula,
    proportional,
    read_formula,
)
from mathcanvas_lightning.evaluation.comparison.notation import partner
from mathcanvas_lightning.evaluation.comparison.phrases import phrase_of
from mathcanvas_lightning.evaluation.comparison.structure import plus_minus, split_items, split_top

MARKS = re.compile(r"[<>≤≥≠∈∪∩∖ℝ]|\|.*[<>≤≥≠∈]|⦃[^|:]*[|:]")
_RELATION = re.compile(r"[<>≤≥≠]")
_OPPOSITE = {"<": ">", ">": "<", "≤": "≥", "≥": "≤", "≠": "≠"}
_NAMED: dict[str, Any] = {
    "ℝ": sympy.S.Reals,
    "R": sympy.S.Reals,
    "∅": sympy.S.EmptySet,
    "ℤ": sympy.S.Integers,
    "ℕ": sympy.S.Naturals,
    ">0": sympy.Interval.open(0, sympy.oo),
    "<0": sympy.Interval.open(-sympy.oo, 0),
}


_PHRASES = {"all reals": "ℝ", "no solution": "∅", "positive reals": ">0", "negative reals": "<0"}
_WORDS = tuple(
    (
        re.compile(
            rf"^(?:([A-Za-zα-ω])\s?)?(?:(?:is|must be|can be)\s)?(?:{words})\s?(?=[-\d\\π(])"
        ),
        sign,
    )
    for words, sign in (
        (
            "at least|no less than|not less than|greater than or equal to|不小于|大于等于|至少"
            "|大于或等于",
            "≥",
        ),
        (
            "at most|no more than|not more than|less than or equal to|不大于|不超过|小于等于|至多"
            "|小于或等于",
            "≤",
        ),
        ("more than|greater than|larger than|大于|超过", ">"),
        ("less than|smaller than|fewer than|小于", "<"),
    )
)
_ALL_NUMBERS = re.compile(
    r"^all (?:reals?|(?:real )?(?:numbers|values))(?: that are)? (?=(?:more|less|greater|at|no) )"
)
_BETWEEN = re.compile(r"([A-Za-zα-ω]) (?:is |lies )?(?:strictly )?between ([^\s]+) and ([^\s]+)")


@dataclass(frozen=True, slots=True)
class Region:
    """A set of real numbers."""

    points: Any
    """A SymPy set."""
    variable: str = ""
    """Name of the variable of an inequality; empty for a plain set."""


def has_region(text: str) -> bool:
    """Whether a text has a sign or words that only sets and inequalities have.

    Args:
        text: A text in canonical form.
    """
    return MARKS.search(text) is not None or _in_words(text) != text


def same_region(given: str, expected: str) -> bool | None:
    """Compares two sets of real numbers.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether they are the same set; None if one can't be read as a set.
    """
    first, second = read_region(given), read_region(expected)
    if first is None or second is None:
        return None
    if first.variable and second.variable and first.variable != second.variable:
        return False
    if first.points == second.points:
        return True
    try:
        return bool(first.points.symmetric_difference(second.points).is_empty)
    except (TypeError, ValueError, NotImplementedError):
        return False


def same_inequality(given: str, expected: str) -> bool:
    """Compares inequalities in several variables: 2x - y < -1 is y > 2x + 1.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.
    """
    first, second = _difference(given), _difference(expected)
    if first is None or second is None or first[0] != second[0]:
        return False
    return proportional(first[1], second[1], positive=first[0] != "≠")


def read_region(text: str) -> Region | None:
    """Reads a set of real numbers.

    Args:
        text: Interval, union, inequality or set in canonical form.

    Returns:
        The set; None if the text is not a set, or has several variables.
    """
    text = text.strip()
    if name := _PHRASES.get(phrase_of(text)):
        return Region(_NAMED[name])
    text = _in_words(text)
    if "≠" in text and "±" in text:
        return _joined(plus_minus(text), sympy.Intersection)
    for sign, unite in (("∪", sympy.Union), ("∩", sympy.Intersection), ("∖", sympy.Complement)):
        parts = split_top(text, re.compile(sign))
        if len(parts) > 1:
            return _joined(parts, unite)
    parts = split_top(text, re.compile(r"\s*\bor\b\s*"))
    if len(parts) > 1:
        return _joined(parts, sympy.Union)
    parts = [
        one.strip() for one in split_top(text, re.compile(r",|;|\s*\band\b\s*")) if one.strip()
    ]
    if len(parts) > 1 and re.search("[<>≤≥≠∈]", parts[0]):
        return _conditions(parts)
    return _single(text)


def _in_words(text: str) -> str:
    """Writes "x is at least 5" as an inequality, and "at least 5" as an interval."""
    text = _ALL_NUMBERS.sub("", text)
    text = re.sub(r"^[fgh]\([a-zθ]\)(?=[<>≤≥])", "y", text)
    if between := _BETWEEN.fullmatch(text):
        return f"{between[2]}<{between[1]}<{between[3]}"
    if bare := re.fullmatch(r"([<>≤≥])([-\d\\π(].*)", text):
        return _unnamed(bare[1], bare[2])
    for pattern, sign in _WORDS:
        if found := pattern.match(text):
            rest = text[found.end() :]
            if found[1]:
                return f"{found[1]}{sign}{rest}"
            return _unnamed(sign, rest)
    return text


def _unnamed(sign: str, end: str) -> str:
    """The interval that "at least 5" and "≥ 5" mean."""
    if sign in "≥>":
        return f"{'[' if sign == '≥' else '('}{end},∞)"
    return f"(-∞,{end}{']' if sign == '≤' else ')'}"


def _single(text: str) -> Region | None:
    if text in _NAMED:
        return Region(_NAMED[text])
    if text[:1] == "⦃" and partner(text, 0) == len(text) - 1:
        return _braces(text[1:-1])
    name, sign, rest = text.partition("∈")
    if sign and re.fullmatch(r"[A-Za-zα-ω]", name.strip()):
        found = read_region("ℝ" if rest.strip() == "R" else rest)
        return None if found is None else Region(found.points, name.strip())
    if _RELATION.search(text):
        return _inequality(text)
    return _solution(text) or _interval(text)


def _joined(parts: Sequence[str], unite: Any) -> Region | None:
    found = [read_region(part) for part in parts]
    names = {one.variable for one in found if one is not None and one.variable}
    if any(one is None for one in found) or len(names) > 1:
        return None
    points = [one.points for one in found if one is not None]
    return Region(unite(*points), next(iter(names), ""))


def _conditions(parts: Sequence[str]) -> Region | None:
    """Intersects "x > 1, x < 3"; in "x ≠ 0, 1" the relation holds for each number."""
    start = re.match(r"[^<>≤≥≠]*≠", parts[0])
    full = [one if _RELATION.search(one) or not start else start[0] + one for one in parts]
    are_conditions = all(re.search("[<>≤≥≠∈]", one) for one in full)
    return _joined(full, sympy.Intersection) if are_conditions else None


def _braces(inner: str) -> Region | None:
    for sign in "|:":
        head, found, condition = inner.partition(sign)
        if found and re.match(r"\s*[A-Za-z]\s*(?:∈|$)", head):
            region = read_region(condition)
            if region is not None and "∈" in head:
                within = read_region(head.partition("∈")[2])
                if within is None:
                    return None
                return Region(sympy.Intersection(region.points, within.points))
            return None if region is None else Region(region.points)
    values = [read_formula(item) for item in split_items(inner)]
    if any(value is None or value.free_symbols for value in values):
        return None
    points = [value.doit() for value in values if value is not None]
    return Region(sympy.FiniteSet(*points))


def _interval(text: str) -> Region | None:
    if len(text) < 5 or text[0] not in "([" or text[-1] not in ")]":
        return None
    ends = split_items(text[1:-1], in_brackets=True)
    values = [_end(one) for one in ends]
    if len(values) != 2 or None in values:
        return None
    left_open, right_open = text[0] == "(", text[-1] == ")"
    try:
        return Region(sympy.Interval(*values, left_open, right_open))
    except (TypeError, ValueError, NotImplementedError):
        return None


def _end(text: str) -> Any | None:
    """An end of an interval, as a real expression."""
    found = read_formula(text.lstrip("+")) if is_formula(text) else None
    if found is None:
        return None
    names = {symbol: sympy.Symbol(symbol.name, real=True) for symbol in found.free_symbols}
    return found.subs(names).doit()


def _inequality(text: str) -> Region | None:
    """Reads "1 < x ≤ 3", "|x| < 2"; None with several variables."""
    terms, signs = _RELATION.split(text), _RELATION.findall(text)
    values = [_end(term) for term in terms]
    if any(value is None for value in values):
        return None
    symbols = set[Any]().union(*(value.free_symbols for value in values if value is not None))
    if len(symbols) != 1:
        return None
    (symbol,) = symbols
    points = sympy.S.Reals
    for left, sign, right in zip(values, signs, values[1:], strict=False):
        one = _solved(left, sign, right, symbol)
        if one is None:
            return None
        points = sympy.Intersection(points, one)
    return Region(points, symbol.name)


def _solution(text: str) -> Region | None:
    """Reads "x = 0", one of the alternatives in "x = 0 or x > 2"."""
    name, sign, value = text.partition("=")
    if not sign or not re.fullmatch(r"[A-Za-zα-ω]", name):
        return None
    found = _end(value)
    return None if found is None or found.free_symbols else Region(sympy.FiniteSet(found), name)


def _solved(left: Any, sign: str, right: Any, symbol: Any) -> Any | None:
    if left == symbol and not right.free_symbols:
        return _half_line(sign, right)
    if right == symbol and not left.free_symbols:
        return _half_line(_OPPOSITE[sign], left)
    if (line := _linear(left, sign, right, symbol)) is not None:
        return line
    relations = {"<": sympy.Lt, ">": sympy.Gt, "≤": sympy.Le, "≥": sympy.Ge, "≠": sympy.Ne}
    try:
        return solve_univariate_inequality(relations[sign](left, right), symbol, relational=False)
    except (TypeError, ValueError, NotImplementedError, AttributeError):
        return None


def _linear(left: Any, sign: str, right: Any, symbol: Any) -> Any | None:
    """Solves 3x + 2 > 8 at once: the general solver is slow."""
    difference = sympy.expand(left - right)
    slope = difference.coeff(symbol, 1)
    rest = sympy.expand(difference - slope * symbol)
    if not slope.is_number or rest.free_symbols or slope.is_zero is not False:
        return None
    return _half_line(sign if slope.is_positive else _OPPOSITE[sign], -rest / slope)


def _half_line(sign: str, end: Any) -> Any:
    if sign == "≠":
        return sympy.Complement(sympy.S.Reals, sympy.FiniteSet(end))
    if sign in "<≤":
        return sympy.Interval(-sympy.oo, end, True, sign == "<")
    return sympy.Interval(end, sympy.oo, sign == ">", True)


def _difference(text: str) -> tuple[str, Any] | None:
    """The relation "<", "≤" or "≠" to 0, and the left side."""
    terms, signs = _RELATION.split(text), _RELATION.findall(text)
    if len(signs) != 1 or not all(map(is_formula, terms)):
        return None
    left, right = (read_formula(term) for term in terms)
    if left is None or right is None:
        return None
    if signs[0] in ">≥":
        return _OPPOSITE[signs[0]], right - left
    return signs[0], left - right
