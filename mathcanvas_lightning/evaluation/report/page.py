"""Answered records as one HTML page: questions, steps, drawings, references and verdicts."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from mathcanvas_lightning.common.html_page import Notice, PagePicture, write_page
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.report.files import ReportFiles, find_files
from mathcanvas_lightning.evaluation.report.selection import Only, Selection, select_sheets
from mathcanvas_lightning.evaluation.report.sheets import Sheet, SheetSource
from mathcanvas_lightning.evaluation.score_files import ScoreSummary, read_summary
from mathcanvas_lightning.evaluation.score_table import about_rows, check_rows, score_rows
from mathcanvas_lightning.evaluation.verdicts import Verdict
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout, read_about
from mathcanvas_lightning.records.record import RecordInput
from mathcanvas_lightning.training.run.curves import draw
from mathcanvas_lightning.training.run.folder import find_run
from mathcanvas_lightning.training.run.metrics import read_metrics
from mathcanvas_lightning.training.run.page import RunPage, curves_picture, write_run_page

log = logging.getLogger(__name__)

VERDICTS = (*get_args(Verdict), "unscored")
"""Filters of the page, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportPage:
    """A page that was written."""

    path: Path
    num_records: int
    """Records on the page."""
    num_pictures: int
    num_faults: int
    """Pictures, folders and questions that can't be shown and have a notice instead."""
    has_more: bool
    """Whether there are more records than `max_records`."""


def write_report(
    input: str | None = None,  # noqa: A002
    output: str | None = None,
    *,
    run: str | None = None,
    folders: str | None = None,
    scores: str | None = None,
    curves: str | None = None,
    index_field: str = "sample_index",
    query_field: str = "query_cot",
    image_field: str = "image",
    response_field: str = "model_answer",
    answer_field: str = "answer",
    solution_field: str = "solution",
    image_base_path: str | None = None,
    allow_any_path: bool = False,
    max_records: int = 100,
    only: Only = "all",
) -> ReportPage | RunPage:
    """Shows answered records on one HTML page: questions, steps, drawings, verdicts.

    Args:
        input: JSON, JSON lines, CSV or Parquet file of answered records, interleaved ones too.
        output: HTML file to write; by default beside the input, such as answers.html for
            answers.jsonl (answers.jsonl.html if there is an answers.json too).
        run: Training run for the curves; without an input, the page is that of the run alone.
        folders: Folder of `ReasoningFolders`; by default <input> without suffix, if it exists.
        scores: File of `mathcanvas score`; by default <input>_scores.json, if it exists.
        curves: Folder or metrics.csv of the training run whose losses and accuracies are drawn.
        index_field: Name of the field with the record's index, which also names its folder.
        query_field: Name of the field with the question.
        image_field: Name of the field with the question's picture, or a list of them.
        response_field: Name of the field with the response, or a list of them.
        answer_field: Name of the field with the reference answer.
        solution_field: Name of the field with the reference solution, shown beside the answers.
        image_base_path: Folder or URL that picture paths start from; by default the input's folder.
        allow_any_path: Read pictures outside image_base_path too, and URLs other than http(s).
        max_records: Maximum number of records to show.
        only: Show only these records: right, wrong (or without an answer), failed (no response).

    Returns:
        The page's path and counts.

    Raises:
        InputError: If a file is unreadable, lacks a field, or has the scores of other records.
        ConfigError: If an option can't be used.
    """
    if input is None:
        return _run_page(run)
    selection = Selection(only=only, max_records=max_records)
    files = find_files(local_path(input), output, folders, scores, selection)
    fields = (index_field, query_field, image_field, response_field)
    records = _records(input, image_base_path, allow_any_path, fields)
    source = SheetSource(
        records=records,
        answer_field=answer_field,
        solution_field=solution_field,
        folders=files.folders,
    )
    return _write(files, source, selection, _curves(curves, run))


def _records(
    path: str, base: str | None, allow_any_path: bool, fields: Sequence[str]
) -> RecordInput:
    names = ("index_field", "query_field", "image_field", "response_field")
    named: Any = dict(zip(names, fields, strict=True))
    return RecordInput(path=path, image_base_path=base, allow_any_path=allow_any_path, **named)


def _curves(curves: str | None, run: str | None) -> PagePicture | None:
    place = find_run(run).path if run is not None else curves and local_path(curves)
    if not place or not (metrics := read_metrics(place)):
        return None
    return curves_picture(draw({place.resolve().name: metrics}))


def _run_page(run: str | None) -> RunPage:
    if run is None:
        raise ConfigError(
            "--input",
            found="nothing to show",
            wanted="a file of answers, or --run with a training run",
            remedy="Set one of them.",
        )
    return write_run_page(find_run(run))


def _write(
    files: ReportFiles, source: SheetSource, selection: Selection, curves: PagePicture | None
) -> ReportPage:
    summary = None if files.scores is None else read_summary(files.scores)
    sheets, has_more = select_sheets(source, files.scores, selection)
    counts = Counter(verdict for sheet in sheets for verdict in sheet.verdicts)
    write_page(
        files.output,
        "evaluation/report/answers.html.j2",
        title=f"Answers of {files.input.name}",
        remarks=_remarks(files, selection, len(sheets), has_more),
        about=about_rows(_about(files, summary)),
        scores=None if summary is None else score_rows(summary.overall, summary.groups),
        checks={} if summary is None else check_rows(summary.puzzles),
        curves=curves,
        counts={verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]},
        sheets=sheets,
    )
    return _page(files.output, sheets, has_more)


def _about(files: ReportFiles, summary: ScoreSummary | None) -> AnswersAbout:
    """Origin of the answers: as their scores name it, or their journal."""
    known = AnswersAbout() if summary is None else summary.about
    return read_about(files.input) if known == AnswersAbout() else known


def _page(path: Path, sheets: Sequence[Sheet], has_more: bool) -> ReportPage:
    pieces = [piece for sheet in sheets for piece in sheet.pieces]
    return ReportPage(
        path=path,
        num_records=len(sheets),
        num_pictures=sum(isinstance(piece, PagePicture) for piece in pieces),
        num_faults=sum(isinstance(piece, Notice) for piece in pieces),
        has_more=has_more,
    )


def _remarks(files: ReportFiles, selection: Selection, num_shown: int, has_more: bool) -> list[str]:
    kind = "" if selection.only == "all" else f" ({selection.only})"
    remarks = [f"The first {num_shown:,} records{kind}; there are more."] if has_more else []
    if not num_shown:
        remarks.append(f"No records to show{kind}.")
    if files.scores is None:
        remarks.append("No verdicts: these answers aren't scored yet.")
    elif files.input.is_file() and files.scores.stat().st_mtime < files.input.stat().st_mtime:
        text = "The scores are older than the answers; score again to update them."
        log.warning("%s: %s", files.scores, text)
        remarks.append(text)
    return remarks
