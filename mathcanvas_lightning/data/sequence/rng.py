"""Random draws that depend on nothing but what they are for.

Each element of a data set (a text or an image of a row) has a counter; the draws of one visit to
it are what Philox gives at that counter (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", 2011). So they can be had for one element or for all, in any process, in any order.
"""

import hashlib
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox

DROP, DROP_VIT, CHOICE, EXTRA = range(4)
"""Columns of the draws of an element: drop its text or clean latents, drop its ViT image, choose
among captions, instructions and first images, and what the element's role makes of the last one:
the last image of an edit, or the timestep of a drawing."""
NUM_DRAWS = 4  # what Philox gives at one counter

_NORMAL = NormalDist()


def hash64(*parts: object) -> int:
    """A 64-bit hash of anything with a stable `repr`, equal in all processes."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def element_draws(stream: int, visit: int, start: int, stop: int) -> npt.NDArray[np.float64]:
    """The draws of consecutive elements.

    Args:
        stream: Of the seed and the data set: `hash64` of both.
        visit: Counts the visits to the data set, over all epochs.
        start: First element.
        stop: One after the last.

    Returns:
        [stop - start, 4] in [0, 1).
    """
    bits = Philox(key=np.array([stream, visit], dtype=np.uint64), counter=start)
    return Generator(bits).random((stop - start, NUM_DRAWS))


def generator(*parts: object) -> Generator:
    """A generator for one purpose."""
    return Generator(Philox(key=np.array([hash64(*parts), 0], dtype=np.uint64)))


def normal(uniform: float) -> float:
    """The standard normal that a uniform draw stands for, by the inverse distribution function."""
    return _NORMAL.inv_cdf(max(uniform, 2.0**-53))
