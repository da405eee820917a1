"""Many faults told in one error: the first of each kind, and how many there are."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.errors import InputError

MAX_LINES = 20
"""Faults shown in full; of the others only the number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault."""

    place: str
    """Where it is."""
    message: str
    """What was found there."""


class FaultList:
    """Collects faults by kind; keeps few of them, however many there are."""

    def __init__(self) -> None:
        self._first: dict[str, list[Fault]] = {}
        self._counts: dict[str, int] = {}

    def __len__(self) -> int:
        return sum(self._counts.values())

    def add(self, kind: str, place: str, message: str) -> None:
        """Takes a fault.

        Args:
            kind: What kind of fault it is, in a few words.
            place: Where it is.
            message: What was found there.
        """
        self._counts[kind] = self._counts.get(kind, 0) + 1
        first = self._first.setdefault(kind, [])
        if len(first) < MAX_LINES:
            first.append(Fault(place=place, message=message))

    @contextlib.contextmanager
    def taking_errors(self, kind: str) -> Iterator[None]:
        """Makes an InputError that ends the block a fault among the others.

        Args:
            kind: Of such a fault.
        """
        try:
            yield
        except InputError as error:
            self.add(kind, error.place, f"{error.found}; wanted {error.wanted}")

    def drop(self, kind: str) -> None:
        """Forgets all faults of a kind."""
        self._counts.pop(kind, None)
        self._first.pop(kind, None)

    def raise_if_any(self) -> None:
        """Ends the search.

        Raises:
            InputError: If there is any fault; its text lists them.
        """
        if self:
            raise InputError(
                "the records",
                found=f"{len(self)} fault{'s' * (len(self) > 1)}, listed below",
                wanted="records that can all be asked",
                remedy=f"Mend them, or leave them out by a filter.{self._listed()}",
            )

    def _listed(self) -> str:
        """A paragraph a kind; the lines are shared among the kinds, smaller kinds first."""
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
