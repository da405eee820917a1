"""A file that lists each row that was left out, once over all ranks and workers."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock

from mathcanvas_lightning.data.index.index import NO_SAMPLE, LeftOutRow
from mathcanvas_lightning.errors import DataError

TOO_LONG = "too_long"
INTACT_STAGES = frozenset({NO_SAMPLE, TOO_LONG})
"""Stages of rows that are left out but not damaged; they don't count as bad rows."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that is left out, and the name of its data set."""

    dataset: str
    row: LeftOutRow


class Quarantine:
    """Writes the rows that are left out to a file, and raises if too many are damaged.

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
        self._digests = digests

    def add(self, rows: Sequence[BadRow]) -> None:
        """Adds rows to the file, unless they are already listed.

        Raises:
            DataError: If more rows are damaged than allowed; it names the first of `rows`.
        """
        if not rows:
            return
        damaged = [bad for bad in rows if bad.row.stage not in INTACT_STAGES]
        if damaged and self._max_bad_fraction == 0:
            raise self._too_many(damaged[0], len(damaged))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self._path.with_name(f".{self._path.name}.lock")):
            known = self._read()
            with self._path.open("a", encoding="utf-8") as file:
                for line in map(self._line, rows):
                    if _key(line) not in known:
                        known[_key(line)] = line
                        file.write(json.dumps(line, ensure_ascii=False) + "\n")
        num_damaged = sum(line["stage"] not in INTACT_STAGES for line in known.values())
        if damaged and num_damaged > self._max_bad_fraction * self._num_rows:
            raise self._too_many(damaged[0], num_damaged)

    def _line(self, bad: BadRow) -> dict[str, object]:
        digest = self._digests[bad.dataset][:16]
        return {"dataset": bad.dataset, "index": digest, **asdict(bad.row)}

    def _read(self) -> dict[tuple[object, ...], dict[str, object]]:
        """Lines about these data sets; drops an incomplete last line, left by a killed run."""
        if not self._path.exists():
            return {}
        text = self._path.read_text(encoding="utf-8")
        if text and not text.endswith("\n"):
            text = text[: text.rfind("\n") + 1]
            self._path.write_text(text, encoding="utf-8")
        lines = [json.loads(line) for line in text.splitlines()]
        ours = {(name, digest[:16]) for name, digest in self._digests.items()}
        return {_key(line): line for line in lines if (line["dataset"], line["index"]) in ours}

    def _too_many(self, bad: BadRow, num_damaged: int) -> DataError:
        row = bad.row
        return DataError(
            row.place,
            found=f"{row.stage}: {row.error} ({num_damaged} bad of {self._num_rows} rows)",
            wanted=f"at most {self._max_bad_fraction:g} of the rows bad",
            remedy="Fix the shard, or raise max_bad_fraction to leave such rows out; they are then "
            f"listed in {self._path}.",
        )


def _key(line: Mapping[str, object]) -> tuple[object, ...]:
    return line["dataset"], line["index"], line["path"], line["row_group"], line["row"]
