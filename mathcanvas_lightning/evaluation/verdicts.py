"""What is found on each response, and what it sums up to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mathcanvas_lightning.evaluation.answered import Answered
from mathcanvas_lightning.evaluation.comparison.equivalence import How, vote_of
from mathcanvas_lightning.evaluation.credit import CREDITS, wilson_interval

Verdict = Literal["right", "wrong", "unanswered", "failed", "undecided"]
"""`unanswered`: no answer in the response; `failed`: no response; `undecided`: the judge failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartVerdict:
    """What is found on the answer to one part of a question."""

    extracted: str
    """The answer in the response; empty if there is none."""
    expected: str
    verdict: Verdict
    how: How


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredResponse:
    """What is found on one response."""

    parts: tuple[PartVerdict, ...]

    @property
    def verdict(self) -> Verdict:
        """Of the whole: right if all parts are."""
        found = {part.verdict for part in self.parts}
        if len(found) == 1:
            return self.parts[0].verdict
        return "undecided" if "undecided" in found else "wrong"

    @property
    def is_right(self) -> tuple[bool, ...]:
        """Of each part."""
        return tuple(part.verdict == "right" for part in self.parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRecord:
    """A record with what is found on its responses, one a sample."""

    record: Answered
    responses: tuple[ScoredResponse, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """What some records sum up to; the counts are of responses, and add up to all of them."""

    num_records: int
    num_responses: int
    num_right: int
    """With all parts right."""
    num_wrong: int
    num_unanswered: int
    """Responses without an answer: counted as wrong in the accuracies."""
    num_failed: int
    """Requests without a response: counted as wrong too."""
    num_undecided: int
    """Left out of the accuracies, since the judge didn't decide."""
    accuracy: float | None
    """Mean over records of the mean over their samples (avg@n) of the share of parts right."""
    interval: tuple[float, float]
    """Wilson's 95 % interval of the accuracy, with the records as trials."""
    complete: float | None
    """The same of responses with all parts right."""
    weighted: float | None
    """The same with weights that grow from part to part (see `credit.part_weights`)."""
    majority: float | None
    """Share of records whose most frequent answer is right (maj@n); None for one sample each."""


def summarize(records: Sequence[ScoredRecord]) -> Scores:
    """Sums up records.

    Args:
        records: Any number.

    Returns:
        Their scores; accuracies are None where nothing is decided.
    """
    counts = Counter(response.verdict for one in records for response in one.responses)
    decided = [
        [response.is_right for response in one.responses if response.verdict != "undecided"]
        for one in records
    ]
    decided = [samples for samples in decided if samples]
    means = {
        name: _mean([_mean([credit(parts) for parts in samples]) for samples in decided])
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
        accuracy=means["accuracy"] if decided else None,
        interval=wilson_interval(means["accuracy"], len(decided)),
        complete=means["complete"] if decided else None,
        weighted=means["weighted"] if decided else None,
        majority=_mean([_majority_is_right(one) for one in records]) if has_samples else None,
    )


def _majority_is_right(scored: ScoredRecord) -> bool:
    """Whether the most frequent answer is right; the first of several as frequent."""
    votes: dict[tuple[str, ...], list[ScoredResponse]] = {}
    for response in scored.responses:
        if response.verdict in ("right", "wrong"):
            answers = tuple(
                vote_of(part.extracted, scored.record.options) for part in response.parts
            )
            votes.setdefault(answers, []).append(response)
    winners = max(votes.values(), key=len, default=[])
    return any(response.verdict == "right" for response in winners)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0
