"""Short reprs: the name of the class, and the few values that tell objects apart."""

from collections.abc import Sequence
from typing import Any

SHOWN = ("model_name", "train_configs", "validation_configs")
"""Attributes that tell backends and data modules apart."""
MAX_CHARACTERS = 60
"""Longer texts are cut."""


class ShortRepr:
    """Shows those of the attributes `SHOWN` that an object has; of labelled objects, the labels."""

    def __repr__(self) -> str:
        values = {name.removesuffix("_configs"): getattr(self, name, None) for name in SHOWN}
        return short_repr(self, **{name: value for name, value in values.items() if value})


def short_repr(owner: object, *values: str, **named: Any) -> str:
    """Builds a repr.

    Args:
        owner: The object.
        values: Facts as texts, such as "3 drawings".
        named: Name -> value; texts are cut.

    Returns:
        A text like `Name(3 drawings, answer='B')`.
    """
    facts = [*values, *(f"{name}={_short(value)}" for name, value in named.items())]
    return f"{type(owner).__name__}({', '.join(facts)})"


def counted(number: int, name: str) -> str:
    """A number with its noun, such as "1 image" or "1,200 tokens"."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _short(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        labels = [str(getattr(one, "label", one)) for one in value]
        return f"[{_cut(', '.join(labels))}]"
    return repr(_cut(value)) if isinstance(value, str) else _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."
