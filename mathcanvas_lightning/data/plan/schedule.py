"""Assigns packs to steps and ranks; depends only on the numbers of packs and packs per step.

With B packs per optimizer step, slot j owns a contiguous range of the packs, and a step takes one
pack of each slot. Rank r of R owns the slots r, r + R, r + 2R, ... So the packs of a step do not
depend on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mathcanvas_lightning.data.sequence.roles import Ints

FILLER = -1
"""Number of a pack without samples."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The remaining steps of an epoch, for a constant number of packs per step."""

    packs: Ints
    """[P] numbers of the remaining packs, in order."""
    packs_per_step: int
    """B, packs of an optimizer step."""

    @property
    def num_steps(self) -> int:
        """Number of optimizer steps, equal on all ranks."""
        return -(-len(self.packs) // self.packs_per_step)

    @property
    def num_fillers(self) -> int:
        """Number of packs without samples that complete the last step."""
        return self.num_steps * self.packs_per_step - len(self.packs)

    def pack(self, step: int, slot: int) -> int:
        """The pack of a slot in a step; `FILLER` if the slot has no more packs."""
        full_slots = self.packs_per_step - self.num_fillers
        start = slot * self.num_steps - max(0, slot - full_slots)
        size = self.num_steps - (slot >= full_slots)
        return int(self.packs[start + step]) if step < size else FILLER

    def step_packs(self, step: int) -> list[int]:
        """The packs of a step, by slot."""
        return [self.pack(step, slot) for slot in range(self.packs_per_step)]

    def rank_packs(
        self, rank: int, num_ranks: int, first_step: int = 0
    ) -> Iterator[tuple[int, int]]:
        """Steps and packs of one rank, in the order it trains on them.

        Args:
            rank: Rank, from 0.
            num_ranks: Number of ranks; a divisor of `packs_per_step`.
            first_step: Step to start with.

        Yields:
            (step, pack), `packs_per_step / num_ranks` times per step.
        """
        assert self.packs_per_step % num_ranks == 0
        for step in range(first_step, self.num_steps):
            for slot in range(rank, self.packs_per_step, num_ranks):
                yield step, self.pack(step, slot)

    def packs_after(self, steps: int) -> Ints:
        """The packs that remain after some steps, in order."""
        taken = [pack for step in range(steps) for pack in self.step_packs(step)]
        return self.packs[~np.isin(self.packs, taken)]


def schedule(num_packs: int, segments: Sequence[tuple[int, int]], packs_per_step: int) -> Schedule:
    """The schedule of an epoch, part of which may be done with other numbers of packs per step.

    Args:
        num_packs: Packs of the epoch.
        segments: Finished parts of the epoch: (packs per step, steps).
        packs_per_step: Packs of the steps that follow.

    Returns:
        The remaining steps.
    """
    packs: Ints = np.arange(num_packs)
    for packs_then, steps in segments:
        packs = Schedule(packs, packs_then).packs_after(steps)
    return Schedule(packs, packs_per_step)
