"""Random numbers that depend only on their purpose, not on any generator state.

Each element of a data set (a text or an image of a row) has a counter. Its random numbers in one
visit of the data set are the output of Philox at that counter (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", 2011). So any process can compute them for one element or for all, in
any order.
"""

import hashlib
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
from numpy.random import Generator, Philox

DROP, DROP_VIT, CHOICE, EXTRA = range(4)
"""Columns of `element_uniforms`. DROP: dropout of the text or the clean latents. DROP_VIT: dropout
of the ViT image. CHOICE: choice among captions, instructions and first images. EXTRA: the last
image of an edit, or the timestep of a noisy image."""
NUM_UNIFORMS = 4  # Philox returns four numbers per counter

_NORMAL = NormalDist()


def hash64(*parts: object) -> int:
    """A 64-bit hash of values with a stable `repr`, equal in all processes."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "little")


def element_uniforms(stream: int, visit: int, start: int, stop: int) -> npt.NDArray[np.float64]:
    """Uniform random numbers of consecutive elements.

    Args:
        stream: Key of the data set: a hash of the seed and its name.
        visit: Number of earlier visits to the data set, over all epochs.
        start: First element.
        stop: One after the last element.

    Returns:
        [stop - start, 4] in [0, 1).
    """
    bits = Philox(key=np.array([stream, visit], dtype=np.uint64), counter=start)
    return Generator(bits).random((stop - start, NUM_UNIFORMS))


def generator(*parts: object) -> Generator:
    """A generator for one purpose, seeded by the hash of `parts`."""
    return Generator(Philox(key=np.array([hash64(*parts), 0], dtype=np.uint64)))


def normal(uniform: float) -> float:
    """Standard normal of a uniform random number, by the inverse distribution function."""
    return _NORMAL.inv_cdf(max(uniform, 2.0**-53))
