"""Equivalence of two answers: letters of choices, texts, quantities, lists, then algebra.

On unusual input, algebra can take unbounded time; `comparer.Comparer` has a time limit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from math_verify import parse, verify  # type: ignore[import-untyped]
from math_verify.parser import (  # type: ignore[import-untyped]
    ExprExtractionConfig,
    LatexExtractionConfig,
)

from mathcanvas_lightning.evaluation.comparison.notation import canonical, same_text
from mathcanvas_lightning.evaluation.comparison.quantities import (
    parse_number,
    same_dimension,
    same_quantity,
    split_unit,
)
from mathcanvas_lightning.evaluation.extraction import clean, split_list

How = Literal["choice", "option", "text", "number", "list", "math", "time_limit", "judge", "none"]
"""The rule that decided: letter, value of the right option, ...; "none" without an answer."""
MAX_CHARACTERS = 500
MAX_ITEMS = 12

_LETTER = re.compile(r"(?:[Oo]ption |[Cc]hoice )?\(?([A-Za-z])\)?(?:[.):].*)?")
_WORDS = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}|^[a-z]{2,}$|^[A-Za-z]$")
_NAME = re.compile(r"[-+\d\s]*\\?[A-Za-z\\°'{}_\d\s]*(?:\([a-z]\))?")
_BRACKETS = {"(": ")]", "[": ")]", r"\{": (r"\}",)}


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
        expected: The reference: a letter, the text of an option, or any other answer.
        options: Texts of the choices of a multiple-choice question; a letter and the text of its
            option are equivalent.

    Returns:
        Whether they are equivalent. No text raises an exception.
    """
    given, expected = clean(given), clean(expected)
    if not given or not expected:
        return Comparison(False, "none")
    if options:
        right_option = choice_letter(expected, options, is_reference=True)
        if right_option is not None:
            return _compare_choice(given, right_option, options)
    elif re.fullmatch("[A-J]", expected) and (letter := _letter_of(given, "ABCDEFGHIJ")):
        return Comparison(letter == expected, "choice")
    try:
        return _compare_values(canonical(given), canonical(expected))
    except (ValueError, ArithmeticError, RecursionError):
        return Comparison(False, "text")


def choice_letter(answer: str, options: Sequence[str], *, is_reference: bool = False) -> str | None:
    """Finds the letter of the option that an answer names.

    Args:
        answer: "B", "(B)", "B. 12 cm", or the text of an option.
        options: Texts of the options A, B, ...
        is_reference: Whether the answer is a reference, where only a bare letter counts as a
            letter ("B. 12 cm" does not).

    Returns:
        A capital letter, or None.
    """
    answer = clean(answer)
    letters = ascii_uppercase[: len(options)]
    if len(answer) == 1 and answer in letters:
        return answer
    text = canonical(answer)
    for letter, option in zip(letters, options, strict=False):
        if same_text(text, canonical(clean(option))):
            return letter
    found = _letter_of(answer, letters)
    return None if is_reference and len(answer) > 4 else found


def vote_of(given: str, options: Sequence[str] = ()) -> str:
    """Maps an answer to a key for majority votes; simple variants have the same key."""
    if letter := choice_letter(given, options):
        return letter
    text = canonical(clean(given))
    number = parse_number(split_unit(_value(text))[0])
    return text.casefold() if number is None else str(number.value)


def _compare_choice(given: str, right: str, options: Sequence[str]) -> Comparison:
    letter = choice_letter(given, options)
    if letter is not None:
        return Comparison(letter == right, "choice")
    option = options[ascii_uppercase.index(right)]
    found = _compare_values(canonical(given), canonical(clean(option)))
    return Comparison(found.is_right, "option")


def _letter_of(answer: str, letters: str) -> str | None:
    match = _LETTER.fullmatch(canonical(answer))
    letter = match[1].upper() if match else ""
    return letter if letter and letter in letters else None


def _compare_values(given: str, expected: str) -> Comparison:
    """Compares two answers in canonical form."""
    if same_text(given, expected):
        return Comparison(True, "text")
    if max(len(given), len(expected)) > MAX_CHARACTERS:
        return Comparison(False, "text")
    if (same := _same_quantity(_value(given), _value(expected))) is not None:
        return Comparison(same, "number")
    if (same := _same_list(given, expected)) is not None:
        return Comparison(same, "list")
    return _compare_formulas(given, expected)


def _value(text: str) -> str:
    """The text after "x =", if the left side is a name."""
    name, sign, value = text.rpartition("=")
    is_name = not name or ("=" not in name and "," not in text and bool(_NAME.fullmatch(name)))
    return value if sign and is_name and value else text


def _same_quantity(given: str, expected: str) -> bool | None:
    """Compares two numbers with optional units; None if either is not a number."""
    (given_body, given_unit), (body, unit) = split_unit(given), split_unit(expected)
    first, second = parse_number(given_body), parse_number(body)
    if first is None or second is None:
        return None
    return same_quantity(first, given_unit, second, unit)


def _same_list(given: str, expected: str) -> bool | None:
    """Compares two lists, in order if they have brackets; None if either is not a list."""
    (left, right, items), (expected_left, expected_right, wanted) = _items(given), _items(expected)
    if len(items) < 2 and len(wanted) < 2:
        return None
    if len(items) != len(wanted):
        return None if min(len(items), len(wanted)) == 1 else False
    if len(items) > MAX_ITEMS or (
        left and expected_left and left + right != expected_left + expected_right
    ):
        return False
    if left in ("(", "[") or expected_left in ("(", "["):
        return all(_is_same(a, b) for a, b in zip(items, wanted, strict=True))
    for item in items:
        match = next((one for one in wanted if _is_same(item, one)), None)
        if match is None:
            return False
        wanted.remove(match)
    return True


def _is_same(given: str, expected: str) -> bool:
    """Compares items of lists with their names: "x=1, y=2" is not "x=2, y=1"."""
    names = _name(given).casefold(), _name(expected).casefold()
    return (not all(names) or names[0] == names[1]) and _compare_values(given, expected).is_right


def _items(text: str) -> tuple[str, str, list[str]]:
    """The brackets around a list, and its items."""
    for left, rights in _BRACKETS.items():
        for right in rights:
            if text.startswith(left) and text.endswith(right):
                items = split_list(text[len(left) : -len(right)])
                if len(items) > 1:
                    return left, right, items
    return "", "", split_list(text)


def _compare_formulas(given: str, expected: str) -> Comparison:
    if ("=" in given) != ("=" in expected) or _name(given) == _name(expected):
        given, expected = _value(given), _value(expected)
    (given, unit), (expected, expected_unit) = split_unit(given), split_unit(expected)
    if unit is not None and expected_unit is not None and unit != expected_unit:
        same = same_dimension(unit, expected_unit) and unit.factor == expected_unit.factor
        if not same:
            return Comparison(False, "text")
    if same_text(given, expected):
        return Comparison(True, "text")
    if not (_is_formula(given) and _is_formula(expected)) or _mixes_cases(given, expected):
        return Comparison(False, "text")
    return Comparison(_same_formula(given, expected), "math")


def _name(text: str) -> str:
    return text.rpartition("=")[0] if _value(text) != text else ""


def _is_formula(text: str) -> bool:
    """Whether a text has no words, which algebra would read as products of letters."""
    return bool(text) and _WORDS.search(text) is None


def _mixes_cases(given: str, expected: str) -> bool:
    """Whether a letter occurs in upper and lower case, which math-verify does not distinguish."""
    letters = set(re.findall(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", given + expected)))
    return any(letter.upper() in letters for letter in letters if letter.islower())


def _same_formula(given: str, expected: str) -> bool:
    """Asks math-verify, without its time limits, which work only in the main thread."""
    config = (LatexExtractionConfig(), ExprExtractionConfig())
    first, second = (
        parse(f"${text}$", config, fallback_mode="no_fallback", parsing_timeout=None)
        for text in (expected, given)
    )
    return bool(first and second and verify(first, second, timeout_seconds=None))
