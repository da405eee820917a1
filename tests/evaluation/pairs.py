"""The golden table of answers and references: `pairs.tsv`, grouped by kind.

Verdicts: `==` equal and `!=` different, in both directions; `=>` right and `=/>` wrong, as written.
A ⏎ stands for a new line; options are separated by " ; ". The kinds "responses" and "parts" hold
whole responses, from which the answers are extracted first.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PATH = Path(__file__).with_name("pairs.tsv")
WHOLE_RESPONSES = ("responses", "parts")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenPair:
    """An answer or response, a reference, and whether they agree."""

    kind: str
    is_right: bool
    given: str
    expected: str
    options: tuple[str, ...]


def read_pairs(path: Path = PATH) -> list[GoldenPair]:
    """Reads the table; pairs that hold in both directions are listed twice."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [pair for row in rows for pair in _pairs(row)]


def _pairs(row: dict[str, str]) -> Iterator[GoldenPair]:
    given, expected = (row[name].replace("⏎", "\n") for name in ("given", "expected"))
    sides = [(given, expected)]
    if row["verdict"] in ("==", "!="):
        sides.append((expected, given))
    for one, other in sides:
        yield GoldenPair(
            kind=row["kind"],
            is_right=row["verdict"] in ("==", "=>"),
            given=one,
            expected=other,
            options=tuple(one for one in row["options"].split(" ; ") if one),
        )
