"""Data sets with their plan, and the tasks that a rank's workers are given."""

from collections.abc import Iterator
from dataclasses import dataclass

from mathcanvas_lightning.data.loading.dataset import PackDataset, PackTask, SampleRef
from mathcanvas_lightning.data.loading.datasets import LoadedDataset
from mathcanvas_lightning.data.loading.quarantine import Quarantine
from mathcanvas_lightning.data.plan.epoch import EpochPlan, Plan
from mathcanvas_lightning.data.plan.schedule import FILLER, Schedule


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedData:
    """What a loader is made of."""

    datasets: tuple[LoadedDataset, ...]
    plan: Plan
    """Of these data sets."""
    dataset: PackDataset
    """Builds the packs."""
    quarantine: Quarantine
    """For rows that can't be read."""

    def tasks(
        self, epoch: int, schedule: Schedule, rank: int, num_ranks: int, first_step: int = 0
    ) -> Iterator[PackTask]:
        """What a rank has to build.

        Args:
            epoch: From 0.
            schedule: Of it.
            rank: From 0.
            num_ranks: Divides the packs a step.
            first_step: Of the schedule.

        Yields:
            The packs in the order of training.
        """
        planned = self.plan.epoch(epoch)
        slots = schedule.packs_per_step // num_ranks
        for number, (step, pack) in enumerate(schedule.rank_packs(rank, num_ranks, first_step)):
            if number % slots == 0:
                totals = planned.loss_totals(schedule.step_packs(step))
            refs = () if pack == FILLER else self.samples(planned, pack)
            yield PackTask(epoch, step, refs, totals)

    def samples(self, planned: EpochPlan, pack: int) -> tuple[SampleRef, ...]:
        """The samples of a pack."""
        return tuple(self._ref(planned, place) for place in planned.samples(pack))

    def _ref(self, planned: EpochPlan, place: int) -> SampleRef:
        number = int(planned.datasets[place])
        data, row = self.datasets[number], int(planned.rows[place])
        index, at = data.index, int(data.rows[row])
        return SampleRef(
            dataset=number,
            path=index.files[index.file_numbers[at]],
            row_group=int(index.row_groups[at]),
            row=int(index.rows[at]),
            uid=index.uids[at].as_py(),
            counter=int(data.planned.counters[row]),
            visit=int(planned.visits[place]),
            length=int(planned.lengths[place]),
        )
