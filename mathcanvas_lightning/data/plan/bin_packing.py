"""Fills packs with samples: nearly full packs, in little time."""

from bisect import bisect_right

import numpy as np

from mathcanvas_lightning.data.sequence.roles import Ints

SLACK_PARTS = 500
"""The search stops once the free space is at most 1 / SLACK_PARTS of the capacity."""
NUM_PAIRS = 24
NUM_TRIPLES = 12
"""Number of candidates for the first of two samples, and for the first and second of three."""
NUM_FEW_TRIPLES = 6
MAX_MISSES = 8
"""While the searches for three samples that missed the slack outnumber those that met it by more
than this, only NUM_FEW_TRIPLES candidates are tried: with such lengths, more of them hardly fill
the packs better."""
FINISH_MEANS = 3.2
"""Once the free space is below this many mean lengths, search for the 1-3 samples that fill it
best."""


def fill_packs(lengths: Ints, capacity: int, random: np.random.Generator) -> list[list[int]]:
    """Fills packs one after the other: random samples first, then those that fill the rest best.

    Best-fit decreasing packs the long samples together; with 3,400 tokens per drawing, no sample is
    short enough for the gaps. With random samples, the remaining ones keep a mixture of lengths, so
    for nearly every pack two or three samples fill it. The last packs have the most free space.

    Args:
        lengths: [N] tokens of the samples, none over the capacity.
        capacity: Tokens that a pack may hold.
        random: Random generator.

    Returns:
        For each pack, indexes into `lengths`; each index occurs once.
    """
    order = np.argsort(lengths, kind="stable")
    pool = _Pool(lengths[order].tolist(), order.tolist(), capacity // SLACK_PARTS)
    choices = iter(random.random(len(lengths)).tolist())
    finish = FINISH_MEANS * float(lengths.mean()) if len(lengths) else 0.0
    packs = []
    while pool.lengths:
        pack: list[int] = []
        free = capacity
        while pool.lengths and free >= pool.lengths[0]:
            fitting = bisect_right(pool.lengths, free)
            if free > finish or not pack:
                taken: tuple[int, ...] = (int(next(choices) * fitting),)
            else:
                taken = pool.best(free, fitting - 1)
            for position in taken:
                free -= pool.lengths.pop(position)
                pack.append(pool.indexes.pop(position))
        assert pack, "a sample is longer than a pack"
        packs.append(pack)
    return packs


class _Pool:
    """Samples that are not packed yet, the shortest first."""

    def __init__(self, lengths: list[int], indexes: list[int], slack: int) -> None:
        self.lengths, self.indexes, self._slack = lengths, indexes, slack
        self._misses = 0

    def best(self, free: int, longest: int) -> tuple[int, ...]:
        """One to three samples that leave the least free space, the longest first.

        Args:
            free: Free tokens of the pack.
            longest: Position of the longest sample that fits.
        """
        chosen: tuple[int, ...] = (longest,)
        least = free - self.lengths[longest]
        if least <= self._slack:
            return chosen
        least, pair = self._pair(free, longest, NUM_PAIRS, least)
        chosen = pair or chosen
        if least <= self._slack:
            return chosen
        lengths = self.lengths
        tries = NUM_TRIPLES if self._misses <= MAX_MISSES else NUM_FEW_TRIPLES
        for first in range(longest, -1, -max(1, longest // tries)):
            rest = free - lengths[first]
            second = bisect_right(lengths, rest, 0, first) - 1
            gap, pair = self._pair(rest, second, tries, least)
            if pair:
                least, chosen = gap, (first, *pair)
                if least <= self._slack:
                    break
            # The three longest fit together: with a shorter first one, they leave more.
            if second > 0 and second == first - 1 and lengths[second - 1] + lengths[second] <= rest:
                break
        self._misses = max(0, self._misses + (1 if least > self._slack else -1))
        return chosen

    def _pair(self, free: int, longest: int, tries: int, least: int) -> tuple[int, tuple[int, ...]]:
        """The smallest free space, and the two samples that leave it if it is below `least`."""
        lengths, slack = self.lengths, self._slack
        chosen: tuple[int, ...] = ()
        for first in range(longest, 0, -max(1, longest // tries)):
            rest = free - lengths[first]
            second = bisect_right(lengths, rest, 0, first) - 1
            if second < 0:
                continue
            gap = rest - lengths[second]
            if gap < least:
                least, chosen = gap, (first, second)
                if gap <= slack:
                    break
            if second == first - 1:  # the two longest fit together, shorter ones leave more
                break
        return least, chosen
