"""Equality of formulas: math-verify's parser reads them, random points compare them.

math-verify itself rounds to six places, drops words that it does not know, and ignores the case of
letters; exact values at points do not.
"""

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import lru_cache
from random import Random
from typing import Any

import sympy  # type: ignore[import-untyped]
from latex2sympy2_extended import latex2sympy  # type: ignore[import-untyped]
from latex2sympy2_extended.latex2sympy2 import ConversionConfig  # type: ignore[import-untyped]
from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]

from mathcanvas_lightning.evaluation.comparison.notation import FUNCTIONS, partner
from mathcanvas_lightning.evaluation.comparison.quantities.numbers import (
    Number,
    parse_number,
    same_number,
)

DIGITS = 30
TOLERANCE = sympy.Float(10, DIGITS) ** -20
SMALLEST = sympy.Float(10, DIGITS) ** -100
NUM_POINTS = 4
CONSTANTS = ("C", "c", "K", "k")
"""Names of constants of integration."""
_CONFIG = ConversionConfig(lowercase_symbols=False, interpret_as_mixed_fractions=False)
_WORD = re.compile(r"(?<![\\A-Za-z{_])[A-Za-z]{3,}(?![A-Za-z])")
_SHORT_WORDS = frozenset(
    "am an as at be by do go he hi if in is it me my no of oh ok on or ox so to up us we".split()
)
_NO_FORMULA = re.compile(r"[,;?!]{2}|[=<>≤≥≠≈∈∪∩∖±∓⦃⦄⟦⟧;\"∅ℝℤℕℚ]|[一-鿿]|,")
_BOUNDS = re.compile(r"(?<=\\sum)_\{[^{}]*\}|(?<=\\prod)_\{[^{}]*\}|^det⟦[^⟦⟧]*⟧$")
_TO_LATEX = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"([\d.]+|π)°", r"(\\frac{\1 π}{180})"),
        (r"C_\{(\w+)\}\^\{(\w+)\}|_\{(\w+)\}C_\{(\w+)\}", r"\\binom{\1\3}{\2\4}"),
        (r"[AP]_\{(\d+)\}\^\{(\d+)\}", r"\\frac{\1!}{(\1-\2)!}"),
        (r"\\overline\{(\d+)\}", ""),
        (r"π", r"\\pi "),
        (r"∞", r"\\infty "),
        (r"\*", r"\\cdot "),
        (r"(?<=\d)\\cdot 10\^", r"\\cdot 10^"),
        (r"(?<![\d.\w}{])(\d+)\s?\\frac\{(\d+)\}\{(\d+)\}", r"(\1+\\frac{\2}{\3})"),
        (r"(?<=[\d)])\s*(?=\()", r"\\cdot "),
        (r"(?<=\))\s*(?=[\dA-Za-z])", r"\\cdot "),
        (r"(?<=\d)\s+(?=[\d(])", r" ? "),
        (r"\\(?:d|rm d)(?![A-Za-z])", "d"),
        (r"∠|△", ""),
        (r"I", r"\\iota "),  # a current; only i is imaginary
        (r"'", "_{p}"),
        (r"\\exp\s*\(", r"e^("),
    )
)


def is_formula(text: str) -> bool:
    """Whether a text may be a formula: it has no words, lists, or relations.

    Args:
        text: A text in canonical form.
    """
    if not text or _NO_FORMULA.search(_BOUNDS.sub("", text)) or _is_only_words(text):
        return False
    return not any(_is_word(text, word) for word in _WORD.finditer(text))


def same_formula(given: str, expected: str) -> bool:
    """Compares two formulas at several points.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether both can be read, and are equal.
    """
    if not all(is_formula(one) or parse_number(one) for one in (given, expected)):
        return False
    first, second = read_formula(given), read_formula(expected)
    if first is None or second is None:
        return False
    numbers = parse_number(given), parse_number(expected)
    is_constant = not first.free_symbols and not second.free_symbols
    if same_expression(first, _with_constant(second, first)):
        return True
    has_decimal = any(one is not None and one.places is not None for one in numbers)
    return is_constant and has_decimal and _rounds(first, numbers[0], second, numbers[1])


@lru_cache(maxsize=2048)
def read_formula(text: str) -> Any | None:
    """Parses a formula.

    Args:
        text: Formula in canonical form.

    Returns:
        A SymPy expression with exact numbers and without unknown functions; None if it can't be
        read.
    """
    number = parse_number(text)
    if number is not None:
        return sympy.Rational(number.value.numerator, number.value.denominator)
    if text.startswith("det⟦"):
        return _determinant(text[4:-1])
    try:
        found = latex2sympy(_latex(text), normalization_config=None, conversion_config=_CONFIG)
    except Exception:  # the parser raises plain exceptions
        return None
    if not isinstance(found, sympy.Expr):
        return None
    # h(a+b) is a product in one notation, and a function in another: both sides are alike.
    found = found.replace(
        lambda part: isinstance(part, AppliedUndef),
        lambda part: sympy.Symbol(part.func.__name__) * sympy.Mul(*part.args),
    )
    found = found.replace(_is_odd_root, _odd_root)
    if not found.has(sympy.Sum, sympy.Product):
        found = found.subs(sympy.Symbol("i"), sympy.I)
    return None if found.has(sympy.nan, sympy.zoo) else found


def same_expression(first: Any, second: Any) -> bool:
    """Compares two expressions at several points.

    Args:
        first: A SymPy expression.
        second: Another one.

    Returns:
        Whether they have the same symbols, and the same values wherever both are real.
    """
    if first == second:
        return True
    return _is_constant_ratio(first, second, only=sympy.Integer(1))


def _with_constant(expression: Any, other: Any) -> Any:
    """Names the constant of integration as the other formula does: + c and + C."""
    names = [
        {one for one in found.free_symbols if one.name in CONSTANTS and found.diff(one) == 1}
        for found in (expression, other)
    ]
    if len(names[0]) == len(names[1]) == 1 and expression.free_symbols != names[0]:
        return expression.subs(names[0].pop(), names[1].pop())
    return expression


def proportional(first: Any, second: Any, *, positive: bool = False) -> bool:
    """Whether two expressions differ by a constant factor, as both sides of equal equations do.

    Args:
        first: A SymPy expression.
        second: Another one.
        positive: Whether the factor must be above 0, as for inequalities.
    """
    return _is_constant_ratio(first, second, positive=positive)


def _is_constant_ratio(
    first: Any, second: Any, *, only: Any = None, positive: bool = False
) -> bool:
    ratio, num_values = only, 0
    names = sorted({one.name for one in first.free_symbols | second.free_symbols})
    for number, values in enumerate(_points(names)):
        if number >= NUM_POINTS and not (
            _is_real_at(first, values) and _is_real_at(second, values)
        ):
            continue  # negative values have no roots and logarithms
        a, b = _value(first, values), _value(second, values)
        if a is None or b is None:
            continue
        if _is_close(b, 0) or _is_close(a, 0):
            if not _is_close(a, b):
                return False
            num_values += only is not None
            continue
        ratio = a / b if ratio is None else ratio
        if not _is_close(a, ratio * b) or (positive and not (ratio.is_real and ratio > 0)):
            return False
        num_values += 1
    return num_values > (1 if names and only is None else 0)


def _points(names: Sequence[str]) -> Iterator[dict[Any, Any]]:
    """Values of the symbols: positive ones first, then of both signs."""
    if not names:
        yield {}
        return
    random = Random(0)  # noqa: S311
    for number in range(2 * NUM_POINTS):
        sign = -1 if number >= NUM_POINTS else 1
        yield {
            sympy.Symbol(name): sympy.Rational(random.randint(101, 397), 211)
            * (sign if random.random() < 0.7 else 1)
            for name in names
        }


def _value(expression: Any, values: dict[Any, Any]) -> Any | None:
    try:
        found = expression.subs(values).evalf(DIGITS, maxn=200)
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
        return None
    if not found.is_number:
        return None
    real, imaginary = found.as_real_imag()
    if not (real.is_Float or real.is_Rational):
        return None
    if abs(imaginary) <= TOLERANCE * abs(real):
        return real
    return found


def _is_real_at(expression: Any, values: dict[Any, Any]) -> bool:
    """Whether no root or logarithm of a negative number is needed."""
    powers = [one.base for one in expression.atoms(sympy.Pow) if not one.exp.is_Integer]
    needed = [*powers, *(one.args[0] for one in expression.atoms(sympy.log))]
    found = [_value(one, values) for one in needed]
    return all(one is not None and one.is_real and one >= 0 for one in found)


def _is_close(a: Any, b: Any) -> bool:
    difference = abs(a - b)
    return bool(difference <= SMALLEST or difference <= TOLERANCE * max(abs(a), abs(b)))


def _rounds(first: Any, given: Number | None, second: Any, expected: Number | None) -> bool:
    """Compares constants of which at least one is a decimal, which may be rounded."""
    values = []
    for expression, number in ((first, given), (second, expected)):
        if number is None:
            value = _value(expression, {})
            if value is None or not value.is_real:
                return False
            number = Number(Fraction(*map(int, sympy.Rational(value).as_numer_denom())))
        values.append(number)
    return same_number(*values)


def _is_odd_root(part: Any) -> bool:
    """Whether an expression is an odd root of a negative number, which is real in schools."""
    is_root = part.is_Pow and part.exp.is_Rational and part.exp.q > 1 and part.exp.q % 2 == 1
    return bool(is_root and part.base.is_number and part.base.is_negative)


def _odd_root(part: Any) -> Any:
    return (-1) ** part.exp.p * (-part.base) ** part.exp


def _determinant(cells: str) -> Any | None:
    rows = [[read_formula(cell) for cell in row.split("&")] for row in cells.split(";")]
    if any(cell is None for row in rows for cell in row) or {len(row) for row in rows} != {
        len(rows)
    }:
        return None
    return sympy.Matrix(rows).det()


def _is_only_words(text: str) -> bool:
    """Whether a text has only letters, and they are no product such as "ab" or "xyz"."""
    if not re.fullmatch(r"[a-z]{2,}|[A-Za-z\s]{3,}", text):
        return False
    return text in _SHORT_WORDS or not re.fullmatch("[a-z]{2}|[abc]{3}|[pqr]{3}|[xyz]{3}", text)


def _is_word(text: str, word: re.Match[str]) -> bool:
    """Whether letters are a word: products of variables touch other signs, and are short."""
    before, after = text[: word.start()][-1:], text[word.end() :][:1]
    return len(word[0]) > 4 or before == " " or after == " " or not (before + after).strip()


def _latex(text: str) -> str:
    """Writes a formula so that the parser understands it."""
    for pattern, replacement in _TO_LATEX:
        text = pattern.sub(replacement, text)
    text = re.sub(r"\d*\.\d+", _fraction, text)
    if "C_" not in text:
        text = re.sub(r"(?<![A-Za-z\\])c(?=_\{\d\})", "C", text)  # constants of integration
    for name in FUNCTIONS:
        text = text.replace(f"\\{name} (", f"\\{name}(")
    return _powers_of_functions(text)


def _fraction(decimal: re.Match[str]) -> str:
    value = Fraction(decimal[0])
    return rf"(\frac{{{value.numerator}}}{{{value.denominator}}})"


def _powers_of_functions(text: str) -> str:
    """Puts braces around the exponent of "e^(...)"."""
    while (at := text.find("^(")) >= 0:
        end = partner(text, at + 1)
        if end < 0:
            return text
        text = f"{text[:at]}^{{{text[at + 2 : end]}}}{text[end + 1 :]}"
    return text
