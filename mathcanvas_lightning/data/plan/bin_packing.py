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
SECTION_BITS = 8
"""Number of last bits that lengths of one section differ in, see `_ceilings`."""

Choice = tuple[int, tuple[int, ...]]
"""Free tokens that samples leave, and the positions of these samples, the longest first."""


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
    # A stable sort of 16-bit numbers takes a twentieth of the time.
    order = np.argsort(lengths.astype(np.min_scalar_type(capacity)), kind="stable")
    ceilings = _ceilings(lengths[order], capacity)
    left, indexes = lengths[order].tolist(), order.tolist()  # not packed yet, the shortest first
    choices = iter(random.random(len(lengths)).tolist())
    finish = FINISH_MEANS * float(lengths.mean()) if left else 0.0
    slack, misses = capacity // SLACK_PARTS, 0
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
            longest = bisect_right(left, free) - 1
            gap = free - left[longest]
            chosen: tuple[int, ...] = (longest,)
            if gap > slack:
                gap, chosen = _pair(left, ceilings, free, slack, (gap, chosen))
            if gap > slack:
                tries = NUM_TRIPLES if misses <= MAX_MISSES else NUM_FEW_TRIPLES
                best = (gap, chosen)
                gap, chosen = _triple(left, ceilings, free, slack, tries, longest, best)
                misses = misses + 1 if gap > slack else max(0, misses - 1)
            for position in chosen:
                del left[position]
                pack.append(indexes.pop(position))
            free = gap
        packs.append(pack)
    return packs


def _ceilings(lengths: Ints, capacity: int) -> list[int]:
    """Upper bounds of lengths: for each section, the longest length in it or in a shorter section.

    A candidate whose bound leaves too much free space needs no bisection. With long samples, these
    are most candidates. Packing a sample doesn't change the bounds; a search that meets an outdated
    bound lowers it.

    Args:
        lengths: [N] tokens of the samples, the shortest first.
        capacity: Tokens that a pack may hold.
    """
    ends = np.arange(1, (capacity >> SECTION_BITS) + 2) << SECTION_BITS
    found: list[int] = np.append(-capacity, lengths)[np.searchsorted(lengths, ends)].tolist()
    return found


def _pair(lengths: list[int], ceilings: list[int], free: int, slack: int, best: Choice) -> Choice:
    """The two samples that leave the least free space, if it is less than that of `best`.

    Args:
        lengths: Tokens of the samples, the shortest first.
        ceilings: Upper bounds of lengths by section; outdated ones are lowered.
        free: Free tokens of the pack.
        slack: Free tokens that end the search.
        best: The choice of one sample, the longest that fits.
    """
    shortest, (least, chosen) = lengths[0], best
    longest, second = chosen[0], 0
    for first in range(longest, 0, -(longest // NUM_PAIRS or 1)):
        length = lengths[first]
        rest = free - length
        if rest < shortest:
            continue
        if length <= rest:  # the next shorter one fits too, shorter pairs leave more
            gap = rest - lengths[first - 1]
            return (gap, (first, first - 1)) if gap < least else (least, chosen)
        if rest - ceilings[rest >> SECTION_BITS] >= least:
            continue
        second = bisect_right(lengths, rest, second, first) - 1
        gap = rest - lengths[second]
        if gap < least:
            least, chosen = gap, (first, second)
            if gap <= slack:
                break
        elif ceilings[rest >> SECTION_BITS] <= rest:  # outdated: that sample is packed
            ceilings[rest >> SECTION_BITS] = lengths[second]
    return least, chosen


def _triple(
    lengths: list[int],
    ceilings: list[int],
    free: int,
    slack: int,
    tries: int,
    longest: int,
    best: Choice,
) -> Choice:
    """The three samples that leave the least free space, if it is less than that of `best`.

    The inner loop is that of `_pair`; calling it would take a tenth more time for a plan.

    Args:
        lengths: Tokens of the samples, the shortest first.
        ceilings: Upper bounds of lengths by section; outdated ones are lowered.
        free: Free tokens of the pack.
        slack: Free tokens that end the search.
        tries: Number of candidates for the first and for the second sample.
        longest: Position of the longest sample that fits.
        best: The choice of one or two samples.
    """
    shortest, (least, chosen) = lengths[0], best
    shortest_two = shortest + lengths[1] if longest else 0
    for first in range(longest, 1, -(longest // tries or 1)):
        rest = free - lengths[first]
        if rest < shortest_two:
            continue
        longest_second = bisect_right(lengths, rest, 0, first) - 1
        limit, third = rest - shortest, 0
        for second in range(longest_second, 0, -(longest_second // tries or 1)):
            length = lengths[second]
            if length > limit:
                continue
            last = rest - length
            if length <= last:  # as in `_pair`
                gap = last - lengths[second - 1]
                if gap < least:
                    least, chosen = gap, (first, second, second - 1)
                break
            if last - ceilings[last >> SECTION_BITS] >= least:
                continue
            third = bisect_right(lengths, last, third, second) - 1
            gap = last - lengths[third]
            if gap < least:
                least, chosen = gap, (first, second, third)
                if gap <= slack:
                    break
            elif ceilings[last >> SECTION_BITS] <= last:
                ceilings[last >> SECTION_BITS] = lengths[third]
        if least <= slack:
            break
        # The three longest fit together: with a shorter first one, they leave more.
        if longest_second == first - 1 and lengths[first - 1] + lengths[first - 2] <= rest:
            break
    return least, chosen
