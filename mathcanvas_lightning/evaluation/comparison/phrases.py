"""Answers in words: yes and no, no solution, and any other text."""

import re

_CLASSES = {
    "yes": "yes|true|correct|right|是|是的|对|正确|\\sqrt{}|✓|✔|能|可以|成立",
    "no": "no|false|incorrect|not true|not correct|not valid"
    "|否|不是|错|错误|不正确|*|✗|✘|不能|不可以|不成立",
    "no solution": "empty set|the empty set|none|∅|无解|无实数解|无实数根|没有解|空集",
    "positive reals": "positive real numbers|positive numbers|all positive real numbers"
    "|all positive numbers|正实数|正数",
    "negative reals": "negative real numbers|negative numbers|all negative real numbers|负实数",
    "does not exist": "dne|does not exist|doesn't exist|limit does not exist|不存在"
    "|undefined|not defined|is undefined|limit is undefined|无意义",
    "infinitely many": "infinitely many|infinitely many solutions|infinite|infinite solutions"
    "|infinite number of solutions|infinitely many|无数个|无穷多解|无数解|无穷多个",
    "all reals": "all real x|all x|any real number|all real numbers|all reals|all real|ℝ|(-∞,∞)"
    "|(-∞,+∞)|x∈ℝ"
    "|-∞<x<∞|set of real numbers|set of all real numbers|real numbers|all real values"
    "|x为任意实数|x取任意实数|x为全体实数|全体实数|任意实数|实数集|一切实数",
    "impossible": "impossible|not possible|it is impossible|cannot be done",
    "cannot be determined": "cannot be determined|can not be determined|can't be determined"
    "|not enough information|insufficient information|无法确定|不能确定",
}  # fmt: skip
_CLASS_OF = {phrase: name for name, phrases in _CLASSES.items() for phrase in phrases.split("|")}
_DECIDING_LETTERS = {"T": "yes", "F": "no", "Y": "yes", "N": "no"}
_ARTICLE = re.compile(r"^(?:the|a|an|it is|it's|they are|there are|there is|it|they)\s+(?=\S)")
_NO_SOLUTION = re.compile(
    r"(?:(?:the |this )?(?:equation|system|inequality|problem|x|it|there) (?:has|is|are) )?"
    r"no (?:real |integer |such |possible |valid )?(?:solutions?|roots?|values?|numbers?)"
    r"(?: exists?)?|(?:there (?:is|are) )?no such [a-z]+(?: exists?)?"
)
_UNDETERMINED = re.compile(
    r"(?:(?:it|the [a-z]+(?: [a-z]+)?) )?(?:cannot|can't) be (?:determined|known|decided)"
    r"|(?:(?:it is )?(?:impossible|not possible) to|we (?:cannot|can't))"
    r" (?:tell|determine|know|say|conclude|decide)\b|(?:there is )?(?:not enough"
    r"|insufficient) information"
)
_ASSERTED = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s?)?"
    r"(?:(?:the|this|that|these|those|it|they|there|its?|both)\b(?:\s[A-Za-z]+){0,6}?"
    r"|[Pp]oint [A-Z]|△[A-Z]{3}|(?:[△∠]|quadrilateral |parallelogram |triangle )?[A-Z]{2,4})"
    r"\s(?:is(?: symmetric about)?|are|opens|lies (?:in|on)|happens on|occurs (?:in|on)|remains"
    r"|becomes)"
    r"\s(?:an?\s|the\s)?(?=\S)",
    re.IGNORECASE,
)
"""The subject of a statement such as "the triangle is isosceles"."""
_NEGATION = re.compile(r"\b(?:not?|never|neither|none|un\w+)\b|n't", re.IGNORECASE)
_SUFFIX = re.compile(
    r" (?:sequences?|series|progressions?|triangles?|angles?|functions?|lines?|numbers?|events?)$|"
    r" (?:(?:congruence|similarity) ?)?(?:theorem|postulate|criterion|rule|axiom)?$"
)
_DECIDED = re.compile(
    r"(yes|no|true|false)\s*[,.;:]\s*(?!(?:yes|no|true|false|[TFYN])\b)\S", re.IGNORECASE
)
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
    elif "R" in (given, expected) and "all reals" in (first, second):
        return True
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
    if re.search(r"\bneither\b.*\bnor\b|^neither(?: one| of them)?$", plain):
        return "neither"
    if plain.startswith("infinitely many"):
        return "infinitely many"
    if _UNDETERMINED.match(plain):
        return "cannot be determined"
    asserted = _ASSERTED.match(text)
    if asserted and not _NEGATION.search(asserted[0]):
        return phrase_of(text[asserted.end() :])
    decided = _DECIDED.match(text)
    return _CLASS_OF[decided[1].lower()] if decided else ""


def is_decision(text: str) -> bool:
    """Whether a text is yes or no, true or false, also as a letter.

    Args:
        text: A text in canonical form.
    """
    return text in _DECIDING_LETTERS or phrase_of(text) in ("yes", "no")


def same_text(given: str, expected: str) -> bool:
    """Compares two answers as texts; case matters in formulas, but not in words.

    Args:
        given: Answer in canonical form.
        expected: Reference in canonical form.

    Returns:
        Whether the texts are the same.
    """
    if given.removesuffix("的") == expected.removesuffix("的"):
        return bool(given)
    if not (_LONG_WORD.search(given) and _LONG_WORD.search(expected)):
        return False
    first, second = _plain(given), _plain(expected)
    if first == second:
        return True
    return any(
        _asserts(whole, part) or _SUFFIX.sub("", _plain(whole)) == _plain(part)
        for whole, part in ((given, expected), (expected, given))
    )


def _asserts(whole: str, part: str) -> bool:
    """Whether a sentence says of something that it is `part`."""
    found = _ASSERTED.match(whole)
    if found is None or _NEGATION.search(found[0]):
        return False
    return _plain(whole[found.end() :]) == _plain(part)


def _plain(text: str) -> str:
    text = re.sub(r"(?<=[A-Za-z])-(?=[A-Za-z])", " ", text.casefold())
    text = re.sub(r"""\s*([,.;:!?'"])\s*""", r"\1", text).strip(" .!,;:'\"")
    return _ARTICLE.sub("", " ".join(text.split()))
