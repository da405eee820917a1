"""Scores a file of answered records: verdicts, and accuracies overall and by group."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from mathcanvas_lightning.common.atomic import written_whole
from mathcanvas_lightning.common.display.notebook import view
from mathcanvas_lightning.common.display.short import short_repr
from mathcanvas_lightning.common.parallel import count_workers
from mathcanvas_lightning.common.paths import local_path, natural_key
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.answered import Answered, Fields, read_answered
from mathcanvas_lightning.evaluation.card.card import write_card
from mathcanvas_lightning.evaluation.comparison.comparer import Comparer, Pair
from mathcanvas_lightning.evaluation.comparison.equivalence import Comparison
from mathcanvas_lightning.evaluation.extraction import answer_pattern as compile_pattern
from mathcanvas_lightning.evaluation.extraction import clean, extract_answers
from mathcanvas_lightning.evaluation.judge import Case, Judge, Ruling, load_judge
from mathcanvas_lightning.evaluation.puzzles import (
    ChainScore,
    CheckScore,
    PuzzleFiles,
    check_puzzles,
)
from mathcanvas_lightning.evaluation.score_files import scores_path
from mathcanvas_lightning.evaluation.score_table import score_rows
from mathcanvas_lightning.evaluation.verdicts import (
    PartVerdict,
    ScoredRecord,
    ScoredResponse,
    Scores,
    Verdict,
    summarize,
)
from mathcanvas_lightning.generation.run.journal.about import AnswersAbout, read_about
from mathcanvas_lightning.generation.run.provenance import command_of

log = logging.getLogger(__name__)

PAIRS_PER_PROCESS = 200
"""Comparisons for which starting another process is worthwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreReport:
    """Scores of a file of answered records."""

    path: str
    """File of records."""
    output: Path
    """JSON file with scores and verdicts."""
    overall: Scores
    groups: Mapping[str, Mapping[str, Scores]]
    """Field -> value -> scores of the records with that value."""
    num_without_reference: int
    """Number of records without a reference answer, which aren't scored."""
    failures: Sequence[str]
    """Reasons why the judge left answers undecided."""
    puzzles: Mapping[str, CheckScore] = field(default_factory=dict)
    """Check of the steps of BlockMoving answers -> score; empty unless they were checked."""
    chain: ChainScore | None = None
    """Where BlockMoving answers go wrong; None unless they were checked."""
    about: AnswersAbout = field(default_factory=AnswersAbout)
    """Model, data set, sampling and prompt of the answers, as far as they are known."""

    def __repr__(self) -> str:
        return short_repr(self, repr(self.path), repr(self.overall))

    def _repr_html_(self) -> str:
        return view(self.path, facts={"model": self.about.model or "unknown"}, table=self.rows)

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """The scores as a table of texts: row -> column -> text."""
        return score_rows(self.overall, self.groups)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonSettings:
    """Settings of the comparison by rules."""

    num_workers: int | None = None
    """Number of comparing processes; None for one per core."""
    time_limit_s: float = 5.0
    """Time limit of one comparison, in seconds."""
    progress: bool = True
    """Whether to show a progress bar."""
    pattern: re.Pattern[str] | None = None
    """Mark of the answer in a response; None for the usual ones."""


def score_responses(
    input: str,  # noqa: A002
    *,
    answer_field: str = "answer",
    response_field: str = "model_answer",
    options_field: str = "options",
    question_field: str = "query_cot",
    preset: str | None = None,
    by: Sequence[str] = (),
    output: str | None = None,
    answer_pattern: str | None = None,
    judge: str | None = None,
    puzzles: str | None = None,
    folders: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    num_workers: int | None = None,
    time_limit_s: float = 5.0,
    progress: bool = True,
) -> ScoreReport:
    """Scores the answers of a model against reference answers.

    Args:
        input: JSON, JSON lines, CSV or Parquet file of records.
        answer_field: Field with the reference: a text or number, or a list of one for each part.
        response_field: Field with the response, or a list of them; null without a response.
        options_field: Field with the texts of the choices, for multiple-choice questions.
        question_field: Field with the question, for the judge.
        preset: Public data set, such as mathvista, that names all fields but the responses.
        by: Fields to group by, such as subject and level; each value gets scores.
        output: JSON file for scores and verdicts; by default <input>_scores.json beside the input.
        answer_pattern: Mark of the answer in responses: boxed, answer_tag, hash (#### ..),
            answer_line (Answer: ..), or a regular expression with a group; by default all of them.
        judge: YAML of `evaluation.judge.Judge`, a model that decides on answers marked wrong.
        puzzles: Folder of generate-blockmoving: also check what BlockMoving answers state and draw.
        folders: Folder with the steps of the answers, for puzzles; by default <input>'s name.
        model: Name of the model, for comparisons; by default that of mathcanvas predict.
        dataset: Name of the data set; by default that of the records that predict answered.
        num_workers: Processes that compare; by default one per core.
        time_limit_s: Time limit of one comparison, in seconds; slower ones count as wrong.
        progress: Show a progress bar.

    Raises:
        MathCanvasError: If the file, a field, an option or the judge can't be used.
    """
    return _run(locals())


def _run(given: Mapping[str, Any]) -> ScoreReport:
    """Scores with the parameters of `score_responses`, and writes the card."""
    source, by, puzzles = given["input"], given["by"], given["puzzles"]
    settings = ComparisonSettings(
        num_workers=given["num_workers"],
        time_limit_s=given["time_limit_s"],
        progress=given["progress"],
        pattern=compile_pattern(given["answer_pattern"]),
    )
    names = ("answer", "response", "options", "question")
    groups = (by,) if isinstance(by, str) else tuple(by)
    fields = Fields(
        **{name: given[f"{name}_field"] for name in names}, by=groups, preset=given["preset"]
    )
    checks = None if puzzles is None else _puzzle_files(source, puzzles, given["folders"])
    about = _about(source, given["model"], given["dataset"])
    output = _output_path(source, given["output"])
    report = _score(source, output, fields, settings, given["judge"], checks, about)
    command = command_of("score", score_responses, given)
    write_card(report.output, report.overall, source, about, command)
    return report


def _about(source: str, model: str | None, dataset: str | None) -> AnswersAbout:
    known = read_about(local_path(source))
    return replace(known, model=model or known.model, dataset=dataset or known.dataset)


def _score(
    source: str,
    output: Path,
    fields: Fields,
    settings: ComparisonSettings,
    judge: str | None,
    checks: PuzzleFiles | None,
    about: AnswersAbout,
) -> ScoreReport:
    model = None if judge is None else load_judge(judge)
    found = read_answered(source, fields)
    scored = _compared(found.records, settings)
    failures: list[str] = []
    if model is not None:
        try:
            scored, failures = _judged(scored, model, settings.progress, output)
        finally:
            model.backend.close()
    steps = None if checks is None else check_puzzles(scored, checks, progress=settings.progress)
    report = ScoreReport(
        path=str(source),
        output=output,
        overall=summarize(scored),
        groups={name: _grouped(scored, name) for name in fields.by},
        num_without_reference=found.num_without_reference,
        failures=failures,
        puzzles={} if steps is None else steps.checks,
        chain=None if steps is None else steps.chain,
        about=about,
    )
    _write(report, scored if steps is None else steps.records)
    return report


def _puzzle_files(source: str, puzzles: str, folders: str | None) -> PuzzleFiles:
    beside = local_path(source).with_suffix("")
    return PuzzleFiles(
        tasks=local_path(puzzles), answers=beside if folders is None else local_path(folders)
    )


def _output_path(source: str, output: str | None) -> Path:
    path = local_path(source)
    target = scores_path(path) if output is None else local_path(output)
    if target.resolve() == path.resolve():
        raise ConfigError(
            "--output",
            found=f"{target}, which is the input",
            wanted="another file",
            remedy="Name another.",
        )
    return target


def _compared(records: Sequence[Answered], settings: ComparisonSettings) -> list[ScoredRecord]:
    """Scores records by the rules, without a judge."""
    answers = [
        _extracted(record, response, settings.pattern)
        for record in records
        for response in record.responses
    ]
    comparisons = iter(_compare([pair for parts in answers for pair in parts], settings))
    remaining = iter(answers)
    return [
        ScoredRecord(
            record=record,
            responses=tuple(
                ScoredResponse(parts=_part_verdicts(next(remaining), response, comparisons))
                for response in record.responses
            ),
        )
        for record in records
    ]


def _compare(pairs: Sequence[Pair], settings: ComparisonSettings) -> list[Comparison]:
    """Compares the pairs that contain an answer."""
    answered = [pair for pair in pairs if pair.given]
    num_processes = count_workers(settings.num_workers, len(answered), PAIRS_PER_PROCESS)
    comparisons: list[Comparison] = []
    with (
        Comparer(max(1, num_processes), settings.time_limit_s) as comparer,
        progress_bar("Comparing", len(answered), show=settings.progress) as advance,
    ):
        for comparison in comparer.compare_all(answered):
            comparisons.append(comparison)
            advance(1, "")
    if num_slow := sum(one.how == "time_limit" for one in comparisons):
        limit = settings.time_limit_s
        log.warning("%d comparisons took over %g s: counted as wrong", num_slow, limit)
    return comparisons


def _extracted(
    record: Answered, response: str | None, pattern: re.Pattern[str] | None
) -> list[Pair]:
    """Pairs the answer to each part with its reference; answers that are missing are empty."""
    expected = record.expected
    if response is None:
        given: Sequence[str] = [""] * len(expected)
    elif pattern is None and len(expected) == 1 and clean(response) == expected[0]:
        given = expected  # of any length
    else:
        given = extract_answers(response, len(expected), pattern)
    return [Pair(*both, record.options) for both in zip(given, expected, strict=True)]


def _part_verdicts(
    pairs: Sequence[Pair], response: str | None, comparisons: Iterator[Comparison]
) -> tuple[PartVerdict, ...]:
    nothing: Verdict = "failed" if response is None else "unanswered"
    parts = []
    for pair in pairs:
        found = next(comparisons) if pair.given else Comparison(False, "none")
        verdict: Verdict = "right" if found.is_right else "wrong" if pair.given else nothing
        parts.append(
            PartVerdict(
                extracted=pair.given, expected=pair.expected, verdict=verdict, how=found.how
            )
        )
    return tuple(parts)


def _judged(
    scored: Sequence[ScoredRecord], judge: Judge, progress: bool, output: Path
) -> tuple[list[ScoredRecord], list[str]]:
    """Lets the judge decide on open responses; returns the records and the judge's failures."""
    cases = [
        Case(question=one.record.question, response=text, expected=one.record.expected)
        for one in scored
        for text, response in zip(one.record.responses, one.responses, strict=True)
        if text is not None and _is_open(response)
    ]
    total = sum(1 + len(case.expected) for case in cases)
    with progress_bar("Judging", total, show=progress) as advance:
        folder = output.with_name(f"{output.name}.judge")
        rulings = judge.judge(cases, lambda count: advance(count, ""), folder)
    remaining = iter(rulings)
    judged = [
        replace(
            one,
            responses=tuple(
                _ruled(response, next(remaining)) if _is_open(response) else response
                for response in one.responses
            ),
        )
        for one in scored
    ]
    return judged, [failure for ruling in rulings for failure in ruling.failures]


def _is_open(response: ScoredResponse) -> bool:
    """Whether the judge should decide on a response."""
    return any(map(_is_open_part, response.parts))


def _is_open_part(part: PartVerdict) -> bool:
    is_known = Comparison(part.verdict == "right", part.how).is_certain
    return part.verdict != "failed" and not is_known


def _ruled(response: ScoredResponse, ruling: Ruling) -> ScoredResponse:
    return ScoredResponse(
        parts=tuple(
            _ruled_part(part, ruling, is_right) if _is_open_part(part) else part
            for part, is_right in zip(response.parts, ruling.parts, strict=True)
        )
    )


def _ruled_part(part: PartVerdict, ruling: Ruling, is_right: bool | None) -> PartVerdict:
    answered: Verdict = "right" if is_right else "wrong" if ruling.extracted else "unanswered"
    verdict: Verdict = "undecided" if is_right is None else answered
    return replace(part, extracted=ruling.extracted or part.extracted, verdict=verdict, how="judge")


def _grouped(scored: Sequence[ScoredRecord], field: str) -> dict[str, Scores]:
    members: dict[str, list[ScoredRecord]] = {}
    for one in scored:
        members.setdefault(one.record.groups[field], []).append(one)
    return {value: summarize(members[value]) for value in sorted(members, key=natural_key)}


def _write(report: ScoreReport, scored: Sequence[ScoredRecord]) -> None:
    summary = {
        "input": report.path,
        "about": asdict(report.about),
        "overall": asdict(report.overall),
        "groups": {
            field: {value: asdict(scores) for value, scores in values.items()}
            for field, values in report.groups.items()
        },
        "num_without_reference": report.num_without_reference,
        "puzzles": {name: asdict(score) for name, score in report.puzzles.items()},
        "chain": None if report.chain is None else asdict(report.chain),
        "judge_failures": list(islice(report.failures, 100)),
        "records": [_record(one) for one in scored],
    }
    with written_whole(report.output) as temporary:
        text = json.dumps(summary, ensure_ascii=False, indent=1)
        temporary.write_bytes(text.encode(errors="backslashreplace"))


def _record(scored: ScoredRecord) -> dict[str, Any]:
    named = {} if scored.record.uid is None else {"uid": scored.record.uid}
    return {
        "index": scored.record.index,
        **named,
        "responses": [_response(response) for response in scored.responses],
    }


def _response(response: ScoredResponse) -> dict[str, Any]:
    parts = [asdict(part) for part in response.parts]
    chain = {} if response.chain is None else {"chain": asdict(response.chain)}
    return {"verdict": response.verdict, "parts": parts, **chain}
