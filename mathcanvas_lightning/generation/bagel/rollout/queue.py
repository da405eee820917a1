"""The problems that wait for a place in the batch."""

from collections import deque
from collections.abc import Collection, Iterable

from mathcanvas_lightning.generation.bagel.rollout.state import Rollout


class ProblemQueue:
    """Problems that wait for a place in the batch.

    After a batch has exhausted the memory, its problems run again, each one alone: only the one
    that is too large fails.
    """

    def __init__(self) -> None:
        self._rollouts: deque[Rollout] = deque()
        self._suspects: deque[Rollout] = deque()
        self._single_uid: str | None = None
        """Uid of the problem that runs alone."""

    @property
    def uids(self) -> set[str]:
        """Uids of the problems that wait."""
        return {rollout.problem.uid for rollout in (*self._rollouts, *self._suspects)}

    def add(self, rollout: Rollout) -> None:
        """Adds a problem at the end."""
        self._rollouts.append(rollout)

    def run_alone(self, rollouts: Iterable[Rollout]) -> None:
        """Puts problems in front; each runs alone."""
        self._suspects.extend(rollouts)
        self._single_uid = None

    def next(self, running: Collection[str]) -> Rollout | None:
        """Takes the next problem; None if no problem waits, or one runs alone.

        Args:
            running: Uids of the problems in the batch.
        """
        if self._single_uid in running or (self._suspects and running):
            return None
        self._single_uid = None
        if self._suspects:
            rollout = self._suspects.popleft()
            self._single_uid = rollout.problem.uid
            return rollout
        return self._rollouts.popleft() if self._rollouts else None

    def drop(self, uids: Collection[str]) -> None:
        """Removes problems."""
        self._rollouts = deque(one for one in self._rollouts if one.problem.uid not in uids)
        self._suspects = deque(one for one in self._suspects if one.problem.uid not in uids)
