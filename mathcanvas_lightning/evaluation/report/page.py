"""Answered records as one HTML page: questions, steps, drawings, references and verdicts."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from mathcanvas_lightning.common.html_page import write_page
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.evaluation.answered import Answered, Fields, answered_of
from mathcanvas_lightning.evaluation.report.html import STYLE, render
from mathcanvas_lightning.evaluation.report.sheets import Fault, Sheet, SheetSource, Thumbnail
from mathcanvas_lightning.evaluation.score_files import ScoredLine, iter_scored, read_summary
from mathcanvas_lightning.evaluation.verdicts import ScoredResponse
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.record import INTERLEAVED_COLUMNS, RecordInput

log = logging.getLogger(__name__)

Only = Literal["all", "wrong", "right", "failed"]
WANTED: dict[Only, set[str]] = {
    "wrong": {"wrong", "unanswered"},
    "right": {"right"},
    "failed": {"failed"},
}
"""Which verdicts are meant; a response without an answer counts as wrong in accuracies too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """A page that was written."""

    path: Path
    num_records: int
    """Shown on it."""
    num_pictures: int
    num_faults: int
    """Pictures, folders and questions that can't be shown; the page says so in their places."""
    has_more: bool
    """Whether there are more records than it was to show."""


def write_report(
    input: str,  # noqa: A002
    output: str | None = None,
    *,
    folders: str | None = None,
    scores: str | None = None,
    index_field: str = "sample_index",
    query_field: str = "query_cot",
    image_field: str = "image",
    response_field: str = "model_answer",
    answer_field: str = "answer",
    image_base_path: str | None = None,
    max_records: int = 100,
    only: Only = "all",
) -> ReportPage:
    """Shows answered records on one HTML page: questions, steps, drawings, verdicts.

    The page needs nothing but itself: pictures are in it, scaled down. What can't be shown, such as
    a broken picture, is told in its place.

    Args:
        input: JSON, JSON lines, CSV or Parquet file of answered records, interleaved ones too.
        output: The page; by default <input>.html beside the input.
        folders: Has the folders that `ReasoningFolders` writes: steps and drawings of answers; by
            default <input> without suffix, if it is there.
        scores: What `mathcanvas score` wrote; by default <input>_scores.json, if it is there.
            Without it there are no verdicts.
        index_field: Names the record, and its folder.
        query_field: Has the question.
        image_field: Has the question's picture, or a list of them.
        response_field: Has the response, or a list of them.
        answer_field: Has the reference answer.
        image_base_path: Folder or URL that picture paths start from; by default the input's folder.
        max_records: Show no more than so many.
        only: Show only records with a response of this kind: right; wrong, or without an answer;
            failed, that is without a response.

    Returns:
        What was written.

    Raises:
        InputError: If a file can't be read, lacks a field, or has the scores of others.
        ConfigError: If an option can't be used.
    """
    if max_records < 1:
        raise ConfigError(
            "--max_records", found=str(max_records), wanted="1 or more", remedy="Raise it."
        )
    path = Path(input)
    read_records(path)  # raises where there is no such file
    score_path = _scores_path(path, scores, only)
    target = _target(path, output, score_path)
    source = SheetSource(
        records=RecordInput(
            path=input,
            image_base_path=image_base_path,
            index_field=index_field,
            query_field=query_field,
            image_field=image_field,
            response_field=response_field,
        ),
        answer_field=answer_field,
        folders=_folders_path(path, folders),
    )
    summary = None if score_path is None else read_summary(score_path)
    sheets, has_more = _sheets(source, score_path, only, max_records)
    remarks = _remarks(path, score_path, len(sheets), has_more, only)
    write_page(
        target, render(sheets, summary, remarks), title=f"Answers of {path.name}", style=STYLE
    )
    pieces = [piece for sheet in sheets for piece in sheet.pieces]
    return ReportPage(
        path=target,
        num_records=len(sheets),
        num_pictures=sum(isinstance(piece, Thumbnail) for piece in pieces),
        num_faults=sum(isinstance(piece, Fault) for piece in pieces),
        has_more=has_more,
    )


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(f"{path.name if path.is_dir() else path.stem}{ending}")


def _scores_path(path: Path, scores: str | None, only: Only) -> Path | None:
    if scores is not None:
        return Path(scores)
    default = _beside(path, "_scores.json")
    if default.exists():
        return default
    if only in ("right", "wrong"):
        raise ConfigError(
            f"--only {only}",
            found=f"no {default}",
            wanted="verdicts",
            remedy="Run mathcanvas score first, or name its file with --scores.",
        )
    return None


def _folders_path(path: Path, folders: str | None) -> Path | None:
    if folders is None:
        default = path.with_suffix("")
        return default if default.is_dir() and default != path else None
    if not Path(folders).is_dir():
        raise InputError(
            f"--folders {folders}",
            found="no such folder",
            wanted="a folder that ReasoningFolders wrote",
            remedy="Check the path, or leave it out.",
        )
    return Path(folders)


def _target(path: Path, output: str | None, score_path: Path | None) -> Path:
    target = _beside(path, ".html") if output is None else Path(output)
    if target.resolve() in {one.resolve() for one in (path, score_path) if one is not None}:
        raise ConfigError(
            "--output", found=str(target), wanted="no file that is read", remedy="Name another."
        )
    return target


def _remarks(
    path: Path, score_path: Path | None, num_shown: int, has_more: bool, only: Only
) -> list[str]:
    kind = "" if only == "all" else f" ({only})"
    remarks = [f"The first {num_shown:,} records{kind}; there are more."] if has_more else []
    if not num_shown:
        remarks.append(f"No record is to be shown{kind}.")
    if score_path is None:
        remarks.append("No verdicts: these answers aren't scored yet.")
    elif path.is_file() and score_path.stat().st_mtime < path.stat().st_mtime:
        text = "The scores are older than the answers; score again to be sure of them."
        log.warning("%s: %s", score_path, text)
        remarks.append(text)
    return remarks


def _sheets(
    source: SheetSource, score_path: Path | None, only: Only, limit: int
) -> tuple[list[Sheet], bool]:
    """The first sheets that are wanted, and whether there are more."""
    found: dict[str, None] = {}
    scored = iter(()) if score_path is None else iter_scored(score_path)
    chosen = (
        (record, answered, responses)
        for record, answered, responses in _joined(_records(source, found), scored)
        if only == "all" or _verdicts(answered, responses) & WANTED[only]
    )
    sheets = [source.sheet(*one) for one in islice(chosen, limit)]
    has_more = next(chosen, None) is not None
    _require_fields(source, found)
    return sheets, has_more


def _records(
    source: SheetSource, found: dict[str, None]
) -> Iterator[tuple[Mapping[str, Any], Answered]]:
    """All records; the names of their fields are added to `found`."""
    names = source.records
    fields = Fields(
        answer=source.answer_field,
        response=names.response_field,
        options="options",
        question=names.query_field,
        by=(),
    )
    for index, record in enumerate(read_records(names.path)):
        if not isinstance(record, Mapping):
            raise InputError(
                f"{names.path}, record {index}",
                found=f"{record!r:.60}",
                wanted="an object with fields",
                remedy="Give each record its question and answers in fields.",
            )
        found.update(dict.fromkeys(map(str, record)))
        yield record, answered_of(index, record, fields)


def _joined(
    records: Iterable[tuple[Mapping[str, Any], Answered]], scored: Iterator[ScoredLine]
) -> Iterator[tuple[Mapping[str, Any], Answered, Sequence[ScoredResponse]]]:
    """Records with what is found on their responses; both are in the order of the file."""
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


def _verdicts(answered: Answered, responses: Sequence[ScoredResponse]) -> set[str]:
    if responses:
        return {response.verdict for response in responses}
    return {"failed"} if None in answered.responses else set()


def _require_fields(source: SheetSource, found: Mapping[str, None]) -> None:
    names = source.records
    needed = [names.response_field]
    if not found.keys() >= INTERLEAVED_COLUMNS:
        needed.append(names.query_field)
    missing = [name for name in needed if name not in found]
    if missing:
        listed = ", ".join([*found][:40]) + (", ..." if len(found) > 40 else "")
        raise InputError(
            names.path,
            found=f"no record with {' or '.join(missing)}; there are: {listed or 'no records'}",
            wanted="records with a question and a response each",
            remedy="Name the fields with --query_field and --response_field.",
        )
    if source.answer_field not in found:
        log.warning("%s: no field %s, so no references", names.path, source.answer_field)
