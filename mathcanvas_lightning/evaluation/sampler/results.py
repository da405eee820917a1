"""Writes sampled answers like `mathcanvas predict`, and scores them like `mathcanvas score`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mathcanvas_lightning.blockmoving.checking import CHECKS
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.evaluation.puzzles import ANSWER
from mathcanvas_lightning.evaluation.report.page import write_report
from mathcanvas_lightning.evaluation.sampler.held_out import OPTIONS_FIELD, HeldOut
from mathcanvas_lightning.evaluation.scoring import score_responses
from mathcanvas_lightning.generation.requests import GenerationRequest, GenerationResponse
from mathcanvas_lightning.generation.run.answer_folders import folder_name, write_folder
from mathcanvas_lightning.generation.run.outputs import response_fields
from mathcanvas_lightning.records.files import write_records
from mathcanvas_lightning.records.record import RecordInput


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledAnswer:
    """A held-out record with the response to it."""

    held_out: HeldOut
    response: GenerationResponse


@dataclass(frozen=True, kw_only=True)  # no slots: jsonargparse reads defaults by vars()
class Reference:
    """What answers are compared with."""

    answer_field: str | None = "answer"
    """Field with the reference answer; None scores nothing."""
    puzzles: str | None = None
    """Folder of generate-blockmoving, to check the steps of answers to its puzzles."""


def write_answers(answers: Sequence[SampledAnswer], source: RecordInput, target: Path) -> Path:
    """Writes the records with their answers, and a folder with the steps of each answer.

    Args:
        answers: The answers.
        source: The file of the records.
        target: Path of the file to write, without its suffix; also that of the folders.

    Returns:
        Path of the file, in the format of the source.
    """
    path = target.with_name(target.name + replace(source, output=None).output_path.suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    for answer in answers:
        request = answer.held_out.prepared
        for number, output in enumerate(answer.response.outputs, start=1):
            assert isinstance(request, GenerationRequest)
            index = answer.held_out.index
            steps = output.steps or (output.text,)
            write_folder(target / folder_name(index, number), index, steps, request)
    like = source.path if source.reader is None else None
    write_records(path, [_merged(answer, source) for answer in answers], like=like)
    return path


def score_answers(path: Path, source: RecordInput, reference: Reference) -> dict[str, float]:
    """Scores a file of `write_answers`; writes the verdicts beside it.

    Args:
        path: The file.
        source: The file of the records, with the names of the fields.
        reference: What answers are compared with.

    Returns:
        Name -> value: the accuracy, the share of records with an answer, and for puzzles the share
        of each check; empty without reference answers.

    Raises:
        MathCanvasError: If the file can't be scored.
    """
    if reference.answer_field is None:
        return {}
    report = score_responses(
        str(path),
        answer_field=reference.answer_field,
        response_field=source.response_field,
        options_field=OPTIONS_FIELD,
        question_field=source.query_field,
        puzzles=reference.puzzles,
        folders=str(path.with_suffix("")),
        num_workers=1,
        progress=False,
    )
    scores = report.overall
    without = scores.num_unanswered + scores.num_failed
    metrics = {
        "accuracy": scores.accuracy or 0.0,
        "answered": 1 - without / max(1, scores.num_responses),
    }
    checks = {name: score.share for name, score in report.puzzles.items() if name != ANSWER}
    return metrics | checks


def show_answers(path: Path, source: RecordInput, reference: Reference) -> Path:
    """Writes the page of a file of `write_answers`, with the verdicts if there are any.

    Args:
        path: The file.
        source: The file of the records, with the names of the fields.
        reference: What answers are compared with.

    Returns:
        Path of the page, beside the file.

    Raises:
        MathCanvasError: If the page can't be written.
    """
    page = write_report(
        str(path),
        index_field=source.index_field,
        query_field=source.query_field,
        image_field=source.image_field,
        response_field=source.response_field,
        answer_field=reference.answer_field or "answer",
        image_base_path=source.image_base,
        allow_any_path=source.allow_any_path,
    )
    return page.path


def metric_names(reference: Reference) -> tuple[str, ...]:
    """Names of the metrics of `score_answers`."""
    if reference.answer_field is None:
        return ()
    checks = () if reference.puzzles is None else CHECKS
    return ("accuracy", "answered", *checks)


def log_folder(trainer: Any, label: str) -> Path:
    """Folder of the sampled answers; all ranks must call it."""
    return local_path(trainer.log_dir or trainer.default_root_dir) / "answers" / label


def _merged(answer: SampledAnswer, source: RecordInput) -> Mapping[str, Any]:
    values = dict(answer.held_out.record.values)
    values.pop(source.error_field, None)
    failure = answer.response.failure
    line = {
        "error": None if failure is None else asdict(failure),
        "texts": [output.text for output in answer.response.outputs],
    }
    return values | response_fields(line, source)
