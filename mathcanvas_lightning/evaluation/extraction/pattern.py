"""The mark of an answer that a prompt asks for: a preset, or a regular expression."""

import re
from collections.abc import Mapping
from types import MappingProxyType

from mathcanvas_lightning.errors import ConfigError

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "boxed": r"\boxed{...}",
        "answer_tag": r"<answer>\s*((?s:.*?))\s*</answer>",
        "hash": r"^#{4}[ \t]*(\S.*?)[ \t]*$",
        "answer_line": r"^[*_#\s]*(?:final\s+)?answer[*_\s]*:[*_]*\s*(\S.*?)[ \t]*$",
    }
)
"""Name -> regular expression; "boxed" finds boxes with any braces inside."""
BOXED = re.compile(re.escape(PRESETS["boxed"]))


def answer_pattern(pattern: str | None) -> re.Pattern[str] | None:
    """Makes the pattern that marks an answer.

    Args:
        pattern: Name of a preset, or a regular expression whose first group (or whole match) is
            the answer; None for all the usual marks.

    Returns:
        The compiled pattern; `BOXED` for boxes, None for None.

    Raises:
        ConfigError: If it is neither.
    """
    if pattern is None or pattern == "boxed":
        return None if pattern is None else BOXED
    if pattern in PRESETS:
        return re.compile(PRESETS[pattern], re.IGNORECASE | re.MULTILINE)
    if re.fullmatch(r"[a-z_]*", pattern):  # a misspelt preset would match its own letters
        raise _no_pattern(pattern, "no preset, and nothing but letters")
    try:
        return re.compile(pattern, re.MULTILINE)
    except re.error as error:
        raise _no_pattern(pattern, str(error)) from None


def _no_pattern(pattern: str, found: str) -> ConfigError:
    return ConfigError(
        "answer_pattern",
        found=f"{pattern!r}: {found}",
        wanted=f"{', '.join(PRESETS)}, or a regular expression",
        remedy=r"Name a preset, or put the answer into a group: 'ANSWER:\s*(.*)'.",
    )
