"""Maps counts of processed batches to a position in the plan; restores it from checkpoints."""

from collections.abc import Mapping
from typing import Any, Protocol

from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.plan.schedule import Schedule
from mathcanvas_lightning.data.plan.state import DataState
from mathcanvas_lightning.errors import ConfigError


class Progress(Protocol):
    """Counts processed micro-batches of this rank."""

    @property
    def epoch(self) -> int:
        """Current epoch, from 0."""

    @property
    def total(self) -> int:
        """Micro-batches processed since the start of the run."""

    @property
    def in_epoch(self) -> int:
        """Micro-batches processed in this epoch."""

    def set_in_epoch(self, count: int) -> None:
        """Sets the count of this epoch."""

    def batch_done(self) -> None:
        """Counts one more micro-batch."""

    def epoch_done(self) -> None:
        """Ends the epoch."""


class TrainerProgress:
    """Reads the counters of a Trainer.

    Args:
        trainer: A Lightning Trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def epoch(self) -> int:
        """See `Progress`."""
        return int(self._trainer.current_epoch)

    @property
    def total(self) -> int:
        """See `Progress`."""
        return int(self._batches.total.processed)

    @property
    def in_epoch(self) -> int:
        """See `Progress`."""
        return int(self._batches.current.processed)

    def set_in_epoch(self, count: int) -> None:
        """See `Progress`; a checkpoint may count micro-batches of another number of ranks."""
        current = self._batches.current
        shift = count - current.processed
        for name in ("ready", "started", "processed", "completed"):
            setattr(current, name, getattr(current, name) + shift)

    def batch_done(self) -> None:
        """Does nothing: the Trainer counts."""

    def epoch_done(self) -> None:
        """Does nothing: the Trainer counts."""

    @property
    def _batches(self) -> Any:
        return self._trainer.fit_loop.epoch_loop.batch_progress


class LoaderProgress:
    """Counts in the loader, for loops without a Trainer.

    A batch counts as processed when the next one is requested.
    """

    def __init__(self) -> None:
        self.epoch = self.total = self.in_epoch = 0

    def set_in_epoch(self, count: int) -> None:
        """See `Progress`."""
        self.in_epoch = count

    def batch_done(self) -> None:
        """See `Progress`."""
        self.total += 1
        self.in_epoch += 1

    def epoch_done(self) -> None:
        """See `Progress`."""
        self.epoch, self.in_epoch = self.epoch + 1, 0


class Position:
    """The position of a run in its plan.

    Args:
        plan: Plan of the training.
        fingerprint: Hashes of everything that the plan depends on, by topic.
        progress: Counts processed micro-batches.
        packs_per_step: B, packs of an optimizer step.
        num_ranks: Number of ranks; a divisor of B.
    """

    def __init__(
        self,
        plan: Plan,
        fingerprint: Mapping[str, str],
        progress: Progress,
        *,
        packs_per_step: int,
        num_ranks: int,
    ) -> None:
        self.plan = plan
        self.fingerprint = fingerprint
        self.progress = progress
        self.packs_per_step = packs_per_step
        self.num_ranks = num_ranks
        self._resume: DataState | None = None  # restored, before its loader starts
        self._started: DataState | None = None  # where the current loader started
        self._processed_before = 0
        self._length = 0

    @property
    def packs_per_rank(self) -> int:
        """Micro-batches per rank and step."""
        return self.packs_per_step // self.num_ranks

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resumes from the output of `state`; the number of ranks may differ.

        Raises:
            ConfigError: If the plan has changed since then.
        """
        saved = DataState.from_dict(state)
        self._resume = saved.resume_with(self.packs_per_step, self.fingerprint)
        self._started = None
        if isinstance(self.progress, LoaderProgress):
            self.progress.epoch = self._resume.epoch

    def state(self) -> dict[str, Any]:
        """The position as plain types, equal on all ranks.

        During an accumulation it is the end of the last whole step: a checkpoint holds the weights
        of that step, and no partial gradients.
        """
        started, epoch = self._started, self.progress.epoch
        if started is None:
            return (self._resume or self._first(epoch)).to_dict()
        if epoch > started.epoch:
            return self._first(epoch).to_dict()
        processed = self.progress.total - self._processed_before
        reached = started.after(processed // self.packs_per_rank)
        over = reached.step >= self._schedule(started).num_steps
        return (self._first(started.epoch + 1) if over else reached).to_dict()

    def prepare(self) -> int:
        """Computes the length of the next loader, and sets the count of the current epoch.

        Returns:
            Micro-batches of this rank in the epoch, those before a resumption included.
        """
        epoch = self.progress.epoch
        if self._resume is not None and self._resume.epoch < epoch:
            self._resume = None  # that epoch has ended
        state = self._resume
        if state is not None and state.epoch > epoch:
            # The Trainer has not noticed yet that its epoch is complete.
            self._length = self.progress.in_epoch or self._left(self._first(epoch))
            return self._length
        done = 0
        if state is not None:
            done = state.packs_done // self.num_ranks
            self.progress.set_in_epoch(done)
        self._length = done + self._left(state or self._first(epoch))
        return self._length

    def begin(self) -> tuple[DataState, Schedule] | None:
        """Starts the loader; called when its first batch is requested.

        Returns:
            The state to start with and the schedule of its epoch, or None if the Trainer has not
            noticed yet that its epoch is complete.

        Raises:
            ConfigError: If the Trainer's count differs.
        """
        state = self._resume or self._first(self.progress.epoch)
        if state.epoch > self.progress.epoch:
            return None
        done = self._length - self._left(state)
        if done and done != self.progress.in_epoch:
            raise ConfigError(
                "data loader",
                found="a Trainer that requested it before it restored its checkpoint",
                wanted="the same progress in the Trainer and in the data",
                remedy="Don't call trainer.estimated_stepping_batches in configure_optimizers; "
                "data.total_steps(max_epochs) is exact.",
            )
        self._processed_before = self.progress.total
        self._started, self._resume = state, None
        return state, self._schedule(state)

    def _first(self, epoch: int) -> DataState:
        return DataState(
            epoch=epoch, packs_per_step=self.packs_per_step, fingerprint=self.fingerprint
        )

    def _schedule(self, state: DataState) -> Schedule:
        return self.plan.schedule(state.epoch, state.packs_per_step, state.segments)

    def _left(self, state: DataState) -> int:
        return (self._schedule(state).num_steps - state.step) * self.packs_per_rank
