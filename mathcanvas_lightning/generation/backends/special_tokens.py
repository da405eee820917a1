"""Keeps special tokens in the user's texts from acting as such in a prompt."""

import re
from collections.abc import Collection
from dataclasses import replace
from functools import lru_cache

from mathcanvas_lightning.generation.requests import Message

BREAK = "\u200b"
"""An invisible character (zero width space); it separates the first two characters of a token."""
COMMON = re.compile(
    r"<[|\uff5c][^<>|\uff5c\s]{1,60}[|\uff5c]>"
    r"|</?s>|<(?:bos|eos|pad|unk|mask)>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_[A-Z]+)\]"
    r"|<</?SYS>>|</?(?:start|end)_of_(?:turn|utterance|image)>|\[/?IMG(?:_BREAK|_END)?\]"
    r"|<(?:image_soft_token|fake_token_around_image|global-img|IMG_CONTEXT|row_\d+_col_\d+)>"
    r"|</?(?:img|IMG)>"
)
"""Special tokens of the common families of models, for servers whose tokenizer is not known."""


def with_plain_text(message: Message, special: Collection[str] | None = None) -> Message:
    """The message of a user with an invisible character in each special token.

    Chat templates join texts before they are tokenized, so a question that contains
    `<|im_end|>` would end the user's turn. Other roles are written by whoever runs the model, and
    stay as they are.

    Args:
        message: A message of any role.
        special: Spellings of the model's special tokens; by default those of common models.

    Returns:
        The message; the same object if nothing changes.
    """
    if message.role != "user":
        return message
    pattern = COMMON if special is None else _pattern(frozenset(special))
    is_text = all(isinstance(part, str) for part in message.parts)
    parts = (message.text,) if is_text else message.parts  # a token may span two texts
    plain = tuple(_broken(pattern, part) if isinstance(part, str) else part for part in parts)
    return message if plain == parts else replace(message, parts=plain)


def _broken(pattern: re.Pattern[str], text: str) -> str:
    return pattern.sub(lambda token: f"{token[0][0]}{BREAK}{token[0][1:]}", text)


@lru_cache(maxsize=8)
def _pattern(special: frozenset[str]) -> re.Pattern[str]:
    spellings = sorted((one for one in special if len(one) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, spellings)) or r"(?!)")
