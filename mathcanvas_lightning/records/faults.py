"""Collects faults in records and reports them in one error."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.errors import InputError

MAX_LINES = 20
"""Maximum number of faults that are listed; the others are only counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordFault:
    """One fault in a record or an input file."""

    place: str
    """Location: file and record."""
    message: str
    """Description of the fault."""


class FaultList:
    """Collects faults by kind; counts all of them, but keeps only the first ones of each kind."""

    def __init__(self) -> None:
        self._first: dict[str, list[RecordFault]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, kind: str, place: str, message: str) -> None:
        """Adds a fault.

        Args:
            kind: Kind of the fault, in a few words.
            place: Location: file and record.
            message: Description of the fault.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        first = self._first.setdefault(kind, [])
        if len(first) < MAX_LINES:
            first.append(RecordFault(place=place, message=message))

    @contextlib.contextmanager
    def collect_errors(self, kind: str) -> Iterator[None]:
        """Collects an InputError raised in the block.

        Args:
            kind: Kind of the fault.
        """
        try:
            yield
        except InputError as error:
            self.add(kind, error.place, f"{error.found}; wanted {error.wanted}")

    def drop(self, kind: str) -> None:
        """Removes all faults of a kind."""
        self._counts.pop(kind, None)
        self._first.pop(kind, None)

    def raise_if_any(self) -> None:
        """Reports the collected faults.

        Raises:
            InputError: If there is any fault; its text lists them.
        """
        if self:
            raise InputError(
                "the records",
                found=f"{len(self)} fault{'s' * (len(self) > 1)}, listed below",
                wanted="records without faults",
                remedy="Correct them, exclude them with a filter, or set on_fault: skip to leave "
                f"records with faults out.{self.text}",
            )

    @property
    def text(self) -> str:
        """One paragraph per kind, with the first faults."""
        """One paragraph per kind. MAX_LINES is shared by all kinds; rare kinds get lines first."""
        left, shown = MAX_LINES, {}
        kinds = sorted(self._counts, key=self._counts.__getitem__)
        for number, kind in enumerate(kinds):
            shown[kind] = self._first[kind][: max(1, left // (len(kinds) - number))]
            left -= len(shown[kind])
        text = ""
        for kind, count in self._counts.items():
            text += f"\n{kind} ({count}):"
            text += "".join(f"\n  - {one.place}: {one.message}" for one in shown[kind])
            if count > len(shown[kind]):
                text += f"\n  ... and {count - len(shown[kind])} more"
        return text
