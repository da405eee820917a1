"""Base of what answers problems, many at a time: the queue, and a call that waits for answers."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

import torch

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.bagel.kv_cache import is_memory_error
from mathcanvas_lightning.generation.bagel.problem import Answer, InterleavedConfig, Problem
from mathcanvas_lightning.generation.bagel.rollout.progress import Progress
from mathcanvas_lightning.generation.bagel.rollout.queue import ProblemQueue
from mathcanvas_lightning.generation.bagel.rollout.reader import ProblemReader
from mathcanvas_lightning.generation.bagel.rollout.state import Rollout

logger = logging.getLogger(__name__)


class ProblemSolver(ABC):
    """Answers many problems at a time, each at its own step.

    Args:
        reader: Reads the problems.
        config: Settings for problems that have no configuration.
        batch_size: Maximum number of problems in progress.
    """

    def __init__(
        self, reader: ProblemReader, config: InterleavedConfig, *, batch_size: int
    ) -> None:
        self.config, self.batch_size = config, batch_size
        self._reader = reader
        self._queue = ProblemQueue()
        self._pending: set[str] = set()

    @property
    def num_pending(self) -> int:
        """Number of problems that were submitted but not yet answered."""
        return len(self._pending)

    @property
    def running(self) -> list[str]:
        """Uids of the problems in the batch."""
        return [rollout.problem.uid for rollout in self._in_progress()]

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
        self._queue.add(self._reader.read(problem))
        self._pending.add(problem.uid)

    def advance(self) -> list[Answer]:
        """Advances all problems in progress.

        If the memory is exhausted, the problems in progress run again, each one alone; one that
        needs too much memory alone ends with the reason out_of_memory. If another exception occurs,
        all problems in progress are dropped, because their contexts may be
        incomplete; queued problems stay in the queue.

        Returns:
            Answers that are finished now, often none. Call again while problems are pending.
        """
        try:
            answers = self._advance()
        except BaseException as error:
            if not (is_memory_error(error) and self._in_progress()):
                self.withdraw(self._pending - self._queue.uids)
                raise
            shortage = str(error)
        else:
            self._pending.difference_update(answer.uid for answer in answers)
            return answers
        return self._run_alone(shortage)  # outside the handler, which keeps tensors alive

    def progress(self, uid: str) -> Progress:
        """The state of the answer to a pending problem.

        Args:
            uid: Uid of the problem.
        """
        found = (one for one in self._in_progress() if one.problem.uid == uid)
        rollout = next(found, None)
        return Progress() if rollout is None else self._progress_of(rollout)

    def withdraw(self, uids: Collection[str] | None = None) -> None:
        """Drops pending problems.

        Args:
            uids: Uids of the problems to drop; None drops all.
        """
        uids = set(self._pending if uids is None else uids)
        self._queue.drop(uids)
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

    def _progress_of(self, rollout: Rollout) -> Progress:
        """Progress of a problem in the batch; by default without unfinished steps."""
        return Progress(steps=rollout.steps, number=rollout.number)

    def _run_alone(self, shortage: str) -> list[Answer]:
        """Restarts the problems of a batch that exhausted the memory, each one alone."""
        rollouts = self._in_progress()
        self._drop({rollout.problem.uid for rollout in rollouts})
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
        unfinished = [rollout for rollout in rollouts if rollout.needs is not None]
        if len(unfinished) == 1:
            unfinished[0].stop("out_of_memory")
            logger.warning("problem %s fails: %s", unfinished[0].problem.uid, shortage)
        elif unfinished:
            self.batch_size = len(unfinished) - 1
            self._queue.run_alone([self._reader.read(one.problem) for one in unfinished])
            logger.warning("too little memory for %d problems: %s", len(unfinished), shortage)
        answers = [rollout.answer() for rollout in rollouts if rollout.needs is None]
        self._pending.difference_update(answer.uid for answer in answers)
        return answers

    def close(self) -> None:  # noqa: B027 - optional
        """Frees what outlives this object, such as a process."""

    @abstractmethod
    def _advance(self) -> list[Answer]:
        """Takes problems from the queue, computes, and returns finished answers."""

    @abstractmethod
    def _in_progress(self) -> list[Rollout]:
        """The problems of the batch, also those that are finished but not returned yet."""

    @abstractmethod
    def _drop(self, uids: Collection[str]) -> None:
        """Frees what problems in progress hold."""
