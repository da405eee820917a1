"""Filling packs with samples as full as can be, in little time."""

from bisect import bisect_right

import numpy as np

from mathcanvas_lightning.data.sequence.roles import Ints

SLACK_PARTS = 500
"""A pack that is this part of its capacity short of full is full enough to stop searching."""
NUM_PAIRS = 24
NUM_TRIPLES = 12
"""How many samples are tried as the first of two, and as the first and the second of three."""
FINISH_MEANS = 3.2
"""Free tokens, in mean lengths, at which the last two or three of a pack are chosen."""


def fill_packs(lengths: Ints, capacity: int, random: np.random.Generator) -> list[list[int]]:
    """Fills packs one after the other: samples at random first, the last ones to match.

    Best-fit decreasing puts the long samples together, and at 3,400 tokens a drawing there is none
    short enough for the gaps they leave. Taken at random, what is left over keeps its mixture of
    lengths, so that nearly every pack finds two or three samples that fill it; those filled last
    are the emptiest.

    Args:
        lengths: [N] none over the capacity.
        capacity: Of a pack.
        random: Chooses.

    Returns:
        Positions in `lengths` by pack; each position is in one pack.
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
            for at in taken:
                free -= pool.lengths.pop(at)
                pack.append(pool.places.pop(at))
        assert pack, "a sample is longer than a pack"
        packs.append(pack)
    return packs


class _Pool:
    """Samples that are in no pack yet, the shortest first."""

    def __init__(self, lengths: list[int], places: list[int], slack: int) -> None:
        self.lengths, self.places, self._slack = lengths, places, slack

    def best(self, free: int, longest: int) -> tuple[int, ...]:
        """One to three samples that leave the least of some free tokens, the longest first.

        Args:
            free: Tokens.
            longest: Place of the longest sample that fits.
        """
        chosen: tuple[int, ...] = (longest,)
        least = free - self.lengths[longest]
        if least <= self._slack:
            return chosen
        least, pair = self._pair(free, longest, NUM_PAIRS, least)
        chosen = pair or chosen
        if least <= self._slack:
            return chosen
        for first in range(longest, -1, -max(1, longest // NUM_TRIPLES)):
            rest = free - self.lengths[first]
            second = bisect_right(self.lengths, rest, 0, first) - 1
            gap, pair = self._pair(rest, second, NUM_TRIPLES, least)
            if pair:
                least, chosen = gap, (first, *pair)
                if least <= self._slack:
                    break
        return chosen

    def _pair(self, free: int, longest: int, tries: int, least: int) -> tuple[int, tuple[int, ...]]:
        """Two samples that leave less than `least` tokens, if there are any; and the least."""
        lengths = self.lengths
        chosen: tuple[int, ...] = ()
        for first in range(longest, 0, -max(1, longest // tries)):
            rest = free - lengths[first]
            second = bisect_right(lengths, rest, 0, first) - 1
            if second >= 0 and rest - lengths[second] < least:
                least, chosen = rest - lengths[second], (first, second)
                if least <= self._slack:
                    break
        return least, chosen
