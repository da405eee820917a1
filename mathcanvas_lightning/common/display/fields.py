"""Explains the fields of dataclasses in help(), which does not show their docstrings."""

import dataclasses
import re
from typing import Any

MARK = "\n\nFields:\n"


def with_explained_fields(found: Any) -> Any:
    """Adds the docstrings of a dataclass's fields to that of the class, once.

    Args:
        found: Any object; others than dataclasses with such docstrings stay as they are.

    Returns:
        The same object.
    """
    if not isinstance(found, type) or not dataclasses.is_dataclass(found):
        return found
    doc = found.__doc__ or ""
    if MARK in doc:
        return found
    import docstring_parser  # reads the source of the class

    texts = {
        param.arg_name: " ".join((param.description or "").split())
        for param in docstring_parser.parse_from_object(found).params
    }
    lines = [
        f"    {field.name}: {texts[field.name]}"
        for field in dataclasses.fields(found)
        if texts.get(field.name) and not re.search(rf"^ +{field.name}:", doc, re.MULTILINE)
    ]
    if lines:
        found.__doc__ = doc.rstrip() + MARK + "\n".join(lines) + "\n"
    return found
