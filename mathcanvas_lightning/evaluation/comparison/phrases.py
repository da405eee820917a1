"""Answers in words: yes and no, no solution, and any other text."""

import re

_CLASSES = {
    "yes": "yes|true|correct|right|是|是的|对|正确|\\sqrt{}|✓|✔|能|可以|成立",
    "no": "no|false|incorrect|否|不是|错|错误|不正确|*|✗|✘|不能|不可以|不成立",
    "no solution": "empty set|the empty set|none|∅|无解|无实数解|无实数根|没有解|空集",
    "does not exist": "dne|does not exist|doesn't exist|limit does not exist|不存在"
    "|undefined|not defined|is undefined|limit is undefined|无意义",
    "infinitely many": "infinitely many|infinitely many solutions|infinite|infinite solutions"
    "|infinite number of solutions|infinitely many|无数个|无穷多解|无数解|无穷多个",
    "all reals": "all real numbers|all reals|all real|ℝ|(-∞,∞)|(-∞,+∞)|x∈ℝ"
    "|set of real numbers|set of all real numbers|real numbers|all real values"
    "|全体实数|任意实数|实数集|一切实数",
    "impossible": "impossible|not possible|it is impossible|cannot be done",
    "cannot be determined": "cannot be determined|can not be determined|can't be determined"
    "|not enough information|insufficient information|无法确定|不能确定",
}  # fmt: skip
_CLASS_OF = {phrase: name for name, phrases in _CLASSES.items() for phrase in phrases.split("|")}
_DECIDING_LETTERS = {"T": "yes", "F": "no", "Y": "yes", "N": "no"}
_ARTICLE = re.compile(r"^(?:the|a|an|it is|it's|they are|there are|there is)\s+(?=\S)")
_NO_SOLUTION = re.compile(
    r"(?:(?:the |this )?(?:equation|system|inequality|problem|x|it|there) (?:has|is|are) )?"
    r"no (?:real |integer |such |possible |valid )?(?:solutions?|roots?|values?|numbers?)"
    r"(?: exists?)?"
)
_DECIDED = re.compile(r"(yes|no|true|false)\s*[,.;:]\s*\S", re.IGNORECASE)
_LONG_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{3,}")


def same_phrase(given: str, expected: str) -> bool | None:
    """Compares fixed phrases: "Yes, it is" is yes, "no real solutions" is the empty set.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether they mean the same; None unless both are known phrases.
    """
    first, second = phrase_of(given), phrase_of(expected)
    if first in ("yes", "no") and not second:
        second = _DECIDING_LETTERS.get(expected, "")
    elif second in ("yes", "no") and not first:
        first = _DECIDING_LETTERS.get(given, "")
    return None if not first or not second else first == second


def phrase_of(text: str) -> str:
    """The meaning of a fixed phrase; empty for other texts.

    Args:
        text: A text in canonical form.
    """
    plain = " ".join(text.casefold().replace("'", "'").split()).strip(" .!")
    known = _CLASS_OF.get(plain) or _CLASS_OF.get(_ARTICLE.sub("", plain))
    if known:
        return known
    if _NO_SOLUTION.fullmatch(plain):
        return "no solution"
    decided = _DECIDED.match(text)
    return _CLASS_OF[decided[1].lower()] if decided else ""


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
    if not (_LONG_WORD.search(given) and _LONG_WORD.search(expected)):
        return False
    return _plain(given) == _plain(expected)


def _plain(text: str) -> str:
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text.casefold())
    text = re.sub(r"""\s*([,.;:!?'"])\s*""", r"\1", text).strip(" .!,;:'\"")
    return _ARTICLE.sub("", " ".join(text.split()))
