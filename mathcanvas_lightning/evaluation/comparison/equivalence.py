"""Equivalence of two answers: choices first, then values, then text.

On unusual input, algebra can take unbounded time; `comparer.Comparer` has a time limit.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Literal

from mathcanvas_lightning.evaluation.comparison import structure
from mathcanvas_lightning.evaluation.comparison.algebra import is_formula
from mathcanvas_lightning.evaluation.comparison.choices import (
    LETTERS,
    bare_options,
    letters_in,
    same_romans,
    same_statements,
    split_letter,
)
from mathcanvas_lightning.evaluation.comparison.notation import canonical
from mathcanvas_lightning.evaluation.comparison.phrases import same_text
from mathcanvas_lightning.evaluation.comparison.quantities.measures import parse_quantity
from mathcanvas_lightning.evaluation.comparison.quantities.numbers import parse_number
from mathcanvas_lightning.evaluation.comparison.values import same, same_unordered
from mathcanvas_lightning.evaluation.extraction import clean

How = Literal["choice", "option", "text", "number", "list", "math", "time_limit", "judge", "none"]
"""The rule that decided: letter, value of the right option, ...; "none" without an answer."""
MAX_CHARACTERS = 500
_INTEGER = re.compile(r"-?[0-9]{1,100}")


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
    if (found := compare_integers(given, expected, options)) is not None:
        return found
    try:
        if options and (right := _right_options(expected, options)):
            return _compare_options(given, right, options)
        if (named := same_romans(given, expected)) is not None:
            return Comparison(named, "choice")
        if not options and (letters := _compare_letters(given, expected)) is not None:
            return letters
        if (named := same_statements(given, expected)) is not None:
            return Comparison(named, "choice")
        return _compare_values(canonical(given), canonical(expected))
    except Exception:  # SymPy raises many kinds for unusual formulas
        return Comparison(False, "text")


def compare_integers(given: str, expected: str, options: Sequence[str] = ()) -> Comparison | None:
    """Compares two integers, which most answers are; unlike `compare`, it takes no time.

    Args:
        given: An answer.
        expected: The reference.
        options: Texts of the choices.

    Returns:
        Whether they are equal; None if one isn't written as an integer, or there are choices.
    """
    if options or not (_INTEGER.fullmatch(given) and _INTEGER.fullmatch(expected)):
        return None
    return Comparison(int(given) == int(expected), "text" if given == expected else "number")


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
        is_same = same(canonical(rest), bare[letters.index(named)])
        return named if is_same else None
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
        return Comparison(same(text, wanted[0]), "option")
    return Comparison(same_unordered(structure.split_items(text), wanted), "option")


def _compare_letters(given: str, expected: str) -> Comparison | None:
    """Compares letters of choices whose options are not known; None if it is no such question."""
    right, found = letters_in(expected, LETTERS), letters_in(given, LETTERS)
    letter, rest = split_letter(expected)
    if len(right) < 2 and letter and letter in LETTERS:  # B. 12 cm
        if found:
            return Comparison(found == letter, "choice")
        return Comparison(same(canonical(given), canonical(rest)), "option")
    letter, rest = split_letter(given)
    if letter and letter in LETTERS and not right and same(canonical(rest), canonical(expected)):
        return Comparison(True, "option")  # B. 12 cm, for 12 cm
    if len(expected) == 1 and expected.islower():  # a variable, unless the answer says otherwise
        is_letter = found == expected.upper() and (len(given) > 1 or expected in "abcde")
        return Comparison(True, "choice") if is_letter and given != expected else None
    if not any(re.search(r"[A-Z]|\([a-z]\)", one) for one in (given, expected)):
        return None  # variables a, b
    return Comparison(found == right, "choice") if right and found else None


def _compare_values(given: str, expected: str) -> Comparison:
    """Compares two answers in canonical form, and says by which rule."""
    if same_text(given, expected):
        return Comparison(True, "text")
    if max(len(given), len(expected)) > MAX_CHARACTERS:
        return Comparison(False, "text")
    is_right = same(given, expected)
    return Comparison(is_right, _rule(given, expected))


def _rule(given: str, expected: str) -> How:
    values = [structure.statement(one).values for one in (given, expected)]
    if all(one and parse_number(parse_quantity(one[0]).body) is not None for one in values):
        return "number"
    if any(
        len(structure.split_items(one)) > 1 or structure.bracketed(one) for one in (given, expected)
    ):
        return "list"
    texts = [parse_quantity(one[0] if one else "").body for one in values]
    return "math" if all(map(is_formula, texts)) else "text"
