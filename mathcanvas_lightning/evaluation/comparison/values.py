"""Equivalence of two values in canonical form: what their structure is, and what it holds."""

import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import sympy  # type: ignore[import-untyped]

from mathcanvas_lightning.evaluation.comparison import structure
from mathcanvas_lightning.evaluation.comparison.algebra import (
    is_formula,
    proportional,
    read_formula,
    same_formula,
)
from mathcanvas_lightning.evaluation.comparison.essence import essence
from mathcanvas_lightning.evaluation.comparison.families import same_families
from mathcanvas_lightning.evaluation.comparison.notation import canonical
from mathcanvas_lightning.evaluation.comparison.phrases import (
    is_decision,
    same_phrase,
    same_text,
)
from mathcanvas_lightning.evaluation.comparison.quantities.clock import same_time
from mathcanvas_lightning.evaluation.comparison.quantities.dates import same_date
from mathcanvas_lightning.evaluation.comparison.quantities.measures import (
    parse_compound,
    parse_quantity,
    ratio_terms,
    same_digits,
    same_quantity,
)
from mathcanvas_lightning.evaluation.comparison.quantities.numbers import parse_number, same_number
from mathcanvas_lightning.evaluation.comparison.regions import (
    has_region,
    same_inequality,
    same_region,
)

_FUNCTION = re.compile(r"y|[fgh]\([a-z]\)")
_PRODUCT = re.compile(r"[a-z]{2,3}")


def same(given: str, expected: str) -> bool:
    """Whether two answers are equivalent.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.
    """
    given, expected = essence(given), essence(expected)
    if same_text(given, expected):
        return True
    for rule in (same_time, same_date, _same_plain, same_phrase, same_digits, _same_compound):
        if (found := rule(given, expected)) is not None:
            return found
    if (found := same_families(given, expected)) is not None:
        return found
    if any(map(has_region, (given, expected))) and (
        (found := same_region(given, expected)) is not None
    ):
        return found
    for rule in (_same_ratio, _same_matrix, _same_list, _same_brackets):
        if (found := rule(given, expected)) is not None:
            return found
    return _same_statement(given, expected)


def _same_plain(given: str, expected: str) -> bool | None:
    """Compares two plain numbers."""
    first, second = parse_number(given), parse_number(expected)
    if first is None or second is None:
        return None
    # 100,200 may also be a list of two.
    return same_number(first, second)


def _same_compound(given: str, expected: str) -> bool | None:
    """Compares "1 hour and 30 minutes" with a value: it is no list."""
    is_compound = parse_compound(given) is not None or parse_compound(expected) is not None
    return _same_value(given, expected) if is_compound else None


def _same_ratio(given: str, expected: str) -> bool | None:
    first, second = (ratio_terms(one.rpartition("=")[2]) for one in (given, expected))
    if not first and not second:
        return None
    if first and second:
        return len(first) == len(second) and all(
            _same_value(f"({a})*({second[0]})", f"({b})*({first[0]})")
            for a, b in zip(first[1:], second[1:], strict=True)
        )
    terms, other = (first, expected) if first else (second, given)
    return len(terms) == 2 and _same_value(f"({terms[0]})/({terms[1]})", other)


def _same_matrix(given: str, expected: str) -> bool | None:
    first, second = structure.rows_of(_value(given)), structure.rows_of(_value(expected))
    if not first or not second:
        return None
    if [len(row) for row in first] != [len(row) for row in second]:
        return False
    cells = zip(chain(*first), chain(*second), strict=True)
    return all(same(a.strip(), b.strip()) for a, b in cells)


def _same_list(given: str, expected: str) -> bool | None:
    """Compares lists without brackets, in any order unless only one has names."""
    firsts, seconds = list(structure.readings(given)), list(structure.readings(expected))
    if all(len(one) < 2 for one in (*firsts, *seconds)):
        return None
    if all(map(is_decision, chain(firsts[0], seconds[0]))):
        return len(firsts[0]) == len(seconds[0]) and all(map(same, firsts[0], seconds[0]))
    for first in firsts:
        for second in seconds:
            if len(first) == len(second) > 1 and _same_items(first, second):
                return True
    others = [one for one in ((given, seconds), (expected, firsts)) if len(one[1][0]) > 1]
    for text, lists in others:  # a list against (1,2) or {1,2}
        found = structure.bracketed(_value(text))
        if found is not None and any(_matches_brackets(one, found) for one in lists):
            return True
    for text, items, other in ((given, firsts[0], seconds[0]), (expected, seconds[0], firsts[0])):
        if len(items) > 1 == len(other) and re.search(r"\bor\b", text):  # 3/4 or 0.75
            return all(same(item, other[0]) for item in items)
    is_list = len(firsts[0]) > 1 or len(seconds[0]) > 1
    return False if is_list else None


def _matches_brackets(items: Sequence[str], found: structure.Bracketed) -> bool:
    if len(items) != len(found.items) or len(items) > structure.MAX_ITEMS:
        return False
    values = structure.named_values(items)
    if not found.is_ordered:
        return same_unordered(values, found.items)
    is_open = found.left == "(" and found.right == ")"
    is_vector = found.left == "⟦" or (len(items) > 2 and found.left + found.right == "[]")
    if not (is_open or is_vector):
        return False
    return all(same(a, b) for a, b in zip(values, found.items, strict=True))


def _same_items(first: Sequence[str], second: Sequence[str]) -> bool:
    if len(first) > structure.MAX_ITEMS:
        return list(first) == list(second)
    names = [structure.item_names(items) for items in (first, second)]
    if _are_numbered(names[0], names[1]) or _are_numbered(names[1], names[0]):
        return same_unordered(_bare(first), _bare(second))  # x_1 = 2, x_2 = 3 are solutions
    distinct = [len(set(one)) == len(one) and all(one) for one in names]
    if any(distinct) and not all(any(one) for one in names):
        # x = 2, y = 3 against 2, 3: in the order given, or that of the names.
        pairs = [
            (_bare(first), _bare(second)),
            (structure.named_values(first), structure.named_values(second)),
        ]
        return any(all(map(same, *pair)) for pair in pairs)
    return same_unordered(_with_names(first, names[0]), _with_names(second, names[1]))


def _are_numbered(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether names are x_1, x_2, ..., and the others are x or none."""
    bases = {re.sub(r"_(?:\d|1,2)$", "", name) for name in names}
    is_numbered = all(re.search(r"_(?:\d|1,2)$", name) for name in names)
    return is_numbered and len(bases) == 1 and set(others) <= bases | {""}


def _bare(items: Sequence[str]) -> list[str]:
    return [(structure.statement(item).values or ("",))[0] for item in items]


def _with_names(items: Sequence[str], names: Sequence[str]) -> list[str]:
    """Repeats the name in "x = 2, 3"."""
    if names[0] and not any(names[1:]) and not structure.bracketed(_value(items[0])):
        return [items[0], *(f"{names[0]}={item}" for item in items[1:])]
    return list(items)


def same_unordered(first: Sequence[str], second: Sequence[str]) -> bool:
    """Whether two lists have equivalent items, in any order.

    Args:
        first: Items in canonical form.
        second: Items of the other list.
    """
    if len(first) != len(second) or len(first) > structure.MAX_ITEMS:
        return False
    remaining = list(second)
    for item in first:
        match = next((one for one in remaining if same(item, one)), None)
        if match is None:
            return False
        remaining.remove(match)
    return True


def _same_brackets(given: str, expected: str) -> bool | None:
    """Compares tuples, intervals, vectors and sets, with the name of a point or without."""
    first_name, first_text = _point(given)
    second_name, second_text = _point(expected)
    first, second = structure.bracketed(first_text), structure.bracketed(second_text)
    if first is None and second is None:
        return None
    first, second = first or _of_basis(first_text, second), second or _of_basis(second_text, first)
    if (single := _one_bracketed(given, expected)) is not None:
        return single
    if first is None or second is None:
        return None
    if first_name and second_name and first_name != second_name:
        return False
    if not first.is_ordered or not second.is_ordered:
        same_kind = first.is_ordered == second.is_ordered
        return same_kind and same_unordered(_distinct(first.items), _distinct(second.items))
    if len(first.items) != len(second.items) or not _same_kind(first, second):
        return False
    return all(same(a, b) for a, b in zip(first.items, second.items, strict=True))


def _of_basis(text: str, other: structure.Bracketed | None) -> structure.Bracketed | None:
    """Reads 3i - 4j as (3, -4) beside a vector."""
    if other is None or not 2 <= len(other.items) <= 3 or not re.search("[jk]", text):
        return None
    found = read_formula(text) if is_formula(text) else None
    if found is None:
        return None
    basis = [sympy.I, *sympy.symbols("j k")][: len(other.items)]
    found = sympy.expand(found)
    parts = [found.coeff(one) for one in basis]
    rest = sympy.expand(found - sum(a * b for a, b in zip(parts, basis, strict=True)))
    if rest != 0 or any(part.has(*basis) for part in parts):
        return None
    items = [sympy.latex(part).replace(r"\pi", "π") for part in parts]
    return structure.Bracketed("(", ")", tuple(map(canonical, items)))


def _same_kind(first: structure.Bracketed, second: structure.Bracketed) -> bool:
    """Whether brackets may mean the same: kinds of brackets differ between intervals only."""
    kinds = {first.left + first.right, second.left + second.right}
    return (
        len(kinds) == 1
        or kinds <= {"()", "⟦⟧"}
        or kinds <= {"[]", "⟦⟧"}
        or (len(first.items) > 2 and kinds <= {"()", "[]", "⟦⟧"})
    )


def _one_bracketed(given: str, expected: str) -> bool | None:
    """Compares {5} with 5, and {(0,1)} with (0,1)."""
    items = [found.items if (found := structure.bracketed(one)) and not found.is_ordered else ()
             for one in (given, expected)]  # fmt: skip
    if all(items) or max(map(len, items)) != 1:
        return None
    return same((items[0] or (given,))[0], (items[1] or (expected,))[0])


def _distinct(items: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for item in items:
        if not any(same(item, one) for one in kept):
            kept.append(item)
    return kept


def _point(text: str) -> tuple[str, str]:
    """The name of a point or vector, and its coordinates: P(1,2), (x,y)=(1,2), v = (1,2)."""
    if match := re.fullmatch(r"([A-Z](?:_\{?\w+\}?|'|\d)*)\s*=?\s*(\(.*\))", text):
        return match[1], match[2]
    sides = structure.equation(text)
    if sides and (structure.is_name(sides[0]) or structure.names_of(sides[0])):
        return structure.statement(text).name or sides[0], sides[1]
    return "", text


def _value(text: str) -> str:
    return _point(text)[1]


def _same_statement(given: str, expected: str) -> bool:
    """Compares values with or without names, equations, and inequalities."""
    if has_region(given) or has_region(expected):
        return same_inequality(given, expected)
    first, second = structure.statement(given), structure.statement(expected)
    are_functions = _FUNCTION.fullmatch(first.name) and _FUNCTION.fullmatch(second.name)
    if first.name and second.name and first.name != second.name and not are_functions:
        return _same_equation(given, expected)
    for a in first.values:
        for b in second.values:
            if (a, b) != (given, expected) and same(a, b):
                return True
    if _same_equation(given, expected) or _same_value(given, expected):
        return True
    sides = structure.equation(given), structure.equation(expected)
    for identity, value in ((sides[0], expected), (sides[1], given)):  # 4x - 4 = 4(x - 1)
        if identity and None in sides and same_formula(*identity):
            return same_formula(identity[1], value)
    return False


def _same_equation(given: str, expected: str) -> bool:
    first, second = _difference(given), _difference(expected)
    return first is not None and second is not None and proportional(first, second)


def _difference(text: str) -> Any | None:
    """The numerator of left minus right side."""
    sides = structure.equation(text)
    if sides is None or not all(is_formula(one) or _PRODUCT.fullmatch(one) for one in sides):
        return None
    left, right = read_formula(sides[0]), read_formula(sides[1])
    if left is None or right is None:
        return None
    return sympy.fraction(sympy.together(left - right))[0]


def _same_value(given: str, expected: str) -> bool:
    """Compares two values, with units if both have known ones."""
    if same_text(given, expected):
        return True
    first, second = parse_quantity(given), parse_quantity(expected)
    if first.note and second.note and first.note != second.note:
        return False
    if first.is_doubtful != second.is_doubtful and not (first.units and second.units):
        return _same_number_or_formula(given, expected)  # 5h against 5 is a product
    if first.units or second.units:
        return same_quantity(first, second, _same_number_or_formula)
    return _same_number_or_formula(first.body, second.body)


def _same_number_or_formula(given: str, expected: str) -> bool:
    first, second = parse_number(given), parse_number(expected)
    if first is not None and second is not None:
        return same_number(first, second)
    return same_formula(given, expected)
