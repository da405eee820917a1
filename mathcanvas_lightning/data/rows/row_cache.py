"""Rows in memory that packs will need soon; the others of their row groups are not kept."""

from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable
from dataclasses import dataclass

from mathcanvas_lightning.data.rows.source import Rows


@dataclass(slots=True)
class _Entry:
    rows: Rows
    unused: set[int]
    """Rows that were not requested yet."""


class RowCache:
    """Wanted rows of the row groups that were read, up to a number of bytes.

    A row is dropped with its group: when all of them were used, or the oldest group for lack of
    room.

    Args:
        max_bytes: Maximum memory of the rows.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._entries: OrderedDict[Hashable, _Entry] = OrderedDict()

    def read(
        self,
        key: Hashable,
        row: int,
        wanted: Collection[int],
        read: Callable[[Collection[int]], Rows],
    ) -> Rows:
        """Reads a row group, unless the row is in memory.

        Args:
            key: Data set, file and row group.
            row: Row number within the group.
            wanted: Rows of the group that will be needed soon, this one included.
            read: Reads rows of the group.

        Returns:
            Rows, among them the wanted one.
        """
        entry = self._entries.get(key)
        if entry is None or row not in entry.unused:
            self._drop(key)
            entry = _Entry(read({*wanted, row}), {*wanted, row})
            self._entries[key] = entry
            self._num_bytes += entry.rows.num_bytes
        self._entries.move_to_end(key)
        entry.unused.discard(row)
        if not entry.unused:
            self._drop(key)
        while self._num_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))
        return entry.rows

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._num_bytes -= entry.rows.num_bytes
