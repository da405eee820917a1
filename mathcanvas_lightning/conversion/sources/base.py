"""The base class of source formats, and what their `parse` methods use."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, product
from string import ascii_uppercase
from typing import Any, ClassVar

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.data.rows.schema import Scalar


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a sample."""

    path: str
    """Path relative to the image folder, or the name of an image whose bytes are known."""
    data: bytes | None = field(default=None, repr=False)
    """The encoded image, where the record holds it; None for a file, which is not yet read."""


Part = str | Picture
MAX_OPTION_NAME = 3
"""Options with names up to this length are sorted by length first, as numbers and letters are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A parsed record whose images are not read yet.

    Texts need no cleaning: the converter strips them and drops empty ones.
    """

    uid: str
    """Unique id of the sample."""
    question: Sequence[Part]
    """Texts and images of the question, in reading order."""
    solution: Sequence[Part]
    """Texts and images of the solution, in reading order."""
    answer: str
    """The final answer."""


class SourceFormat(ABC):
    """Base class of source formats. Instances are pickled for worker processes: keep them small."""

    name: ClassVar[str]
    """Name of the format; also the default prefix of the shards' file names."""
    id_field: ClassVar[str] = "id"
    """Field that holds the id written to `rejects.jsonl`."""
    fields: ClassVar[frozenset[str]]
    """Fields that `parse` uses; every other scalar field becomes an extra column."""
    recognised_by: ClassVar[frozenset[str]]
    """Fields by which `--source auto` recognises the format: an object must have all of them."""

    @abstractmethod
    def parse(self, record: Mapping[str, Any], files: SourceFiles) -> Draft:
        """Parses a record into texts and images in reading order.

        Args:
            record: A JSON object of the input.
            files: Reads other files of the image folder, if the format has any.

        Returns:
            The sample's texts and images.

        Raises:
            RejectError: If the record must not become a row.
        """

    def uid(self, record: Mapping[str, Any]) -> str | None:
        """Returns the record's id for `rejects.jsonl`, or None if it has no id."""
        value = record.get(self.id_field)
        return str(value) if isinstance(value, str | int) else None

    def extras(self, record: Mapping[str, Any]) -> dict[str, Scalar]:
        """Returns the scalar fields that `parse` does not use; they become columns."""
        return {
            name: value
            for name, value in record.items()
            if name not in self.fields and (value is None or isinstance(value, str | int | float))
        }


def text_field(record: Mapping[str, Any], name: str) -> str:
    """Returns a field as stripped text; numbers are converted to text.

    Raises:
        RejectError: If the field is absent, null, NaN, empty, or neither text nor a number.
    """
    value = record.get(name)
    if value is None or is_nan(value) or (isinstance(value, str) and not value.strip()):
        found = "is NaN" if is_nan(value) else "is empty" if name in record else "is absent"
        raise RejectError(Reason.MISSING_FIELD, f"field {name!r} {found}")
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or (isinstance(value, float) and math.isinf(value))
    ):
        raise RejectError(Reason.INVALID_FIELD, f"field {name!r} is {value!r:.80}, not text")
    return str(value).strip()


def is_nan(value: Any) -> bool:
    """Whether a value is the number NaN, which pandas writes for a missing value."""
    return isinstance(value, float) and math.isnan(value)


def options_text(options: Mapping[str, Any] | Sequence[Any]) -> str:
    """Formats answer options as lettered lines below the line `Options:`; "" without options.

    Args:
        options: A list, whose items are named A to Z, AA, AB, ...; or names with their options,
            which are sorted: 2 before 10, Z before AA. Names without an option are left out:
            a Parquet file has the same names in all rows.

    Raises:
        RejectError: If an option is not a text, a number or a list of these.
    """
    if isinstance(options, Mapping):
        are_short = all(len(name) <= MAX_OPTION_NAME for name in options)
        names = sorted(options, key=lambda name: (len(name) if are_short else 0, name))
        pairs = [
            (n, options[n]) for n in names if options[n] is not None and not is_nan(options[n])
        ]
    else:
        pairs = list(zip(_letters(), options, strict=False))
    lines = [f"{name}: {_option(name, option)}" for name, option in pairs]
    return "\n".join(["Options:", *lines]) if lines else ""


def _option(name: str, option: Any) -> str:
    parts = option if isinstance(option, list) else [option]
    if any(not isinstance(part, str | int | float) or is_nan(part) for part in parts):
        raise RejectError(Reason.INVALID_FIELD, f"option {name} is {option!r:.80}, not text")
    return ", ".join(map(str, parts))


def _letters() -> Iterator[str]:
    for length in count(1):
        yield from map("".join, product(ascii_uppercase, repeat=length))
