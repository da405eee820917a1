"""Unicode in answers: signs of operators, fractions, powers, roots, full-width characters."""

import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ", "0123456789+-=()n", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎", "0123456789+-=()", strict=True))
_CHARACTERS = {
    "\N{FULLWIDTH COMMA}": ", ",
    "\N{IDEOGRAPHIC COMMA}": ", ",
    "\N{FULLWIDTH SEMICOLON}": "; ",
    "\N{IDEOGRAPHIC FULL STOP}": ".",
    "\N{LEFT BLACK LENTICULAR BRACKET}": "[",
    "\N{RIGHT BLACK LENTICULAR BRACKET}": "]",
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{NON-BREAKING HYPHEN}": "-",
    "\N{HYPHEN}": "-",
    "\N{MULTIPLICATION SIGN}": "*",
    "\N{MIDDLE DOT}": "*",
    "\N{DOT OPERATOR}": "*",
    "\N{BULLET OPERATOR}": "*",
    "\N{DIVISION SIGN}": "/",
    "\N{FRACTION SLASH}": "/",
    "\N{DIVISION SLASH}": "/",
    "\N{RATIO}": ":",
    "\N{LESS-THAN OVER EQUAL TO}": "≤",
    "\N{LESS-THAN OR SLANTED EQUAL TO}": "≤",
    "\N{GREATER-THAN OVER EQUAL TO}": "≥",
    "\N{GREATER-THAN OR SLANTED EQUAL TO}": "≥",
    "\N{SQUARE ROOT}": r"\sqrt ",
    "\N{CUBE ROOT}": r"\sqrt[3]",
    "\N{FOURTH ROOT}": r"\sqrt[4]",
    "\N{PRIME}": "'",
    "\N{DOUBLE PRIME}": '"',
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": '"',
    "\N{RIGHT DOUBLE QUOTATION MARK}": '"',
    "\N{MASCULINE ORDINAL INDICATOR}": "°",
    "\N{SET MINUS}": "∖",
    "\N{EMPTY SET}": "∅",
    "\N{LATIN CAPITAL LETTER O WITH STROKE}": "∅",
    "\N{DOUBLE-STRUCK CAPITAL R}": "ℝ",
    "\N{GREEK PHI SYMBOL}": "φ",
    "\N{GREEK LUNATE EPSILON SYMBOL}": "ε",
}
_KEPT = "ℝℤℕℚℂ"
"""Characters that NFKC would turn into plain letters."""


def plain_characters(text: str) -> str:
    """Rewrites characters that mean several: fractions, powers, roots, full-width digits.

    Args:
        text: An answer.
    """
    text = re.sub("[¼-¾⅐-⅞]", lambda sign: f" {_plain(sign[0])} ", text)
    text = re.sub(
        f"[{''.join(_SUPERSCRIPTS)}]+", lambda run: _run(run[0], "^", _SUPERSCRIPTS), text
    )
    text = re.sub(f"[{''.join(_SUBSCRIPTS)}]+", lambda run: _run(run[0], "_", _SUBSCRIPTS), text)
    # Circled numbers name statements: "②④" is not 24.
    text = re.sub("[①-⑳]", lambda sign: f"({_plain(sign[0])})", text)
    text = "".join(_CHARACTERS.get(character, character) for character in text)
    text = "".join(one if one in _KEPT else _plain(one) for one in text)
    # A second pass, since full-width forms have become plain characters.
    return "".join(_CHARACTERS.get(character, character) for character in text)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/")


def _run(run: str, sign: str, characters: dict[str, str]) -> str:
    return f"{sign}{{{''.join(characters[one] for one in run)}}}"
