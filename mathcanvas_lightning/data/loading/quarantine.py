"""A file that lists each row that was left out, once over all ranks and workers."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import write_errors
from mathcanvas_lightning.common.locks import locked
from mathcanvas_lightning.data.rows.left_out import INTACT_STAGES, LeftOutRow
from mathcanvas_lightning.errors import DataError

Key = tuple[object, ...]
LINE_START = b'{"dataset": '
"""First bytes of each line."""
KEY_FIELDS = ("dataset", "index", "path", "row_group", "row")


class Quarantine:
    """Writes the rows that are left out to a file, and raises if too many are damaged.

    What the file lists is kept in memory; of a file that has grown, only the new part is read.

    Args:
        path: A file of JSON lines; ranks on several machines should share it.
        max_bad_fraction: Maximum share of damaged rows; with 0 the first one is an error.
        num_rows: Number of indexed rows.
        digests: Data set -> digest of its index. Lines with other digests are from other runs
            and are ignored.
    """

    def __init__(
        self, path: Path, max_bad_fraction: float, num_rows: int, digests: Mapping[str, str]
    ) -> None:
        self._path = path
        self._max_bad_fraction = max_bad_fraction
        self._num_rows = num_rows
        self._digests = {name: digest[:16] for name, digest in digests.items()}
        self._listed: dict[Key, bool] = {}  # whether the row is damaged
        self._num_damaged = 0
        self._read_bytes = 0
        self._file: tuple[int, int] | None = None  # device and inode of what was read

    def add(self, rows: Sequence[LeftOutRow]) -> None:
        """Adds rows to the file, unless they are already listed.

        Raises:
            DataError: If more rows are damaged than allowed; it names the first of `rows`.
        """
        if not rows:
            return
        damaged = [row for row in rows if row.is_damaged]
        if damaged and self._max_bad_fraction == 0:
            raise self._too_many(damaged[0], len(damaged))
        lines = [self._line(row) for row in rows]
        if not self._is_intact() or any(_key(line) not in self._listed for line in lines):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._path.with_name(f".{self._path.name}.lock")):
                self._append(lines)
        if damaged and self._num_damaged > self._max_bad_fraction * self._num_rows:
            raise self._too_many(damaged[0], self._num_damaged)

    def _line(self, row: LeftOutRow) -> dict[str, object]:
        found = asdict(row)
        return {"dataset": found.pop("dataset"), "index": self._digests[row.dataset], **found}

    def _is_intact(self) -> bool:
        """Whether the file still holds what was read of it."""
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return False
        same_file = (status.st_dev, status.st_ino) == self._file
        return same_file and status.st_size >= self._read_bytes

    def _append(self, lines: Sequence[Mapping[str, object]]) -> None:
        with write_errors(self._path), self._path.open("a+b") as file:
            self._read_new(file)
            new = {_key(line): line for line in lines if _key(line) not in self._listed}
            # An unpaired surrogate, as in names that are not Unicode, becomes its JSON escape.
            text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in new.values())
            data = text.encode(errors="backslashreplace")
            file.write(data)
            self._read_bytes += len(data)
        self._remember(new.values())

    def _read_new(self, file: Any) -> None:
        """Reads what other processes have added; drops the end that a killed run left."""
        if not self._is_intact():
            status = self._path.stat()
            self._file = status.st_dev, status.st_ino
            self._read_bytes = self._num_damaged = 0
            self._listed.clear()
        file.seek(self._read_bytes)
        data: bytes = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        end = data[len(whole) :]
        self._read_bytes += len(whole)
        if LINE_START.startswith(end[: len(LINE_START)]):
            file.truncate(self._read_bytes)
        else:  # a file of another program, whose last line has no line feed
            self._read_bytes += len(end) + file.write(b"\n")
        # JSON never holds a raw line feed; `splitlines` would also split at U+2028 in an id.
        self._remember(filter(None, map(parse_line, whole.split(b"\n"))))

    def _remember(self, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            is_ours = self._digests.get(line["dataset"]) == line["index"]
            if is_ours and _key(line) not in self._listed:
                is_damaged = line["stage"] not in INTACT_STAGES
                self._listed[_key(line)] = is_damaged
                self._num_damaged += is_damaged

    def _too_many(self, row: LeftOutRow, num_damaged: int) -> DataError:
        return DataError(
            row.place,
            found=f"{row.stage}: {row.error} ({num_damaged} bad of {self._num_rows} rows)",
            wanted=f"at most {self._max_bad_fraction:g} of the rows bad",
            remedy="Fix the shard, or raise max_bad_fraction to leave such rows out; they are then "
            f"listed in {self._path}.",
        )


def parse_line(line: bytes) -> dict[str, Any] | None:
    """A line of this class; None for anything else in the file."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    names = (*KEY_FIELDS, "stage")
    is_ours = isinstance(found, dict) and all(isinstance(found.get(n), str | int) for n in names)
    return found if is_ours else None


def _key(line: Mapping[str, object]) -> Key:
    return tuple(line[name] for name in KEY_FIELDS)
