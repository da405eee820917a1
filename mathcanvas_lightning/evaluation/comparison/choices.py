"""Letters of choices: one or several, bare, in brackets, before their text; numbered statements."""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_uppercase

LETTERS = "ABCDEFGHIJ"
"""Letters of questions whose options are not known."""

_LEAD = re.compile(
    r"(?:the\s+)?(?:correct\s+|right\s+|final\s+)?(?:answers?|options?|choices?)\b(?:\s+(?:is"
    r"|are))?\s*:?\s*"
    r"|(?:[Ff]igure|[Gg]raph|[Dd]iagram|[Pp]icture|[Ii]mage|[Cc]ontainer|[Oo]bject|[Bb]ox"
    r"|[Ss]hape|[Pp]iece|[Pp]oint|[Tt]eam|[Ll]etter|图)\s*(?=\(?[A-H]\)?$)"
    r"|(?:所以|因此|故)?\s*(?:正确)?(?:答案|选项|选择|应选|故选|选)\s*[是为]?\s*[::]?\s*|answer\s+",
    re.IGNORECASE,
)
_MARKED = r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z]))"
_SINGLE = re.compile(rf"{_MARKED}[.):、,:]?")
_WITH_TEXT = re.compile(
    r"(?:\(([A-Za-z])\)\s*|\[([A-Za-z])\]\s*|([A-Za-z])(?:[.):]\s*|、\s*|,\s+(?=\d)"
    r"|\s+(?=\([^(),]*\)$)))(?=\S)(.*)",
    re.DOTALL,
)
_TEXT_LETTER = re.compile(
    r"^\\(?:text|textbf|mathrm|mathbf)\s*\{\s*\(?([A-Z])(?:\)[.:]?|[.:])\s*\}(?:\\[ ,;]|\\q?quad"
    r"|\s)*(?=\S)"
)
_SEVERAL = re.compile(
    r"[\[({]?\s*(?:[A-Z]{2,8}|\(?[A-Z]\)?(?:\s*(?:,|;|、|&|/|\band\b|和|与|\s)+\s*\(?[A-Z]\)?)+"
    r"|(?:\([A-Z]\)\s*){2,8})\s*(?:only)?\s*[\])}]?"
)
_STATEMENT = r"(?:[①-⑳]|\((?:\d{1,2})\))"
_STATEMENTS = re.compile(rf"(?:{_STATEMENT}(?:\s|,|;|、|and|和|与|&|only|只有)*)+")
_ROMAN = {
    "I": 1,
    "II": 2,
    "III": 3,
    "IV": 4,
    "V": 5,
    "VI": 6,
    "VII": 7,
    "VIII": 8,
    "IX": 9,
    "X": 10,
}
_ROMANS = re.compile(
    r"(?:(?:[Oo]nly|[Bb]oth)\s+)?(?:(?:[Ss]tatements?|[Qq]uadrant)\s+)?"
    rf"((?:\(?\b(?:{'|'.join([*_ROMAN, *map(str.lower, _ROMAN)])})\b\)?"
    r"(?:\s|,|;|、|and\b|和|与|&)*)+)"
    r"(?:only|are (?:true|correct)|is (?:true|correct))?"
)
_ORDINALS = "first second third fourth fifth sixth seventh eighth".split()
_ORDINAL = re.compile(
    rf"(?:the\s+)?({'|'.join(_ORDINALS)}|last)\s+(?:option|choice|one|answer)"
    r"|(?:option|choice)\s+([1-8])",
    re.I,
)
_NUMBERS = re.compile(r"\d{1,2}(?:(?:\s*(?:,|;|、|and|和)\s*)+\d{1,2})*(?:\s*only)?")


def letters_in(answer: str, letters: str) -> str:
    """Finds the letters of choices that an answer consists of.

    Args:
        answer: "B", "(b)", "Option B", "B. 12 cm", "A, B, D", "ABD", ...
        letters: Letters that exist.

    Returns:
        Different capital letters in order; empty if the answer is something else.
    """
    ordinal = _ORDINAL.fullmatch(answer.strip(" ."))
    if ordinal and (ordinal[1] or letters != LETTERS):
        name = (ordinal[1] or _ORDINALS[int(ordinal[2]) - 1]).lower()
        if name == "last":
            return letters[-1] if letters != LETTERS else ""
        return letters[_ORDINALS.index(name) :][:1]
    text = re.sub(r"(?<=[A-Z])\)?选?项$", "", _without_lead(answer))
    if single := _SINGLE.fullmatch(text):
        return _known("".join(filter(None, single.groups())).upper(), letters)
    if _SEVERAL.fullmatch(text):
        found = re.findall(r"[A-Z]", text)
        is_run = re.fullmatch(r"\W*[A-Z]{2,}(?:\s*only)?\W*", text) is not None
        if len(set(found)) < len(found) or (is_run and found != sorted(found)):
            return ""
        return _known("".join(sorted(found)), letters)
    if re.fullmatch(r"\(?[a-e]\)?(?:\s*(?:,|;|、|&|\band\b|和|与)\s*\(?[a-e]\)?)+", text):
        return _known("".join(sorted(set(re.findall(r"\b[a-e]\b", text)))).upper(), letters)
    letter, _ = split_letter(text)
    return _known(letter, letters)


def split_letter(text: str) -> tuple[str, str]:
    """Splits "B. 12 cm" into letter and text.

    Args:
        text: An answer or an option.

    Returns:
        The capital letter and the text behind it; an empty letter and the whole text without one.
    """
    match = _WITH_TEXT.fullmatch(_TEXT_LETTER.sub(r"(\1) ", text.strip()))
    if match is None:
        return "", text
    letter = next(filter(None, match.groups()[:3]))
    rest = match[4].strip()
    if re.search(r"[,;]\s*[A-Z]\s*[:=]", rest):
        return "", text  # A: 40, B: 60
    return letter.upper(), rest[1:-1] if re.fullmatch(r"\([^()]*\)", rest) else rest


def bare_options(options: Sequence[str]) -> list[str]:
    """Removes the letters that options carry: "A. 12 cm" becomes "12 cm".

    Args:
        options: Texts of the options A, B, ...

    Returns:
        The texts; as they are unless each one begins with its own letter.
    """
    pieces = [split_letter(option) for option in options]
    pairs = zip(pieces, ascii_uppercase, options, strict=False)
    if len(pieces) > 1 and all(piece[0] == letter for piece, letter, text in pairs if text):
        return [text for _, text in pieces]
    return list(options)


def same_romans(given: str, expected: str) -> bool | None:
    """Compares numbers of statements such as "I and III" and "(iii)".

    Args:
        given: An answer.
        expected: The reference.

    Returns:
        Whether they name the same; None unless both are Roman numerals.
    """
    first, second = _romans_in(given), _romans_in(expected)
    if not first or not second or max(len(given), len(expected)) < 2:
        return None
    return first == second


def statements_in(answer: str) -> frozenset[int]:
    """Finds the numbers of statements that an answer consists of: ①③, (1)(3).

    Args:
        answer: An answer before it is rewritten in canonical form.
    """
    text = _without_lead(answer.replace("\N{FULLWIDTH LEFT PARENTHESIS}", "("))
    text = text.replace("\N{FULLWIDTH RIGHT PARENTHESIS}", ")").strip(" .")
    text = re.sub(r"^(?:只有|仅有?)|(?:是)?正确的?$", "", text)
    if not _STATEMENTS.fullmatch(text):
        return frozenset()
    return frozenset(int(one) for one in re.findall(r"\d+", _digits(text)))


def same_statements(given: str, expected: str) -> bool | None:
    """Compares numbers of statements; a plain list "1, 3" may name statements too.

    Args:
        given: An answer.
        expected: The reference.

    Returns:
        Whether they name the same; None unless one has circled numbers or several in brackets.
    """
    first, second = statements_in(given), statements_in(expected)
    is_clear = any(re.search("[①-⑳]", one) for one in (given, expected)) or len(first) > 1 < len(
        second
    )
    if not is_clear or not (first or second):
        return None
    first, second = first or _plain_numbers(given), second or _plain_numbers(expected)
    return bool(first) and first == second


def _romans_in(text: str) -> frozenset[int]:
    """The numbers of statements such as I and III."""
    text = re.sub(r"\\text\s*\{([^{}]*)\}", r"\1", unicodedata.normalize("NFKC", text))
    found = _ROMANS.fullmatch(text.strip(" .$"))
    names = re.findall("[IVX]+", found[1].upper()) if found else ()
    return frozenset(_ROMAN.get(name, 0) for name in names)


def _plain_numbers(text: str) -> frozenset[int]:
    text = text.strip(" .$")
    return (
        frozenset(map(int, re.findall(r"\d+", text))) if _NUMBERS.fullmatch(text) else frozenset()
    )


def _digits(text: str) -> str:
    return "".join(f" {unicodedata.digit(one, 0) or unicodedata.numeric(one):.0f} "
                   if "①" <= one <= "⑳" else one for one in text)  # fmt: skip


def _without_lead(answer: str) -> str:
    text = "".join(
        unicodedata.normalize("NFKC", one)
        if "\N{FULLWIDTH LATIN CAPITAL LETTER A}" <= one <= "\N{FULLWIDTH LATIN SMALL LETTER Z}"
        or one in "（）［］：，．＆；"
        else one
        for one in answer.strip()
    )
    text = re.sub(
        r"\\(?:text|textbf|mathrm|mathbf|mathit|rm|bf)\s*\{([^{}]*)\}|\$|\\[ ,;]|~|\\q?quad",
        r" \1",
        text,
    )
    text = text.replace("**", "").strip().strip(".。").strip()
    text = re.sub(
        r"\s+(?:is|are)\s+(?:(?:the\s+)?(?:correct|right)"
        r"(?:\s+(?:answer|option|choice)s?)?|the\s+answers?)$",
        "",
        text,
    )
    text = re.sub(r"^[Bb]oth\s+|(?<=\s)[Oo]ption\s+(?=\(?[A-H]\)?(?!\w))", "", text)
    while (rest := _LEAD.sub("", text, count=1) if _LEAD.match(text) else text) != text and rest:
        text = rest.strip()
    return text


def _known(found: str, letters: str) -> str:
    return found if found and set(found) <= set(letters) else ""
