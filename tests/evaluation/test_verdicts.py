"""Scores of a few records: undecided answers give a lower and an upper bound."""

import pytest

from mathcanvas_lightning.evaluation.answered import Answered
from mathcanvas_lightning.evaluation.score_table import score_rows
from mathcanvas_lightning.evaluation.verdicts import (
    PartVerdict,
    ScoredRecord,
    ScoredResponse,
    Verdict,
    summarize,
)


def record(*samples: list[Verdict]) -> ScoredRecord:
    """A record with the verdicts on the parts of each sample."""
    responses = tuple(
        ScoredResponse(
            parts=tuple(
                PartVerdict(extracted="5", expected="5", verdict=verdict, how="judge")
                for verdict in parts
            )
        )
        for parts in samples
    )
    answered = Answered(
        index=0,
        uid=None,
        question="",
        options=(),
        expected=("5",) * len(samples[0]),
        responses=("5",) * len(samples),
        groups={},
    )
    return ScoredRecord(record=answered, responses=responses)


def test_undecided_is_not_right() -> None:
    scores = summarize([record(["right"]), record(["wrong"]), *[record(["undecided"])] * 2])
    assert (scores.accuracy, scores.upper) == (0.25, 0.75)
    assert scores.interval[0] < 0.25 < scores.interval[1] < 0.75
    row = score_rows(scores, {})["all"]
    assert (row["accuracy"], row["bounds"], row["undecided"]) == ("25.0%", "25.0% to 75.0%", "2")


def test_undecided_parts_and_samples() -> None:
    scores = summarize([record(["right", "undecided"], ["wrong", "right"])])
    assert scores.accuracy == pytest.approx(0.5)
    assert scores.upper == pytest.approx(0.75)


def test_without_undecided_answers_the_table_has_no_bounds() -> None:
    scores = summarize([record(["right"]), record(["wrong"])])
    assert scores.accuracy == scores.upper == 0.5
    assert "bounds" not in score_rows(scores, {})["all"]
    assert summarize([]).upper is None
