"""Functions that change the text of an answer before it is written to the output."""

import re
from collections.abc import Callable

PostProcessor = Callable[[str], str]
"""Takes the text of an answer (or the result of the previous function) and returns the new text. In
YAML: the import path of a function, or class_path and init_args of a class with callable
objects."""

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def strip(text: str) -> str:
    """Removes white space at both ends of a text."""
    return text.strip()


def remove_thinking(text: str) -> str:
    """Removes the text between `<think>` and `</think>`, and white space around the rest.

    Args:
        text: Answer of a model. The opening tag may be missing (if it is part of the prompt), and
            the closing tag too (if `max_tokens` ended the answer).

    Returns:
        The answer without thoughts.
    """
    return _THINKING.sub("", text).rpartition("</think>")[2].strip()
