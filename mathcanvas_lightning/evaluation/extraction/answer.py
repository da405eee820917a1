r"""The final answer of a response: `\boxed{...}`, "the answer is ...", or a plain last line.

All patterns run in time linear in the length of the text.
"""

import re
from collections.abc import Sequence

from mathcanvas_lightning.evaluation.extraction.cleaning import WORD, clean, find_boxes, split_list
from mathcanvas_lightning.evaluation.extraction.marks import MAX_CHARACTERS
from mathcanvas_lightning.evaluation.extraction.parts import FULL_WIDTH, sections, tagged
from mathcanvas_lightning.evaluation.extraction.pattern import BOXED
from mathcanvas_lightning.evaluation.extraction.statements import candidates
from mathcanvas_lightning.generation.run.post_processors import remove_thinking

MAX_WORDS = 15
"""Longer candidates are reasoning, not an answer."""

_ATOM = re.compile(r"-?\d+|[A-Z]")
"""An answer that contains no shorter one."""


def extract_answer(text: str, pattern: re.Pattern[str] | None = None) -> str:
    r"""Finds the final answer of a response; usable as a post-processor.

    The last marked answer counts: `\boxed{...}` (or several, separated only by commas or "and"),
    `<answer>...</answer>`, `#### ...`, or a plain answer after "answer is" or "Answer:". Without
    one: the last "option B", the end of the last line, or the whole response, if it is short enough
    to be only an answer.

    Args:
        text: A response, with or without `<think>...</think>`.
        pattern: Mark of the answer from `answer_pattern`; nothing else counts then.

    Returns:
        The answer on one line, without enclosing characters; empty if none is found. Without
        a pattern the function is idempotent.
    """
    text = _final_text(text)
    if pattern is not None:
        return next((clean(one) for one in reversed(_matches(text, pattern)) if one.strip()), "")
    while not _ATOM.fullmatch(text) and (found := _extract_once(text)) != text:
        text = found
    return text


def extract_answers(
    text: str, num_parts: int, pattern: re.Pattern[str] | None = None
) -> tuple[str, ...]:
    """Finds the answers to the parts of a question.

    Args:
        text: A response.
        num_parts: Number of parts of the question.
        pattern: Mark of the answer from `answer_pattern`; nothing else counts then.

    Returns:
        An answer for each part, empty where none is found. A single answer is assigned to the
        first part.
    """
    if num_parts == 1:
        return (extract_answer(text, pattern),)
    text = _final_text(text)
    if pattern is not None:
        marked = [one for one in _matches(text, pattern) if one.strip()]
        if len(marked) >= num_parts:
            return tuple(map(clean, marked[-num_parts:]))
        text = marked[-1] if marked else ""
    found = dict(tagged(text)) or dict(enumerate(_pieces(text, num_parts)))
    return tuple(extract_answer(found.get(part, "")) for part in range(num_parts))


def _final_text(response: str) -> str:
    """Removes the thoughts, and replaces full-width punctuation by ASCII."""
    return remove_thinking(response).translate(FULL_WIDTH)


def _matches(text: str, pattern: re.Pattern[str]) -> list[str]:
    if pattern is BOXED:
        return [box.content for box in find_boxes(text)]
    return [found[1] or "" if pattern.groups else found[0] for found in pattern.finditer(text)]


def _extract_once(text: str) -> str:
    """Returns the first candidate that is short enough to be an answer."""
    for candidate in candidates(text):
        answer = clean(candidate)
        if answer and _is_answer(answer):
            return answer
    return ""


def _is_answer(text: str) -> bool:
    is_short = len(text) <= MAX_CHARACTERS and len(WORD.findall(text)) <= MAX_WORDS
    return is_short and "\\boxed" not in text  # a truncated box


def _pieces(text: str, num_parts: int) -> Sequence[str]:
    """Splits a text into pieces that contain the answers to the parts."""
    boxes = find_boxes(text)
    marked = sections(text, num_parts)
    if marked and all(find_boxes(piece) for piece in marked):
        return marked
    if len(boxes) >= num_parts:
        return [box.content for box in boxes[-num_parts:]]
    for box in boxes[-1:]:
        if found := sections(box.content, num_parts):
            return found
    if marked:
        return marked
    answer = extract_answer(text)
    items = split_list(answer)
    return items if len(items) == num_parts else [answer]
