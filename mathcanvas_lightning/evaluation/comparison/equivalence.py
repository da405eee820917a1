"""Equivalence of two answers: choices, then formulas and their structure, then quantities, then text.

On unusual input, algebra can take unbounded time; `comparer.Comparer` has a time limit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from mathcanvas_lightning.evaluation.comparison import structure
from mathcanvas_lightning.evaluation.comparison.algebra import (
    is_formula,
    proportional,
    read_formula,
    same_formula,
)
from mathcanvas_lightning.evaluation.comparison.choices import (
    LETTERS,
    bare_options,
    letters_in,
    same_statements,
    split_letter,
)
from mathcanvas_lightning.evaluation.comparison.notation import canonical
from mathcanvas_lightning.evaluation.comparison.numbers import parse_number, same_number
from mathcanvas_lightning.evaluation.comparison.phrases import phrase_of, same_phrase, same_text
from mathcanvas_lightning.evaluation.comparison.quantities import (
    parse_compound,
    parse_quantity,
    ratio_terms,
    same_quantity,
    same_time,
)
from mathcanvas_lightning.evaluation.comparison.regions import (
    has_region,
    same_inequality,
    same_region,
)
from mathcanvas_lightning.evaluation.extraction import clean

How = Literal["choice", "option", "text", "number", "list", "math", "time_limit", "judge", "none"]
"""The rule that decided: letter, value of the right option, ...; "none" without an answer."""
MAX_CHARACTERS = 500

_BASES = {"two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8",
          "nine": "9", "ten": "10", "twelve": "12", "sixteen": "16"}  # fmt: skip
_BASE = rf"(\d{{1,2}}|{'|'.join(_BASES)})"
_BASED = re.compile(rf"\(?([0-9A-Fa-f]+)\)?(?:_\{{{_BASE}\}}|\s*\(?(?:in )?base\s?{_BASE}\)?)")
_LEAD = re.compile(
    r"^(?:(?:approximately|approx\.?|about|roughly|around|nearly|约为?|大约)\s*(?=[\d\\.-])"
    r"|(?:the\s+)?(?:points?|intervals?|set|vector|ordered pairs?|coordinates|value|values|numbers?)"
    r"(?:\s*(?=[(\[⦃⟨⟦])|\s+(?=[\d\\-]|[A-Z]\()))"
)
_MEMBER = re.compile(r"([A-Za-zα-ω])∈⦃([^⦃⦄]*)⦄")
_PRODUCT = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Whether an answer is right, and the rule that decided."""

    is_right: bool
    how: How

    @property
    def is_certain(self) -> bool:
        """Whether a judge is not needed: the answer is right, or a different letter."""
        return self.is_right or self.how == "choice"


def compare(given: str, expected: str, options: Sequence[str] = ()) -> Comparison:
    """Compares an answer with the reference.

    Args:
        given: An answer.
        expected: The reference: one or more letters, the text of an option, or any other answer.
        options: Texts of the choices of a multiple-choice question; a letter and the text of its
            option are equivalent.

    Returns:
        Whether they are equivalent. No text raises an exception.
    """
    given, expected = clean(given), clean(expected)
    if not given or not expected:
        return Comparison(False, "none")
    try:
        if options and (right := _right_options(expected, options)):
            return _compare_options(given, right, options)
        if not options and (found := _compare_letters(given, expected)) is not None:
            return found
        if (same := same_statements(given, expected)) is not None:
            return Comparison(same, "choice")
        return _compare_values(canonical(given), canonical(expected))
    except (ValueError, ArithmeticError, RecursionError, AttributeError, TypeError):
        return Comparison(False, "text")  # SymPy raises them for unusual formulas


def choice_letter(answer: str, options: Sequence[str], *, is_reference: bool = False) -> str | None:
    """Finds the letters of the options that an answer names.

    Args:
        answer: "B", "(B)", "B. 12 cm", "AC", or the text of an option.
        options: Texts of the options A, B, ...; they may carry their letters.
        is_reference: Whether the answer is a reference, which may be the value of no option.

    Returns:
        Capital letters, or None.
    """
    answer = clean(answer)
    letters = ascii_uppercase[: len(options)]
    if len(answer) == 1 and answer in letters:
        return answer
    bare = [canonical(clean(option)) for option in bare_options(options)]
    text = canonical(answer)
    for letter, option, whole in zip(letters, bare, options, strict=False):
        if same_text(text, option) or same_text(text, canonical(clean(whole))):
            return letter
    named, rest = split_letter(answer)
    if is_reference and named and rest and named in letters:
        same = _same(canonical(rest), bare[letters.index(named)])
        return named if same else None
    return letters_in(answer, letters) or None


def vote_of(given: str, options: Sequence[str] = ()) -> str:
    """Maps an answer to a key for majority votes; simple variants have the same key."""
    if letter := choice_letter(given, options):
        return letter
    text = canonical(clean(given))
    values = structure.statement(text).values
    quantity = parse_quantity(values[0] if values else text)
    number = parse_number(quantity.body)
    if number is not None:
        return str(number.value)
    items = next(structure.readings(text))
    is_list = len(items) > 1 and structure.bracketed(text) is None
    return ",".join(sorted(vote_of(item) for item in items)) if is_list else text.casefold()


def _right_options(expected: str, options: Sequence[str]) -> str:
    """The letters that a reference names; empty if it is the value of no option."""
    return choice_letter(expected, options, is_reference=True) or ""


def _compare_options(given: str, right: str, options: Sequence[str]) -> Comparison:
    letters = choice_letter(given, options)
    if letters is not None:
        return Comparison(letters == right, "choice")
    bare = [canonical(clean(option)) for option in bare_options(options)]
    wanted = [bare[ascii_uppercase.index(letter)] for letter in right]
    text = canonical(given)
    if len(wanted) == 1:
        return Comparison(_same(text, wanted[0]), "option")
    return Comparison(_unordered(structure.split_items(text), wanted), "option")


def _compare_letters(given: str, expected: str) -> Comparison | None:
    """Compares letters of choices whose options are not known; None if it is no such question."""
    letter, rest = split_letter(expected)
    if len(letters_in(expected, LETTERS)) < 2 and letter and letter in LETTERS:
        found = letters_in(given, LETTERS)
        if found:
            return Comparison(found == letter, "choice")
        return Comparison(_same(canonical(given), canonical(rest)), "option")
    is_marked = len(expected) > 1 or expected in LETTERS or (expected in "abcde" and given in LETTERS)
    right = letters_in(expected, LETTERS) if is_marked else ""
    if not right:
        marked = letters_in(given, LETTERS) if len(expected) == 1 and len(given) > 1 else ""
        return Comparison(True, "choice") if marked == expected.upper() and marked else None
    found = letters_in(given, LETTERS)
    if not found or (len(right) > 1 and canonical(given) == canonical(expected)):
        return None
    return Comparison(found == right, "choice")


def _compare_values(given: str, expected: str) -> Comparison:
    """Compares two answers in canonical form, and says by which rule."""
    if same_text(given, expected):
        return Comparison(True, "text")
    if max(len(given), len(expected)) > MAX_CHARACTERS:
        return Comparison(False, "text")
    is_right = _same(given, expected)
    return Comparison(is_right, _rule(given, expected))


def _rule(given: str, expected: str) -> How:
    values = [structure.statement(one).values for one in (given, expected)]
    if all(one and parse_number(parse_quantity(one[0]).body) is not None for one in values):
        return "number"
    if any(len(structure.split_items(one)) > 1 or structure.bracketed(one) for one in (given, expected)):
        return "list"
    texts = [parse_quantity(one[0] if one else "").body for one in values]
    return "math" if all(map(is_formula, texts)) else "text"


def _same(given: str, expected: str) -> bool:
    """Whether two answers in canonical form are equivalent."""
    given, expected = _essence(given), _essence(expected)
    if same_text(given, expected):
        return True
    for rule in (same_time, _same_plain, same_phrase, _same_digits, _same_compound):
        if (same := rule(given, expected)) is not None:
            return same
    if (has_region(given) or has_region(expected)) and (
        (same := same_region(given, expected)) is not None
    ):
        return same
    for rule in (_same_ratio, _same_matrix, _same_list, _same_brackets):
        if (same := rule(given, expected)) is not None:
            return same
    return _same_statement(given, expected)


def _essence(text: str) -> str:
    """Removes "about" and "the point"; writes x ∈ {1, 4} as x = 1, x = 4."""
    text = _LEAD.sub("", text)
    member = _MEMBER.fullmatch(text)
    if member is None or re.search("[|:]", member[2]):
        return text
    return ", ".join(f"{member[1]}={item}" for item in structure.split_items(member[2], in_brackets=True))


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


def _same_digits(given: str, expected: str) -> bool | None:
    """Compares numbers with bases; a missing base is assumed to be that of the other."""
    first, second = _based(given), _based(expected)
    if not (first[1] or second[1]):
        return None
    return first[0] == second[0] and (not first[1] or not second[1] or first[1] == second[1])


def _based(text: str) -> tuple[str, str]:
    match = _BASED.fullmatch(text)
    if match is None:
        return text, ""
    base = match[2] or match[3]
    return match[1].upper(), _BASES.get(base, base)


def _same_ratio(given: str, expected: str) -> bool | None:
    first, second = ratio_terms(given), ratio_terms(expected)
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
    cells = zip(sum(first, []), sum(second, []), strict=True)
    return all(_same(a.strip(), b.strip()) for a, b in cells)


def _same_list(given: str, expected: str) -> bool | None:
    """Compares lists without brackets, in any order unless only one has names."""
    firsts, seconds = list(structure.readings(given)), list(structure.readings(expected))
    if all(len(one) < 2 for one in (*firsts, *seconds)):
        return None
    for first in firsts:
        for second in seconds:
            if len(first) == len(second) > 1 and _same_items(first, second):
                return True
    others = [one for one in ((given, seconds), (expected, firsts)) if len(one[1][0]) > 1]
    for text, lists in others:  # a list against (1,2) or {1,2}
        found = structure.bracketed(_value(text))
        if found is not None and any(_matches_brackets(one, found) for one in lists):
            return True
    is_list = len(firsts[0]) > 1 or len(seconds[0]) > 1
    return False if is_list else None


def _matches_brackets(items: Sequence[str], found: structure.Bracketed) -> bool:
    if len(items) != len(found.items) or len(items) > structure.MAX_ITEMS:
        return False
    values = _named_values(items)
    if not found.is_ordered:
        return _unordered(values, found.items)
    is_open = found.left == "(" and found.right == ")"
    if not (is_open or found.left == "⟦" or (len(items) > 2 and found.left + found.right == "[]")):
        return False
    return all(_same(a, b) for a, b in zip(values, found.items, strict=True))


def _named_values(items: Sequence[str]) -> list[str]:
    """The values of items, in the order of their names: y = 4, x = 3 is (3, 4)."""
    found = [structure.statement(item) for item in items]
    if all(one.name for one in found) and len({one.name for one in found}) == len(found):
        found.sort(key=lambda one: one.name)
    return [one.values[0] if one.values else "" for one in found]


def _same_items(first: Sequence[str], second: Sequence[str]) -> bool:
    if len(first) > structure.MAX_ITEMS:
        return list(first) == list(second)
    names = [_names(items) for items in (first, second)]
    distinct = [len(set(one)) == len(one) and all(one) for one in names]
    if any(distinct) and not all(any(one) for one in names):
        # x = 2, y = 3 against 2, 3: in the order given, or that of the names.
        pairs = [(_bare(first), _bare(second)), (_named_values(first), _named_values(second))]
        return any(all(map(_same, *pair)) for pair in pairs)
    return _unordered(_with_names(first, names[0]), _with_names(second, names[1]))


def _names(items: Sequence[str]) -> list[str]:
    return [structure.statement(item).name for item in items]


def _bare(items: Sequence[str]) -> list[str]:
    return [(structure.statement(item).values or ("",))[0] for item in items]


def _with_names(items: Sequence[str], names: Sequence[str]) -> list[str]:
    """Repeats the name in "x = 2, 3"."""
    if names[0] and not any(names[1:]) and not structure.bracketed(_value(items[0])):
        return [items[0], *(f"{names[0]}={item}" for item in items[1:])]
    return list(items)


def _unordered(first: Sequence[str], second: Sequence[str]) -> bool:
    if len(first) != len(second) or len(first) > structure.MAX_ITEMS:
        return False
    remaining = list(second)
    for item in first:
        match = next((one for one in remaining if _same(item, one)), None)
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
    if (single := _one_bracketed(given, expected)) is not None:
        return single
    if first is None or second is None:
        return None
    if first_name and second_name and first_name != second_name:
        return False
    if not first.is_ordered or not second.is_ordered:
        same_kind = first.is_ordered == second.is_ordered
        return same_kind and _unordered(_distinct(first.items), _distinct(second.items))
    if len(first.items) != len(second.items) or not _same_kind(first, second):
        return False
    return all(_same(a, b) for a, b in zip(first.items, second.items, strict=True))


def _same_kind(first: structure.Bracketed, second: structure.Bracketed) -> bool:
    """Whether brackets may mean the same: kinds of brackets differ between intervals only."""
    kinds = {first.left + first.right, second.left + second.right}
    return len(kinds) == 1 or kinds <= {"()", "⟦⟧"} or (
        len(first.items) > 2 and kinds <= {"()", "[]", "⟦⟧"}
    )


def _one_bracketed(given: str, expected: str) -> bool | None:
    """Compares {5} with 5, and {(0,1)} with (0,1)."""
    items = [found.items if (found := structure.bracketed(one)) and not found.is_ordered else ()
             for one in (given, expected)]  # fmt: skip
    if all(items) or max(map(len, items)) != 1:
        return None
    return _same((items[0] or (given,))[0], (items[1] or (expected,))[0])


def _distinct(items: Sequence[str]) -> list[str]:
    kept: list[str] = []
    for item in items:
        if not any(_same(item, one) for one in kept):
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
    if first.name and second.name and first.name != second.name:
        return _same_equation(given, expected)
    if (given, expected) != (first.values[:1] or ("",))[:1] + (second.values[:1] or ("",))[:1]:
        if any(
            (a, b) != (given, expected) and _same(a, b) for a in first.values for b in second.values
        ):
            return True
    return _same_equation(given, expected) or _same_value(given, expected)


def _same_equation(given: str, expected: str) -> bool:
    first, second = _difference(given), _difference(expected)
    return first is not None and second is not None and proportional(first, second)


def _difference(text: str) -> object | None:
    """The numerator of left minus right side."""
    sides = structure.equation(text)
    if sides is None or not all(is_formula(one) or _PRODUCT.fullmatch(one) for one in sides):
        return None
    left, right = read_formula(sides[0]), read_formula(sides[1])
    if left is None or right is None:
        return None
    import sympy

    return sympy.fraction(sympy.together(left - right))[0]


def _same_value(given: str, expected: str) -> bool:
    """Compares two values, with units if both have known ones."""
    if same_text(given, expected):
        return True
    first, second = parse_quantity(given), parse_quantity(expected)
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
