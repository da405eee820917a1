"""Selects the records of a report by their verdicts, and makes their sheets."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mathcanvas_lightning.errors import InputError, check_settings
from mathcanvas_lightning.evaluation.answered import (
    Answered,
    Fields,
    answered_of,
    has_listed_responses,
    listed_fields,
    require_object,
)
from mathcanvas_lightning.evaluation.report.sheets import Sheet, SheetSource
from mathcanvas_lightning.evaluation.score_files import ScoredLine, iter_scored
from mathcanvas_lightning.evaluation.verdicts import ScoredResponse
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.record import INTERLEAVED_COLUMNS

log = logging.getLogger(__name__)

Only = Literal["all", "wrong", "right", "failed"]
VERDICTS_OF: dict[Only, set[str]] = {
    "wrong": {"wrong", "unanswered"},
    "right": {"right"},
    "failed": {"failed"},
}
"""Verdicts that each choice selects; accuracies also count unanswered as wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records to show."""

    only: Only = "all"
    """Kind of verdict that one of the responses must have."""
    max_records: int = 100
    """The first so many are shown."""

    def __post_init__(self) -> None:
        limit = self.max_records
        check_settings(("--max_records", limit, limit >= 1, "1 or more"), remedy="Raise it.")

    def includes(self, answered: Answered, scored: Sequence[ScoredResponse]) -> bool:
        """Whether to show a record.

        Args:
            answered: The record.
            scored: The verdicts on its responses; empty for a record without scores.

        Returns:
            Whether a response has a selected verdict.
        """
        if self.only == "all":
            return True
        verdicts = {response.verdict for response in scored}
        if not scored and None in answered.responses:
            verdicts = {"failed"}
        return bool(verdicts & VERDICTS_OF[self.only])


def select_sheets(
    source: SheetSource, score_path: Path | None, selection: Selection
) -> tuple[list[Sheet], bool]:
    """Makes the sheets of the selected records.

    Args:
        source: Gives the records and makes sheets.
        score_path: File that `score_responses` wrote, if there is one.
        selection: Which records to show.

    Returns:
        The sheets, and whether there are more records than `max_records`.

    Raises:
        InputError: If a file is malformed, no record has the fields, or the scores are those of
            another file.
    """
    found: dict[str, None] = {}
    scored = iter(()) if score_path is None else iter_scored(score_path)
    selected = (
        (record, answered, responses)
        for record, answered, responses in _joined(_records(source, found), scored)
        if selection.includes(answered, responses)
    )
    sheets = [source.sheet(*one) for one in islice(selected, selection.max_records)]
    has_more = next(selected, None) is not None
    _require_fields(source, found)
    return sheets, has_more


def _records(
    source: SheetSource, found: dict[str, None]
) -> Iterator[tuple[Mapping[str, Any], Answered]]:
    """Yields all records, and adds the names of their fields to `found`."""
    names = source.records
    fields = Fields(
        answer=source.answer_field,
        response=names.response_field,
        options="options",
        question=names.query_field,
        by=(),
        has_listed_responses=has_listed_responses(names.path, names.response_field),
    )
    for index, record in enumerate(read_records(names.path)):
        checked = require_object(record, f"{names.path}, record {index}")
        found.update(dict.fromkeys(map(str, checked)))
        yield checked, answered_of(index, checked, fields)


def _joined(
    records: Iterable[tuple[Mapping[str, Any], Answered]], scored: Iterator[ScoredLine]
) -> Iterator[tuple[Mapping[str, Any], Answered, Sequence[ScoredResponse]]]:
    """Yields records with the verdicts on their responses; both inputs are in file order."""
    line = next(scored, None)
    for record, answered in records:
        if line is None or line.index != answered.index:
            yield record, answered, ()
            continue
        if line.uid != answered.uid or len(line.responses) != len(answered.responses):
            raise InputError(
                f"scores of record {line.index}",
                found=f"{len(line.responses)} responses of {line.uid}",
                wanted=f"{len(answered.responses)} of {answered.uid}",
                remedy="These are the scores of other answers: score again.",
            )
        yield record, answered, line.responses
        line = next(scored, None)


def _require_fields(source: SheetSource, found: Mapping[str, None]) -> None:
    names = source.records
    needed = [names.response_field]
    if not found.keys() >= INTERLEAVED_COLUMNS:
        needed.append(names.query_field)
    missing = [name for name in needed if name not in found]
    if missing:
        raise InputError(
            names.path,
            found=f"no record with {' or '.join(missing)}; there are: {listed_fields(found)}",
            wanted="records with a question and a response each",
            remedy="Name the fields with --query_field and --response_field.",
        )
    if source.answer_field not in found:
        log.warning("%s: no field %s, so no references", names.path, source.answer_field)
