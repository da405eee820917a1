"""Filters that select records by their fields and pictures."""

import re
from collections.abc import Callable, Sequence

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.records.record import Record

RecordFilter = Callable[[Record], bool]
"""Returns True for records that are asked; the others are written to the output unchanged. It also
gets records with faults (but never with an invalid index). In YAML: the import path of a function,
or class_path and init_args of a class with callable objects."""


class FieldIs:
    """Selects records by the value of a field.

    Args:
        field: Name of the field.
        values: Accepted values. They are compared as texts, because CSV has only texts. A missing
            field counts as null.
    """

    def __init__(self, field: str, values: Sequence[str | int | float | bool | None]) -> None:
        self._field = field
        self._values = frozenset(map(str, values))

    def __call__(self, record: Record) -> bool:
        """Whether the field has one of the values."""
        return str(record.values.get(self._field)) in self._values


class HasImages:
    """Selects records with pictures, or records without.

    Args:
        wanted: True for records with pictures, False for records without.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted

    def __call__(self, record: Record) -> bool:
        """Whether the record is selected."""
        return bool(record.images) == self._wanted


class Matches:
    """Selects records by a regular expression, which may match anywhere in a field.

    Args:
        field: Name of the field; a missing or null field never matches.
        regex: Regular expression in the syntax of Python's `re`.

    Raises:
        ConfigError: If the regular expression is invalid.
    """

    def __init__(self, field: str, regex: str) -> None:
        self._field = field
        try:
            self._regex = re.compile(regex)
        except re.error as error:
            raise ConfigError(
                "regex",
                found=f"{regex!r} ({error})",
                wanted="a regular expression",
                remedy="Correct it; write a literal ( as \\(.",
            ) from None

    def __call__(self, record: Record) -> bool:
        """Whether the field matches."""
        value = record.values.get(self._field)
        return value is not None and self._regex.search(str(value)) is not None
