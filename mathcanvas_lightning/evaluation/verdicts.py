"""Verdicts on responses, and the scores of many records."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mathcanvas_lightning.common.display.short import counted, short_repr
from mathcanvas_lightning.evaluation.answered import Answered
from mathcanvas_lightning.evaluation.comparison.equivalence import How, vote_of
from mathcanvas_lightning.evaluation.credit import CREDITS, plain_credit, wilson_interval

Verdict = Literal["right", "wrong", "unanswered", "failed", "undecided"]
"""`unanswered`: no answer in the response; `failed`: no response; `undecided`: the judge failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """The verdict on the answer to one part of a question."""

    extracted: str
    """The answer in the response; empty if none was found."""
    expected: str
    """The reference answer."""
    verdict: Verdict
    how: How
    """The rule that decided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainVerdict:
    """What the steps of an answer to a puzzle show."""

    drawings: tuple[bool, ...]
    """For each step of the solution, whether its drawing is there and right."""
    first_error: str | None
    """What is wrong first, such as "state 1", "drawing 2" or "answer"; None if nothing is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """The verdicts on one response."""

    parts: tuple[PartVerdict, ...]
    chain: ChainVerdict | None = None
    """The verdict on the steps; None if they were not checked."""

    @property
    def verdict(self) -> Verdict:
        """The verdict on the whole response: right if all parts are right."""
        found = {part.verdict for part in self.parts}
        if len(found) == 1:
            return self.parts[0].verdict
        return "undecided" if "undecided" in found else "wrong"

    @property
    def is_right(self) -> tuple[bool, ...]:
        """For each part, whether its answer is right."""
        return tuple(part.verdict == "right" for part in self.parts)

    @property
    def may_be_right(self) -> tuple[bool, ...]:
        """For each part, whether its answer is right or undecided."""
        return tuple(part.verdict in ("right", "undecided") for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRecord:
    """A record with the verdicts on its responses, one response per sample."""

    record: Answered
    responses: tuple[ScoredResponse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of some records; `num_right` to `num_undecided` add up to `num_responses`."""

    num_records: int
    num_responses: int
    num_right: int
    """Responses with all parts right."""
    num_wrong: int
    num_unanswered: int
    """Responses without an answer; the accuracies count them as wrong."""
    num_failed: int
    """Requests without a response; the accuracies count them as wrong."""
    num_undecided: int
    """Responses that the judge left undecided; the accuracies count them as not right."""
    accuracy: float | None
    """Mean over records of the mean over samples (avg@n) of the share of right parts."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy, with the records as trials."""
    complete: float | None
    """Like `accuracy`, but a response counts only if all parts are right."""
    weighted: float | None
    """Like `accuracy`, but later parts weigh more (see `credit.part_weights`)."""
    majority: float | None
    """Share of records whose most frequent answer is right (maj@n); None if all have one sample."""
    upper: float | None = None
    """`accuracy` if all undecided parts were right: the upper bound, as `accuracy` is the lower."""

    def __repr__(self) -> str:
        share = "none" if self.accuracy is None else f"{self.accuracy:.1%}"
        low, high = self.interval
        accuracy = f"accuracy {share} ({low:.1%} to {high:.1%})"
        return short_repr(self, counted(self.num_records, "record"), accuracy)


def summarize(records: Sequence[ScoredRecord]) -> Scores:
    """Computes the scores of some records.

    Args:
        records: Any number of records.

    Returns:
        The scores; accuracies are None if there is no response.
    """
    counts = Counter(response.verdict for one in records for response in one.responses)
    samples_of = [[response.is_right for response in one.responses] for one in records]
    samples_of = [samples for samples in samples_of if samples]
    means = {
        name: _mean([_mean([credit(parts) for parts in samples]) for samples in samples_of])
        for name, credit in CREDITS.items()
    }
    has_samples = any(len(one.responses) > 1 for one in records)
    return Scores(
        num_records=len(records),
        num_responses=counts.total(),
        num_right=counts["right"],
        num_wrong=counts["wrong"],
        num_unanswered=counts["unanswered"],
        num_failed=counts["failed"],
        num_undecided=counts["undecided"],
        accuracy=means["accuracy"] if samples_of else None,
        interval=wilson_interval(means["accuracy"], len(samples_of)),
        complete=means["complete"] if samples_of else None,
        weighted=means["weighted"] if samples_of else None,
        majority=_mean([_majority_is_right(one) for one in records]) if has_samples else None,
        upper=_upper(records),
    )


def _upper(records: Sequence[ScoredRecord]) -> float | None:
    shares = [
        _mean([plain_credit(response.may_be_right) for response in one.responses])
        for one in records
        if one.responses
    ]
    return _mean(shares) if shares else None


def _majority_is_right(scored: ScoredRecord) -> bool:
    """Whether the most frequent answer is right; in a tie, the first of them counts."""
    votes: dict[tuple[str, ...], list[ScoredResponse]] = {}
    for response in scored.responses:
        if response.verdict in ("right", "wrong", "undecided"):
            answers = tuple(
                vote_of(part.extracted, scored.record.options) for part in response.parts
            )
            votes.setdefault(answers, []).append(response)
    winners = max(votes.values(), key=len, default=[])
    return any(response.verdict == "right" for response in winners)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
