"""What became of a predict run, in numbers."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class InputReport:
    """What became of one input, in this run and those before it."""

    path: str
    output: Path
    """The finished file."""
    num_records: int
    num_answered: int
    failures: Counter[str]
    """Requests without an answer, by kind of failure; the next run asks them again."""
    num_cut: int
    """Answers that a limit ended: `max_tokens`, the window's end, ..."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionReport:
    """What became of a run."""

    inputs: tuple[InputReport, ...]
    num_asked: int
    """Requests of this run, over all ranks."""
    seconds: float
    """From the start of the predict loop to the last response."""

    @property
    def num_failed(self) -> int:
        """Records without an answer."""
        return sum(one.failures.total() for one in self.inputs)
