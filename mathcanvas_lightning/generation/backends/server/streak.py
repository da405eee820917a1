"""A circuit breaker: decides when failures of single requests may be a failure of the server."""

from dataclasses import dataclass

from mathcanvas_lightning.generation.backends.server.failures import REFUSALS, TOO_LONG

MAX_FAILURES = 5
"""Failures in a row after which the server is tested."""


@dataclass(slots=True, kw_only=True)
class FailureStreak:
    """Failed requests in a row, over the whole run.

    One status says little: 403 is the answer to a wrong key, and also to an input that the
    provider's moderation has flagged. So a harmless request tests the server when failures pile up;
    only if it fails too, the run ends.
    """

    num_failures: int = 0
    """Failures since the last answer."""
    has_answered: bool = False
    """Whether the server has answered any request."""
    kind: str = ""
    """Kind of the last failure."""

    def add_answer(self) -> None:
        """Counts an answer: the server works."""
        self.num_failures, self.has_answered = 0, True

    def add_failure(self, kind: str) -> None:
        """Counts a failure, unless only its own prompt can be the cause."""
        if kind != TOO_LONG:
            self.num_failures += 1
            self.kind = kind

    @property
    def needs_test(self) -> bool:
        """Whether the server must be tested now: at once if it refuses the first requests."""
        is_early = self.kind in REFUSALS and not self.has_answered
        return self.num_failures >= (1 if is_early else MAX_FAILURES)
