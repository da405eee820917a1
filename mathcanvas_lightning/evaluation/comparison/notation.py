"""A canonical form for the many notations of answers."""

import re
import unicodedata

_SYMBOLS = {
    "\N{MINUS SIGN}": "-",
    "\N{EN DASH}": "-",
    "\N{MULTIPLICATION SIGN}": r"\times ",
    "\N{MIDDLE DOT}": r"\cdot ",
    "\N{DIVISION SIGN}": "/",
    "\N{GREEK SMALL LETTER PI}": r"\pi ",
    "\N{INFINITY}": r"\infty ",
    "\N{LESS-THAN OR EQUAL TO}": r"\le ",
    "\N{GREATER-THAN OR EQUAL TO}": r"\ge ",
    "\N{NOT EQUAL TO}": r"\ne ",
    "\N{ALMOST EQUAL TO}": "=",
    "\N{SUPERSCRIPT TWO}": "^2",
    "\N{SUPERSCRIPT THREE}": "^3",
    "\N{SQUARE ROOT}": r"\sqrt ",
    "\N{ANGLE}": r"\angle ",
    "\N{DEGREE SIGN}": r"\degree ",
    "\N{PRIME}": "'",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
}
_FRACTION_SIGN = re.compile("[¼-¾⅐-⅞]")
_FUNCTIONS = "sqrt|pi|sin|cos|tan|cot|sec|csc|log|ln|exp|theta|alpha|beta|gamma|infty"
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\begin\{(?:aligned|array)\}(?:\{[^{}]*\})?|\\end\{(?:aligned|array)\}", " "),
        (r"\\(?:left|right|displaystyle|limits|big|Big|bigg|Bigg)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:approx|simeq)(?![A-Za-z])", "="),
        (r"\\leq(?![A-Za-z])", r"\\le"),
        (r"\\geq(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\[,;:! ]|~|\\q?quad(?![A-Za-z])", " "),
        (r"\{,\}", ","),
        (r"\\?\$", ""),
        (r"\\%", "%"),
        (r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|\\degrees?(?![A-Za-z])", "°"),
        (
            r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mathsf|mbox|operatorname|boxed)"
            r"\s*\{([^{}]*)\}",
            r" \1 ",
        ),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])", r"\\\1"),
        (r"\*\*", "^"),
        (r"\\frac\s*(\d)\s*(\d)", r"\\frac{\1}{\2}"),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"\\sqrt\s*([0-9A-Za-z])", r"\\sqrt{\1}"),
        (r"\^\s*\{(\w)\}", r"^\1"),
        (r"\s+", " "),
        # A space between letters or digits has a meaning: "1 1/2" is not "11/2". So does a space
        # before a letter: "\\sqrt{3} m" is a length in metres.
        (r"(?<![0-9A-Za-z%°)}]) | (?![0-9A-Za-z%°\\])", ""),
        (r" (?=\\(?!text))", ""),
    )
)
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def canonical(answer: str) -> str:
    r"""Rewrites an answer in canonical form: `\dfrac12 \,\text{cm}` becomes `\frac{1}{2} cm`.

    Args:
        answer: An answer in plain text or LaTeX.

    Returns:
        The answer on one line, without dollars, layout commands and meaningless spaces.
    """
    text = _FRACTION_SIGN.sub(lambda sign: f" {_plain(sign[0])}", answer)
    text = "".join(_SYMBOLS.get(character, character) for character in text)
    text = _plain(text)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return text.strip().rstrip(".")


def same_text(given: str, expected: str) -> bool:
    """Compares two answers as texts; case matters in formulas, but not in words.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether the texts are the same.
    """
    if given == expected:
        return bool(given)
    has_words = _LONG_WORD.search(given) and _LONG_WORD.search(expected)
    return bool(has_words) and given.casefold() == expected.casefold()


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\N{FRACTION SLASH}", "/")
