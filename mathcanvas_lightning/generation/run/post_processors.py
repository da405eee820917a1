"""Changes to an answer on its way from the journal to the output."""

import re
from collections.abc import Callable

PostProcessor = Callable[[str], str]
"""Takes what the model said, or what the one before made of it, and gives what to write. In YAML:
the path of a function, or class_path and init_args of a class whose objects can be called."""

_THINKING = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


def strip(text: str) -> str:
    """Takes white space off both ends of a text."""
    return text.strip()


def remove_thinking(text: str) -> str:
    """Takes out what stands between `<think>` and `</think>`, and white space around the rest.

    Args:
        text: What a model said. Templates may put the opening tag into the prompt, so a text may
            begin within the thoughts; `max_tokens` may end it there.

    Returns:
        What is left.
    """
    return _THINKING.sub("", text).rpartition("</think>")[2].strip()
