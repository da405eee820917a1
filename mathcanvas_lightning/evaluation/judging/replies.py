"""Reads the replies of a judge, which may explain, think and decorate."""

import re
import unicodedata

from mathcanvas_lightning.generation.run.post_processors import remove_thinking

NO_ANSWER = "none"
_DECORATION = re.compile(
    r"\\(?:boxed|text|mathrm|textbf)\s*|[*_`#$>{}\[\]\"\u201c\u201d「」]"
    r"|(?<!\w)['\u2018\u2019]|['\u2018\u2019](?!\w)"
)
_YES = r"1|yes|true|correct|right|same|the same|equal|equivalent|是的?|对的?|正确|相同|一致|等价"
_NO = (
    r"0|no|false|incorrect|wrong|different|unequal|not (?:correct|right|the same|equal|equivalent)"
    r"|不是?|否|错误?|不对|不正确|不同|不相同|不一致|不等价"
)
_LABEL = (
    r"(?:(?:so|thus|hence|therefore)\b[,:]?\s*)?(?:(?:my|the|final|overall)\s+)*"
    r"(?:(?:verdict|answer|result|judge?ment|decision|score|output|rating|conclusion"
    r"|结论|答案|判断|结果)\s*(?:is\b|[:=是为])?\s*:?\s*)?"
)
_VERDICT = re.compile(rf"{_LABEL}\(?(?:(?P<yes>{_YES})|(?P<no>{_NO}))\s*[.!。)]*", re.IGNORECASE)
_OPENING = re.compile(
    rf"{_LABEL}(?:(?P<yes>{_YES})|(?P<no>{_NO}))\s*(?:[,;:!。\u2013\u2014-]|(?<!\d)\.|\s\(|$)",
    re.IGNORECASE,
)
_JSON = re.compile(
    r"[\"']\w*(?:verdict|correct|answer|score|result|same|equal|match)\w*[\"']\s*:\s*[\"']?"
    r"(?:(?P<yes>1|true|yes)|(?P<no>0|false|no))\b",
    re.IGNORECASE,
)
_DENIAL = re.compile(
    r"\b(?:incorrect|wrong|different|differs?|unequal)\b"
    r"|(?:\bnot|n't|\bnever)\s(?:\w+\s){0,2}?(?:correct|right|same|equal|equivalent|match|agree)\w*"
    r"|不(?:是|对|正确|相同|同|一致|等价)|错误",
    re.IGNORECASE,
)
_CLAIM = re.compile(
    r"\b(?:correct|right|equal|equivalent|(?:say|says|is|are)\sthe\ssame|match(?:es)?|agrees?)\b"
    r"|正确|相同|一致|等价",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if|whether|would|should|may|might|unless)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|(?<=。)")


def extracted_answer(reply: str) -> str | None:
    """Reads the reply to the request to copy an answer.

    Args:
        reply: The text of the model.

    Returns:
        The answer; "" if the model found none; None if the reply is empty or has only thoughts.
    """
    text = remove_thinking(reply)
    return "" if text.strip(" .*`\"'").casefold() == NO_ANSWER else text or None


def read_verdict(reply: str) -> bool | None:
    """Reads a verdict: "1", "**1**", "Yes, both are 7", "Verdict: 0", "The answer is wrong" ...

    A line that is only a verdict decides, the last line first; then the opening word, and at last
    what the last sentence claims.

    Args:
        reply: The text of the model.

    Returns:
        Whether the answer is right; None if the reply says neither, or both.
    """
    text = unicodedata.normalize("NFKC", remove_thinking(reply))
    if (found := _verdict(_JSON.search(text))) is not None:
        return found
    lines = [" ".join(_DECORATION.sub(" ", line).split()) for line in text.splitlines()]
    lines = [line for line in lines if line]
    if not lines:
        return None
    verdicts = {_verdict(_VERDICT.fullmatch(line)) for line in (lines[0], lines[-1])} - {None}
    if verdicts:
        return verdicts.pop() if len(verdicts) == 1 else None
    opening = _verdict(_OPENING.match(lines[0]))
    claim = _claim(_SENTENCE_END.split(" ".join(lines).strip())[-1])
    both = {opening, claim} - {None}
    return both.pop() if len(both) == 1 else None


def _verdict(match: re.Match[str] | None) -> bool | None:
    return None if match is None else match["yes"] is not None


def _claim(sentence: str) -> bool | None:
    """Whether a sentence calls an answer right or wrong; None if it does neither or both."""
    rest, num_denials = _DENIAL.subn(" ", sentence)
    is_claimed = _CLAIM.search(rest) is not None
    is_open = sentence.endswith("?") or _CONDITION.search(sentence) is not None
    return None if is_open or is_claimed == (num_denials > 0) else is_claimed
