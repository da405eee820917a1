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
    left, indexes = pool.lengths, pool.indexes
    choices = iter(random.random(len(lengths)).tolist())
    finish = FINISH_MEANS * float(lengths.mean()) if left else 0.0
    packs = []
    while left:
        free = capacity
        pack: list[int] = []
        while not pack or (left and free > finish and free >= left[0]):
            fitting = len(left) if left[-1] <= free else bisect_right(left, free)
            position = int(next(choices) * fitting)
            free -= left.pop(position)
            pack.append(indexes.pop(position))
        while left and free >= left[0]:
            for position in pool.best(free, bisect_right(left, free) - 1):
                free -= left.pop(position)
                pack.append(indexes.pop(position))
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
        least = free - self.lengths[longest]
        chosen: tuple[int, ...] = (longest,)
        if least > self._slack:
            least, pair = self._pair(free, longest, longest // NUM_PAIRS or 1, least)
            chosen = pair or chosen
        if least > self._slack:
            least, triple = self._triple(free, longest, least)
            chosen = triple or chosen
            self._misses = max(0, self._misses + (1 if least > self._slack else -1))
        return chosen

    def _triple(self, free: int, longest: int, least: int) -> tuple[int, tuple[int, ...]]:
        """The smallest free space, and the three samples that leave it if it is below `least`."""
        lengths = self.lengths
        tries = NUM_TRIPLES if self._misses <= MAX_MISSES else NUM_FEW_TRIPLES
        chosen: tuple[int, ...] = ()
        shortest_two = lengths[0] + lengths[1] if longest else 0
        for first in range(longest, 1, -(longest // tries or 1)):
            rest = free - lengths[first]
            if rest < shortest_two:
                continue
            second = bisect_right(lengths, rest, 0, first) - 1
            gap, pair = self._pair(rest, second, second // tries or 1, least)
            if pair:
                least, chosen = gap, (first, *pair)
                if gap <= self._slack:
                    break
            # The three longest fit together: with a shorter first one, they leave more.
            if second == first - 1 and lengths[second - 1] + lengths[second] <= rest:
                break
        return least, chosen

    def _pair(self, free: int, longest: int, step: int, least: int) -> tuple[int, tuple[int, ...]]:
        """The smallest free space, and the two samples that leave it if it is below `least`."""
        lengths = self.lengths
        shortest = lengths[0]
        chosen: tuple[int, ...] = ()
        second = 0
        for first in range(longest, 0, -step):
            rest = free - lengths[first]
            if rest < shortest:
                continue
            gap = rest - lengths[first - 1]
            if gap >= 0:  # the two longest fit together, shorter ones leave more
                return (gap, (first, first - 1)) if gap < least else (least, chosen)
            second = bisect_right(lengths, rest, second, first) - 1
            gap = rest - lengths[second]
            if gap < least:
                least, chosen = gap, (first, second)
                if gap <= self._slack:
                    break
        return least, chosen
