"""Base of what answers problems, many at a time: the queue, and a call that waits for answers."""

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Collection, Iterable

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout


class ProblemSolver(ABC):
    """Answers many problems at a time, each at its own step.

    Args:
        reader: Reads the problems.
        config: Settings for problems that have no configuration.
    """

    def __init__(self, reader: ProblemReader, config: InterleavedConfig) -> None:
        self.config = config
        self._reader = reader
        self._waiting: deque[Rollout] = deque()
        self._pending: set[str] = set()

    @property
    def num_pending(self) -> int:
        """Number of problems that were submitted but not yet answered."""
        return len(self._pending)

    def submit(self, problem: Problem) -> None:
        """Adds a problem to the queue; returns at once.

        Args:
            problem: Problem whose uid differs from those of all pending problems.

        Raises:
            InputError: If there is no input, or an input is unreadable or too long for a context.
            ConfigError: If the problem's configuration needs more contexts than the solver's.
        """
        if problem.uid in self._pending:
            raise InputError(
                f"problem {problem.uid}",
                found="a pending problem with the same uid",
                wanted="a unique uid, because it also seeds the random numbers",
                remedy="Change the uid.",
            )
        self._waiting.append(self._reader.read(problem))
        self._pending.add(problem.uid)

    def advance(self) -> list[Answer]:
        """Advances all problems in progress.

        If an exception occurs, all problems in progress are dropped, because their contexts may be
        incomplete; queued problems stay in the queue.

        Returns:
            Answers that are finished now, often none. Call again while problems are pending.
        """
        try:
            answers = self._advance()
        except BaseException:
            self.withdraw(self._pending - {rollout.problem.uid for rollout in self._waiting})
            raise
        self._pending.difference_update(answer.uid for answer in answers)
        return answers

    def withdraw(self, uids: Collection[str] | None = None) -> None:
        """Drops pending problems.

        Args:
            uids: Uids of the problems to drop; None drops all.
        """
        uids = set(self._pending if uids is None else uids)
        self._waiting = deque(one for one in self._waiting if one.problem.uid not in uids)
        self._pending.difference_update(uids)
        self._drop(uids)

    def run(self, problems: Iterable[Problem]) -> list[Answer]:
        """Answers problems and waits for all answers.

        Args:
            problems: Problems with different uids.

        Returns:
            Answers in the order of the problems. Problems that were submitted before are answered
            too, but not returned. After an exception none of these problems is pending.

        Raises:
            InputError: See `submit`.
            ConfigError: See `submit`.
        """
        order: list[str] = []
        answers: dict[str, Answer] = {}
        try:
            for problem in problems:
                self.submit(problem)
                order.append(problem.uid)
            while self.num_pending:
                answers |= {answer.uid: answer for answer in self.advance()}
        except BaseException:
            self.withdraw(order)
            raise
        return [answers[uid] for uid in order]

    def close(self) -> None:  # noqa: B027 - optional
        """Frees what outlives this object, such as a process."""

    @abstractmethod
    def _advance(self) -> list[Answer]:
        """Takes problems from the queue, computes, and returns finished answers."""

    @abstractmethod
    def _drop(self, uids: Collection[str]) -> None:
        """Frees what problems in progress hold."""
