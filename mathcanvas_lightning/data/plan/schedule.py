"""Who takes which pack when: a pure function of the number of packs and packs per step.

With B packs an optimizer step, slot j owns a contiguous range of the packs, and a step takes one
pack of each slot. Rank r of R owns the slots r, r + R, r + 2R, ..., so another number of ranks
only regroups slots, and the packs of a step are the same for any of them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mathcanvas_lightning.data.sequence.roles import Ints

FILLER = -1


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of an epoch with one number of packs a step."""

    packs_per_step: int
    """B."""
    steps: int
    """Steps done in it."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps that are left of an epoch, for one number of packs a step."""

    packs: Ints
    """[P] numbers of the packs that are left, in order."""
    packs_per_step: int
    """B."""

    @property
    def num_steps(self) -> int:
        """Optimizer steps; the same on all ranks."""
        return -(-len(self.packs) // self.packs_per_step)

    @property
    def num_fillers(self) -> int:
        """Packs without a sample that complete the last step."""
        return self.num_steps * self.packs_per_step - len(self.packs)

    def pack(self, step: int, slot: int) -> int:
        """The pack that a slot gives to a step; `FILLER` if it has none left."""
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
            rank: From 0.
            num_ranks: Divides the packs a step.
            first_step: Where to begin.

        Yields:
            (step, pack), `packs_per_step / num_ranks` times a step.
        """
        assert self.packs_per_step % num_ranks == 0
        for step in range(first_step, self.num_steps):
            for slot in range(rank, self.packs_per_step, num_ranks):
                yield step, self.pack(step, slot)

    def after(self, steps: int, packs_per_step: int) -> "Schedule":
        """What is left after some steps, for another number of packs a step."""
        taken = [pack for step in range(steps) for pack in self.step_packs(step)]
        left = self.packs[~np.isin(self.packs, taken)]
        return Schedule(left, packs_per_step)


def schedule(num_packs: int, segments: Sequence[Segment], packs_per_step: int) -> Schedule:
    """The schedule of an epoch that was begun with other numbers of packs a step.

    Args:
        num_packs: Of the epoch.
        segments: What was done so far, without the stretch that begins now.
        packs_per_step: From now on.

    Returns:
        What is left.
    """
    left = Schedule(np.arange(num_packs), packs_per_step)
    for number, segment in enumerate(segments):
        following = (
            segments[number + 1].packs_per_step if number + 1 < len(segments) else packs_per_step
        )
        left = Schedule(left.packs, segment.packs_per_step).after(segment.steps, following)
    return left
