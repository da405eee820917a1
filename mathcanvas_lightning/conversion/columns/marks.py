"""Marks in texts that stand for pictures."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

KNOWN_MARKS = {
    "<image>image.png</image>": r"<image>\s*([^<>\s][^<>]*?)\s*</image>",
    "<image>": r"<image>|<img>",
    "<image1>": r"<image_?(\d{1,9})>",
    "[image_1]": r"\[(?:<img>)?([A-Za-z]\w*_\d{1,9})\]",
    "<image_start>[image_1]<image_end>": r"<image_start>\s*\[?([^<>\[\]]*)\]?\s*<image_end>",
    "<image_start>": r"<image_start>",
    "![](image.png)": r"!\[[^\]]*\]\(\s*([^()\s]+)\s*\)",
}
"""Example of a mark -> its pattern; the group holds the number, the column or the path."""
DEFAULT_MARKS = ("<image_start>[image_1]<image_end>", "<image1>", "<image>")


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a text for a picture."""

    text: str
    """The mark as it was written."""
    target: str
    """Number, column or path of the picture; "" for the next one."""


def mark_pattern(mark: str) -> str:
    """The regular expression of a mark: of a known one, or itself."""
    return KNOWN_MARKS.get(mark, mark)


def split_at_marks(text: str, marks: Sequence[str]) -> list[str | Mark]:
    """Splits a text at its marks.

    Args:
        text: Any text.
        marks: Examples of known marks, or regular expressions; the first that matches counts.

    Returns:
        Texts and marks alternately; the first and the last are texts, which may be empty.
    """
    pieces: list[str | Mark] = []
    end = 0
    for found in _compiled(tuple(marks)).finditer(text):
        target = next((group for group in found.groups() if group is not None), "")
        pieces += [text[end : found.start()], Mark(found[0], target.strip())]
        end = found.end()
    return [*pieces, text[end:]]


@lru_cache(maxsize=64)
def _compiled(marks: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{mark_pattern(mark)})" for mark in marks) or r"(?!)")
