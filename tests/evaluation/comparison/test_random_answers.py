"""Answers built from random numbers: perturbed ones differ, permuted ones are equal."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.evaluation.comparison.equivalence import compare, compare_integers
from tests.conftest import examples

Items = list[str]

KINDS: list[Callable[[int], str]] = [
    str,
    lambda value: f"-{value}",
    lambda value: f"\\frac{{{value}}}{{7}}",
    lambda value: f"{value / 100:.2f}",
    lambda value: f"{value}\\sqrt{{3}}",
    lambda value: f"{value}\\pi",
]
"""Each number of the form 10 n + 1 with n < 100 gives another value in each kind."""
NUMBERS = st.tuples(
    st.lists(st.integers(0, 99), min_size=4, max_size=4, unique=True),
    st.lists(st.sampled_from(KINDS), min_size=4, max_size=4),
).map(lambda both: [kind(10 * n + 1) for n, kind in zip(*both, strict=True)])


def perturbed(number: str) -> str:
    """A number with another last digit: 51/7 becomes 52/7."""
    return re.sub(r"1(?=\D*(?:\{\d\})?$)", "2", number, count=1)


def point(items: Items, gap: str) -> str:
    return f"({f',{gap}'.join(items)})"


def points(items: Items, gap: str) -> str:
    pairs = [f"({x},{gap}{y})" for x, y in zip(items[::2], items[1::2], strict=False)]
    return f", {gap}".join(pairs)


def listed(items: Items, gap: str) -> str:
    return f", {gap}".join(items)


def joined(items: Items, gap: str) -> str:
    return f"{', '.join(items[:-1])} and{gap or ' '}{items[-1]}"


def set_of(items: Items, gap: str) -> str:
    return f"\\{{{gap}{f',{gap}'.join(items)}{gap}\\}}"


def matrix(items: Items, gap: str) -> str:
    a, b, c, d = items[:4]
    return f"\\begin{{pmatrix}}{gap}{a}{gap}&{gap}{b}{gap}\\\\{gap}{c}&{d}\\end{{pmatrix}}"


def named(items: Items, gap: str) -> str:
    return ", ".join(f"{x}{gap}={gap}{value}" for x, value in zip("abcd", items, strict=False))


def solutions(items: Items, gap: str) -> str:
    return f"{gap or ' '}or ".join(f"x{gap}={gap}{value}" for value in items)


def length(items: Items, gap: str) -> str:
    return f"{items[0]}{gap}\\text{{ cm}}"


ORDERED: list[Callable[[Items, str], str]] = [point, points, matrix, named]
UNORDERED: list[Callable[[Items, str], str]] = [listed, joined, set_of, solutions]
GAPS = st.sampled_from(["", " ", "  ", "\\,", "\\ "])


@pytest.mark.parametrize("shape", [*ORDERED, *UNORDERED, length])
@settings(max_examples=examples(15), deadline=None)
@given(items=NUMBERS, gap=GAPS, at=st.integers(0, 3))
def test_spaces_do_not_matter_and_numbers_do(
    shape: Callable[[Items, str], str], items: Items, gap: str, at: int
) -> None:
    expected = shape(items, "")
    assert compare(shape(items, gap), expected).is_right
    at = 0 if shape is length else at
    other = [*items[:at], perturbed(items[at]), *items[at + 1 :]]
    assert other[at] != items[at]
    assert not compare(shape(other, ""), expected).is_right
    assert not compare(expected, shape(other, gap)).is_right


@pytest.mark.parametrize("shape", UNORDERED)
@settings(max_examples=examples(15), deadline=None)
@given(items=NUMBERS, order=st.permutations(range(4)))
def test_the_order_of_solutions_does_not_matter(
    shape: Callable[[Items, str], str], items: Items, order: list[int]
) -> None:
    assert compare(shape([items[at] for at in order], ""), shape(items, "")).is_right


@settings(max_examples=examples(15), deadline=None)
@given(items=NUMBERS)
def test_the_order_within_a_tuple_matters(items: Items) -> None:
    first = items[:2]
    assert not compare(point(first[::-1], ""), point(first, "")).is_right
    assert not compare(points([*items[2:], *items[1::-1]], ""), points(items, "")).is_right
    assert compare(points([*items[2:], *items[:2]], ""), points(items, "")).is_right
    assert not compare(named([*items[1::-1], *items[2:]], ""), named(items, "")).is_right
    assert not compare(matrix([items[0], *items[2:0:-1], items[3]], ""), matrix(items, "")).is_right
    assert not compare(joined(first, ""), items[0]).is_right


ENDS = st.lists(st.integers(-30, 30), min_size=4, max_size=4, unique=True).map(sorted)
BRACKETS = st.tuples(*[st.sampled_from("(["), st.sampled_from(")]")] * 2)


def interval(left: str, start: int, end: int, right: str) -> str:
    return f"{left}{start},{end}{right}"


@settings(max_examples=examples(25), deadline=None)
@given(ends=ENDS, brackets=BRACKETS, at=st.integers(0, 3))
def test_unions_of_intervals(ends: list[int], brackets: tuple[str, ...], at: int) -> None:
    a, b, c, d = ends
    first, second = (
        interval(brackets[0], a, b, brackets[1]),
        interval(brackets[2], c, d, brackets[3]),
    )
    union = f"{first}\\cup{second}"
    assert compare(f"{second} ∪ {first}", union).is_right
    signs = {"(": "<", ")": "<", "[": "\\le", "]": "\\le"}
    written = (
        f"{a}{signs[brackets[0]]} x {signs[brackets[1]]} {b} or "
        f"{c}{signs[brackets[2]]} x {signs[brackets[3]]} {d}"
    )
    assert compare(written, union).is_right
    assert compare(union, written).is_right
    other = list(brackets)
    other[at] = {"(": "[", "[": "(", ")": "]", "]": ")"}[other[at]]
    changed = f"{interval(other[0], a, b, other[1])}\\cup{interval(other[2], c, d, other[3])}"
    assert not compare(changed, union).is_right
    assert not compare(first, union).is_right


@settings(max_examples=examples(25), deadline=None)
@given(number=st.integers(2, 999), other=st.integers(2, 999))
def test_unicode_roots_and_powers(number: int, other: int) -> None:
    assert compare(f"√{number}", f"\\sqrt{{{number}}}").is_right
    assert compare(f"√{number}", f"\\sqrt{{{other}}}").is_right == (number == other)
    assert compare(f"10^-{number % 50}", f"10^{{-{number % 50}}}").is_right
    assert compare(f"{number}, {other + 100}", f"{number}{other + 100}").is_right is False


@settings(max_examples=examples(25), deadline=None)
@given(
    letters=st.sets(st.sampled_from("ABCDE"), min_size=1),
    other=st.sets(st.sampled_from("ABCDE"), min_size=1),
)
def test_letters_of_choices(letters: set[str], other: set[str]) -> None:
    run, listing = "".join(sorted(letters)), " and ".join(sorted(letters, reverse=True))
    assert compare(run, listing).is_right
    assert compare("".join(f"({one})" for one in sorted(letters)), run).is_right
    assert compare(", ".join(other), run).is_right == (letters == other)


@given(st.integers(), st.integers())
def test_integers(number: int, other: int) -> None:
    for one in (number, other):
        assert compare(str(number), str(one)).is_right == (number == one)
        assert compare(f"0{number}" if number > 0 else str(number), str(one)).is_right == (
            number == one
        )
    assert compare_integers(str(number), "x") is None
    assert compare_integers(str(number), str(other), ("1", "2")) is None
