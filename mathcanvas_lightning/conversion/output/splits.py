"""Assigns rows to splits: a pure function of the seed and the position among the kept rows."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate, count
from math import ceil, isclose
from types import MappingProxyType

import numpy as np

from mathcanvas_lightning.errors import ConfigError

WHOLE: Mapping[str, float] = MappingProxyType({"": 1.0})
"""No splits: all rows are written to the output folder itself."""
MAX_BLOCK_ROWS = 1000
GOLDEN_RATIO = 0.6180339887498949


def parse_split(text: str | None) -> Mapping[str, float]:
    """Parses a text such as `train=0.9,test=0.1`.

    Args:
        text: Names and fractions; None for no splits.

    Returns:
        Split name -> fraction.

    Raises:
        ConfigError: If a name is repeated or not valid as a folder, or the sum is not 1.
    """
    if text is None:
        return WHOLE
    try:
        pairs = [(name.strip(), float(value)) for name, value in _pairs(text)]
    except ValueError:
        raise _bad_split(text, "not a list of name=fraction") from None
    names = [name for name, _ in pairs]
    # Not every disk keeps train and Train apart.
    if len({name.casefold() for name in names}) < len(names) or not all(map(is_folder_name, names)):
        raise _bad_split(text, "a repeated name, or one that is not valid as a folder")
    if any(not 0 < fraction <= 1 for _, fraction in pairs):
        raise _bad_split(text, "a fraction outside 0..1")
    total = sum(fraction for _, fraction in pairs)
    if not isclose(total, 1.0, abs_tol=1e-6):
        raise _bad_split(text, f"a sum of {total:g}")
    return MappingProxyType(dict(pairs))


def is_folder_name(name: str) -> bool:
    """Whether a split may have this name: letters, digits, dashes and underscores."""
    return name.replace("-", "_").isidentifier()


def assign_splits(fractions: Mapping[str, float], seed: int) -> Iterator[str]:
    """Yields the split of the first kept row, the second, ...

    Stratified sampling: each block of rows is spread evenly over 0..1, in random order. So every
    range of rows has the given fractions, even in a small data set, and appended rows don't
    change the splits of earlier rows.

    Args:
        fractions: Split name -> fraction, as returned by `parse_split`.
        seed: Seed of the random order.

    Yields:
        Split names, endlessly.
    """
    names = list(fractions)
    bounds = list(accumulate(fractions.values()))[:-1]
    block_rows = min(MAX_BLOCK_ROWS, ceil(1 / min(fractions.values()) - 1e-9))
    rng = np.random.Generator(np.random.Philox(seed))
    for block in count():
        # Offsets that step by the golden ratio also average out the blocks' rounding errors.
        offset = (0.5 + block * GOLDEN_RATIO) % 1.0
        for slot in rng.permutation(block_rows):
            yield names[bisect_right(bounds, (slot + offset) / block_rows)]


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for item in text.split(","):
        name, value = item.split("=")
        yield name, value


def _bad_split(text: str, found: str) -> ConfigError:
    return ConfigError(
        "--split",
        found=f"{text!r}: {found}",
        wanted="names and fractions that sum to 1",
        remedy="Write for instance train=0.9,test=0.1.",
    )
