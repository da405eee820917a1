"""Counts of answers, failures and tokens at the end of a predict run."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """Counts for one input, over this run and earlier ones."""

    path: str
    output: Path
    """Finished output file."""
    num_records: int
    num_answered: int
    failures: Counter[str]
    """Kind of failure -> requests without an answer; the next run asks them again."""
    num_cut: int
    """Answers that a limit ended: `max_tokens`, the end of the window, ..."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionReport:
    """Counts for a whole run."""

    inputs: tuple[InputReport, ...]
    num_asked: int
    """Requests of this run, over all ranks."""
    seconds: float
    """Time from the start of the predict loop to the last response."""

    @property
    def num_failed(self) -> int:
        """Number of records without an answer."""
        return sum(one.failures.total() for one in self.inputs)
