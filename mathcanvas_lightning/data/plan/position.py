"""The position of a run in its plan: counted from processed batches, restored from checkpoints."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.plan.origin import DATASET_TOPIC, PlanOrigin, explain
from mathcanvas_lightning.data.plan.schedule import Schedule
from mathcanvas_lightning.errors import ConfigError

VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 had no digests of the plan."""
EXPLAINING = frozenset({"order of data.train", "image_limits", "numpy"})
"""Topics that may differ if the plan is still the same; they only explain why it is not."""


class NextStep(NamedTuple):
    """An optimizer step of an epoch."""

    epoch: int = 0
    segments: tuple[tuple[int, int], ...] = ()
    """Finished parts of the epoch with other numbers of packs per step: (packs per step, steps)."""
    step: int = 0
    """Finished steps since the last segment."""


class Position:
    """The next optimizer step of a run.

    With a Trainer it follows the Trainer's counts. Without one, the loader counts: a batch is
    processed when the next one is requested, and each new iteration starts an epoch.

    Args:
        plan: Plan of the training.
        origin: Everything that the plan depends on.
        packs_per_step: B, packs of an optimizer step.
        num_ranks: Number of ranks; a divisor of B.
        trainer: A Lightning Trainer.
    """

    def __init__(
        self,
        plan: Plan,
        origin: PlanOrigin,
        *,
        packs_per_step: int,
        num_ranks: int,
        trainer: Any = None,
    ) -> None:
        self.plan = plan
        self.origin = origin
        self.packs_per_step = packs_per_step
        self.num_ranks = num_ranks
        self.trainer = trainer
        self.length = 0
        """Micro-batches of this rank in the epoch of the loader, those before a resumption
        included."""
        self._start: NextStep | None = None  # of the last loader, or restored
        self._is_restored = False  # and no loader has started since
        self._done_before = 0  # micro-batches of the epoch that count as done before the loader
        self._mark = 0  # micro-batches of the run that were processed before the loader
        self._num_yielded = 0

    @property
    def packs_per_rank(self) -> int:
        """Micro-batches per rank and step."""
        return self.packs_per_step // self.num_ranks

    def count_batch(self) -> None:
        """Counts a processed micro-batch; a Trainer counts by itself."""
        self._num_yielded += 1

    def restore(self, state: Mapping[str, Any]) -> None:
        """Resumes from the output of `state`; ranks and packs per step may differ.

        Raises:
            ConfigError: If the plan has changed since then.
        """
        if state.get("version") not in READABLE_VERSIONS:
            raise ConfigError(
                "data state of the checkpoint",
                found=f"version {state.get('version')}",
                wanted=f"version {VERSION}",
                remedy="Resume with the version of this library that wrote the checkpoint.",
            )
        segments = [(packs, steps) for packs, steps in state["segments"]]
        step = state["step"]
        if step and state["packs_per_step"] != self.packs_per_step:
            segments.append((state["packs_per_step"], step))
            step = 0
        restored = NextStep(state["epoch"], tuple(segments), step)
        self._require_same_plan(state, restored)
        self._start, self._is_restored = restored, True

    def state(self) -> dict[str, Any]:
        """The position as plain types, equal on all ranks.

        During an accumulation it is the end of the last whole step: a checkpoint holds the weights
        of that step, and no partial gradients.
        """
        reached = self._reached()
        return {
            "version": VERSION,
            "epoch": reached.epoch,
            "segments": [list(segment) for segment in reached.segments],
            "packs_per_step": self.packs_per_step,
            "step": reached.step,
            "plan": self._digest(reached),
            "fingerprint": dict(self.origin.fingerprint),
            "values": {topic: dict(named) for topic, named in self.origin.values.items()},
        }

    def prepare(self) -> int:
        """Computes the length of the next loader, and sets the Trainer's counts.

        Returns:
            See `length`.
        """
        reached = self._reached()
        is_within = bool(reached.step or reached.segments)
        if is_within and self._ended_epochs > reached.epoch:
            self._resume_epoch(reached)
        start = self._next_start()
        if self.trainer is not None and start.epoch > self.trainer.current_epoch:
            # The Trainer has not noticed yet that its epoch is complete.
            in_epoch = int(self._batches.current.processed)
            self.length = in_epoch or self._left(NextStep(self.trainer.current_epoch))
            return self.length
        self._set_length(start)
        if self._is_restored and self.trainer is not None:
            self._set_trainer_batches(self._done_before)
        return self.length

    def begin(self) -> tuple[NextStep, Schedule] | None:
        """Starts the loader; called when its first batch is requested.

        Returns:
            The step to start with and the schedule of its epoch, or None if the Trainer has not
            noticed yet that its epoch is complete.

        Raises:
            ConfigError: If the Trainer's count differs.
        """
        start = self._next_start()
        if self.trainer is None:
            self._set_length(start)
        elif start.epoch > self.trainer.current_epoch:
            return None
        elif self._done_before and self._done_before != self._batches.current.processed:
            self._check_limit()
            raise ConfigError(
                "data loader",
                found="a Trainer that requested it before it restored its checkpoint",
                wanted="the same progress in the Trainer and in the data",
                remedy="Don't call trainer.estimated_stepping_batches in configure_optimizers; "
                "data.total_steps(max_epochs) is exact.",
            )
        self._start, self._mark, self._is_restored = start, self._processed, False
        return start, self._schedule(start)

    def _check_limit(self) -> None:
        """Raises if limit_train_batches has become lower than what is done: it ends the epoch."""
        limit = self.trainer.limit_train_batches
        if isinstance(limit, int) and limit <= self._done_before:
            raise ConfigError(
                "trainer.limit_train_batches",
                found=f"{limit}, with {self._done_before} micro-batches of the epoch done",
                wanted="more micro-batches than the checkpoint has done in its epoch",
                remedy="Raise it, or leave it out as in the run that the checkpoint is of.",
            )

    @property
    def _processed(self) -> int:
        """Micro-batches of this rank that the run has processed."""
        return self._num_yielded if self.trainer is None else self._batches.total.processed

    @property
    def _batches(self) -> Any:
        return self.trainer.fit_loop.epoch_loop.batch_progress

    @property
    def _ended_epochs(self) -> int:
        """Epochs that the Trainer has ended, completely or not."""
        if self.trainer is None:
            return 0
        return int(self.trainer.fit_loop.epoch_progress.current.processed)

    def _reached(self) -> NextStep:
        """The next whole step, after what was processed."""
        if self._start is None:
            return NextStep(self._ended_epochs)
        reached = self._start
        if not self._is_restored:
            steps = (self._processed - self._mark) // self.packs_per_rank
            reached = reached._replace(step=reached.step + steps)
        if reached.step and reached.step >= self._schedule(reached).num_steps:
            return NextStep(reached.epoch + 1)
        if self._ended_epochs > reached.epoch and self._batches.is_last_batch:
            return NextStep(self._ended_epochs)  # limit_train_batches has ended the epoch
        return reached

    def _next_start(self) -> NextStep:
        """The step that the next loader starts with."""
        reached = self._reached()
        if self.trainer is None:
            return reached if self._is_restored else NextStep(reached.epoch)
        if self._is_restored and reached.epoch >= self.trainer.current_epoch:
            return reached
        return NextStep(self.trainer.current_epoch)

    def _resume_epoch(self, reached: NextStep) -> None:
        """Makes the Trainer resume an epoch that max_steps or a stop has ended early.

        The Trainer counts it as complete; its next epoch would skip the remaining packs.
        """
        loop = self.trainer.fit_loop
        shift = self._ended_epochs - reached.epoch
        for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
            progress.ready = progress.started = progress.ready - (shift - 1)
            progress.processed = progress.completed = progress.ready - 1
        loop.restarting = True
        loop.update_restart_stage()
        self._start, self._is_restored = reached, True

    def _set_trainer_batches(self, count: int) -> None:
        """Sets the Trainer's count of this epoch, which may be of other ranks or steps."""
        current = self._batches.current
        shift = count - current.processed
        for name in ("ready", "started", "processed", "completed"):
            setattr(current, name, getattr(current, name) + shift)

    def _set_length(self, start: NextStep) -> None:
        # The Trainer steps at multiples of packs_per_rank, so only whole steps count as done.
        packs = sum(b * steps for b, steps in start.segments) + start.step * self.packs_per_step
        self._done_before = packs // self.packs_per_step * self.packs_per_rank
        self.length = self._done_before + self._left(start)

    def _schedule(self, at: NextStep) -> Schedule:
        return self.plan.schedule(at.epoch, self.packs_per_step, at.segments)

    def _left(self, at: NextStep) -> int:
        return (self._schedule(at).num_steps - at.step) * self.packs_per_rank

    def _digest(self, at: NextStep) -> str:
        """Digest of the plan: of the epoch's packs once some of them are done, else of its input.

        So no epoch is planned that may never be trained.
        """
        return self.plan.epoch(at.epoch).digest if at.step or at.segments else self.plan.digest

    def _require_same_plan(self, state: Mapping[str, Any], at: NextStep) -> None:
        saved, ours = state["fingerprint"], self.origin.fingerprint
        names = {*saved, *ours} - (EXPLAINING - saved.keys())  # version 1 has fewer topics
        changed = sorted(name for name in names if saved.get(name) != ours.get(name))
        is_other = "plan" in state and state["plan"] != self._digest(at)
        shown, now = state.get("values", {}), self.origin.values
        # Data that was moved and named as before has another hash, but the same values and plan.
        moved = {
            t for t in changed if t.startswith(DATASET_TOPIC) and shown.get(t, 0) == now.get(t)
        }
        if not is_other and (EXPLAINING | moved).issuperset(changed):
            return
        other = "another plan from the same settings: by another version of this library or numpy"
        differing = explain(changed, shown, now)
        raise ConfigError(
            "data state of the checkpoint",
            found=f"a plan that differs in: {differing}" if changed else other,
            wanted="the data and settings that the run started with",
            remedy="Restore them, or start a new run from the checkpoint's weights: with "
            "other data the position has no meaning.",
        )
