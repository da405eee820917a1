"""Where a run is in its plan, told from what was processed, and found again from a checkpoint."""

from collections.abc import Mapping
from typing import Any, Protocol

from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.plan.schedule import Schedule
from mathcanvas_lightning.data.plan.state import DataState
from mathcanvas_lightning.errors import ConfigError


class Progress(Protocol):
    """Who counts the micro-batches of this rank."""

    @property
    def epoch(self) -> int:
        """The one under way, from 0."""

    @property
    def total(self) -> int:
        """Micro-batches processed, ever."""

    @property
    def in_epoch(self) -> int:
        """Micro-batches processed in this epoch."""

    def set_in_epoch(self, count: int) -> None:
        """Counts from here on."""

    def processed(self) -> None:
        """Is told of one more."""

    def epoch_over(self) -> None:
        """Is told that the epoch has no more."""


class TrainerProgress:
    """A Trainer counts.

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
        """See `Progress`; a checkpoint counts micro-batches of as many ranks as there were then."""
        current = self._batches.current
        shift = count - current.processed
        for name in ("ready", "started", "processed", "completed"):
            setattr(current, name, getattr(current, name) + shift)

    def processed(self) -> None:
        """The Trainer knows."""

    def epoch_over(self) -> None:
        """The Trainer knows."""

    @property
    def _batches(self) -> Any:
        return self._trainer.fit_loop.epoch_loop.batch_progress


class OwnProgress:
    """Counted here, for loops without a Trainer: a batch is done when the next is asked for."""

    def __init__(self) -> None:
        self.epoch = self.total = self.in_epoch = 0

    def set_in_epoch(self, count: int) -> None:
        """See `Progress`."""
        self.in_epoch = count

    def processed(self) -> None:
        """See `Progress`."""
        self.total += 1
        self.in_epoch += 1

    def epoch_over(self) -> None:
        """See `Progress`."""
        self.epoch, self.in_epoch = self.epoch + 1, 0


class Position:
    """The place of a run in its plan.

    Args:
        plan: Of the training.
        fingerprint: Of all that decides the plan.
        progress: Who counts.
        packs_per_step: B.
        num_ranks: Divides B.
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
        self._resume: DataState | None = None  # restored, and not begun yet
        self._begun: DataState | None = None  # where the loader under way began
        self._processed_before = 0
        self._length = 0

    @property
    def packs_per_rank(self) -> int:
        """Micro-batches of a rank in one step."""
        return self.packs_per_step // self.num_ranks

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from what `state` gave, on as many ranks as there are now.

        Raises:
            ConfigError: If the plan has changed since.
        """
        saved = DataState.from_dict(state)
        self._resume = saved.go_on_with(self.packs_per_step, self.fingerprint)
        self._begun = None
        if isinstance(self.progress, OwnProgress):
            self.progress.epoch = self._resume.epoch

    def state(self) -> dict[str, Any]:
        """The place, as plain types; equal on all ranks.

        In the middle of an accumulation it is the end of the last whole step: the weights are still
        those, and half a step's gradients are in no checkpoint.
        """
        begun, epoch = self._begun, self.progress.epoch
        if begun is None:
            return (self._resume or self._first(epoch)).to_dict()
        if epoch > begun.epoch:
            return self._first(epoch).to_dict()
        processed = self.progress.total - self._processed_before
        reached = begun.after(processed // self.packs_per_rank)
        over = reached.step >= self._schedule(begun).num_steps
        return (self._first(begun.epoch + 1) if over else reached).to_dict()

    def prepare(self) -> int:
        """Tells how long the coming loader is, and sets the count of the epoch under way.

        Returns:
            Micro-batches of this rank, those before a resumption included.
        """
        epoch = self.progress.epoch
        if self._resume is not None and self._resume.epoch < epoch:
            self._resume = None  # that epoch is over
        state = self._resume
        if state is not None and state.epoch > epoch:
            # The Trainer has yet to notice that it did all of its epoch.
            self._length = self.progress.in_epoch or self._left(self._first(epoch))
            return self._length
        done = 0
        if state is not None:
            done = state.packs_done // self.num_ranks
            self.progress.set_in_epoch(done)
        self._length = done + self._left(state or self._first(epoch))
        return self._length

    def begin(self) -> tuple[DataState, Schedule] | None:
        """Where the loader begins; asked for when its first batch is.

        Returns:
            The place, and the schedule of its epoch; None where the Trainer has yet to notice that
            its epoch is over.

        Raises:
            ConfigError: If the Trainer counts otherwise.
        """
        state = self._resume or self._first(self.progress.epoch)
        if state.epoch > self.progress.epoch:
            return None
        done = self._length - self._left(state)
        if done and done != self.progress.in_epoch:
            raise ConfigError(
                "data loader",
                found="a Trainer that asked for it before it restored its checkpoint",
                wanted="its progress and the data's to agree",
                remedy="Don't call trainer.estimated_stepping_batches in configure_optimizers; "
                "data.total_steps(max_epochs) is exact.",
            )
        self._processed_before = self.progress.total
        self._begun, self._resume = state, None
        return state, self._schedule(state)

    def _first(self, epoch: int) -> DataState:
        return DataState(
            epoch=epoch, packs_per_step=self.packs_per_step, fingerprint=self.fingerprint
        )

    def _schedule(self, state: DataState) -> Schedule:
        return self.plan.schedule(state.epoch, state.packs_per_step, state.segments)

    def _left(self, state: DataState) -> int:
        return (self._schedule(state).num_steps - state.step) * self.packs_per_rank
