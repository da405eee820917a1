"""Which records are asked: filters on fields and pictures."""

import re
from collections.abc import Callable, Sequence

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.records.record import Record

RecordFilter = Callable[[Record], bool]
"""Says which records are asked; the others are written out as they are. It may be given records
with any fault but a bad index. In YAML: the path of a function, or class_path and init_args of a
class whose objects can be called."""


class FieldIs:
    """Takes records with certain values in a field.

    Args:
        field: Of the record.
        values: Any of these; compared as texts, since those of CSV are texts. An absent field
            counts as null.
    """

    def __init__(self, field: str, values: Sequence[str | int | float | bool | None]) -> None:
        self._field = field
        self._values = frozenset(map(str, values))

    def __call__(self, record: Record) -> bool:
        """Whether the field has one of the values."""
        return str(record.values.get(self._field)) in self._values


class HasImages:
    """Takes records with pictures, or those without.

    Args:
        wanted: False for those without.
    """

    def __init__(self, wanted: bool = True) -> None:
        self._wanted = wanted

    def __call__(self, record: Record) -> bool:
        """Whether it has, or lacks, pictures as wanted."""
        return bool(record.images) == self._wanted


class Matches:
    """Takes records whose field matches a regular expression anywhere.

    Args:
        field: Of the record; absent and null ones match nothing.
        regex: As Python's `re` has them.

    Raises:
        ConfigError: If it is no regular expression.
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
                remedy="Mend it; a plain character such as ( is written \\(.",
            ) from None

    def __call__(self, record: Record) -> bool:
        """Whether the field matches."""
        value = record.values.get(self._field)
        return value is not None and self._regex.search(str(value)) is not None
