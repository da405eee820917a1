"""The base class of source formats, and what their `parse` methods use."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, ClassVar

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.data.rows.schema import Scalar


@dataclass(frozen=True, slots=True)
class Picture:
    """An image of a sample, not yet read."""

    path: str
    """Path relative to the image folder."""


Part = str | Picture


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
    """Fields that `parse` uses; every other scalar field becomes a column of its own."""
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
        RejectError: If the field is absent, null, empty, or neither text nor a number.
    """
    value = record.get(name)
    if value is None or (isinstance(value, str) and not value.strip()):
        found = "is empty" if name in record else "is absent"
        raise RejectError(Reason.MISSING_FIELD, f"field {name!r} {found}")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RejectError(Reason.INVALID_FIELD, f"field {name!r} is {value!r:.80}, not text")
    return str(value).strip()


def options_text(options: Mapping[str, Any] | Sequence[Any]) -> str:
    """Formats answer options as lettered lines below the line `Options:`; "" without options."""
    if not isinstance(options, Mapping):
        options = dict(zip(ascii_uppercase, options, strict=False))
    lines = [f"{letter}: {options[letter]}" for letter in sorted(options)]
    return "\n".join(["Options:", *lines]) if lines else ""
