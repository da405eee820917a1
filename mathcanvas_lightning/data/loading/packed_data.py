"""Planned data sets, and the tasks of each rank's workers."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mathcanvas_lightning.batch import TokenGeometry
from mathcanvas_lightning.data.loading.loaded_dataset import LoadedDataset
from mathcanvas_lightning.data.loading.pack_dataset import (
    DatasetReader,
    PackDataset,
    PackTask,
    SampleRef,
)
from mathcanvas_lightning.data.loading.quarantine import Quarantine
from mathcanvas_lightning.data.plan.epoch import EpochPlan, Plan
from mathcanvas_lightning.data.plan.schedule import FILLER, Schedule
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedData:
    """Data sets with their plan and all that a loader needs."""

    datasets: tuple[LoadedDataset, ...]
    plan: Plan
    """Plan of these data sets."""
    dataset: PackDataset
    """Builds the packs."""
    quarantine: Quarantine
    """Records unreadable rows."""

    def tasks(
        self, epoch: int, schedule: Schedule, rank: int, num_ranks: int, first_step: int = 0
    ) -> Iterator[PackTask]:
        """The packs of one rank.

        Args:
            epoch: Epoch, from 0.
            schedule: Schedule of this epoch.
            rank: Rank, from 0.
            num_ranks: Number of ranks; a divisor of the packs per step.
            first_step: Step of the schedule to start with.

        Yields:
            The planned packs in the order of training.
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
        return tuple(self._ref(planned, index) for index in planned.samples(pack))

    def _ref(self, planned: EpochPlan, sample: int) -> SampleRef:
        number = int(planned.datasets[sample])
        data, row = self.datasets[number], int(planned.rows[sample])
        index, indexed_row = data.index, int(data.rows[row])
        return SampleRef(
            dataset=number,
            path=index.files[index.file_numbers[indexed_row]],
            row_group=int(index.row_groups[indexed_row]),
            row=int(index.rows[indexed_row]),
            uid=index.uids[indexed_row].as_py(),
            counter=int(data.planned.counters[row]),
            visit=int(planned.visits[sample]),
            length=int(planned.lengths[sample]),
        )


def assemble(
    loaded: Sequence[LoadedDataset],
    plan: Plan,
    tokenizer: TextTokenizer,
    geometry: TokenGeometry,
    *,
    interpolate_positions: bool,
    quarantine_file: Path,
    max_bad_fraction: float,
) -> PackedData:
    """Joins data sets, their plan and what builds their packs; lists the rows that are left out.

    Args:
        loaded: The data sets.
        plan: Plan of these data sets.
        tokenizer: Tokenizer of the texts.
        geometry: Patch sizes and position tables of the model.
        interpolate_positions: See `pack_samples`.
        quarantine_file: See `Quarantine`.
        max_bad_fraction: See `Quarantine`.

    Returns:
        All of it.

    Raises:
        DataError: If more rows are damaged than allowed.
    """
    readers = [
        DatasetReader(data.config.label, data.source, data.settings, plan.stream(number))
        for number, data in enumerate(loaded)
    ]
    dataset = PackDataset(readers, tokenizer, geometry, interpolate_positions=interpolate_positions)
    quarantine = Quarantine(
        quarantine_file,
        max_bad_fraction,
        sum(data.num_indexed for data in loaded),
        {data.config.label: data.index.digest for data in loaded},
    )
    quarantine.add([row for data in loaded for row in data.left_out])
    return PackedData(datasets=tuple(loaded), plan=plan, dataset=dataset, quarantine=quarantine)
