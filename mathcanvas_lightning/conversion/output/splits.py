"""Which split a row goes to: a pure function of seed and place among the kept rows."""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import accumulate, count
from math import ceil, isclose
from types import MappingProxyType

import numpy as np

from mathcanvas_lightning.errors import ConfigError

WHOLE: Mapping[str, float] = MappingProxyType({"": 1.0})
"""No split: one set, written to the output folder itself."""
MAX_BLOCK_ROWS = 1000
GOLDEN_RATIO = 0.6180339887498949


def parse_split(text: str | None) -> Mapping[str, float]:
    """Reads `train=0.9,test=0.1`.

    Args:
        text: Names and fractions; None for no split.

    Returns:
        Split name -> fraction.

    Raises:
        ConfigError: If a name is repeated or can't be a folder, or the fractions don't sum to 1.
    """
    if text is None:
        return WHOLE
    try:
        pairs = [(name.strip(), float(value)) for name, value in _pairs(text)]
    except ValueError:
        raise _bad_split(text, "not a list of name=fraction") from None
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names) or not all(
        name.replace("-", "_").isidentifier() for name in names
    ):
        raise _bad_split(text, "a name twice, or one that can't be a folder")
    if any(not 0 < fraction <= 1 for _, fraction in pairs):
        raise _bad_split(text, "a fraction outside 0..1")
    total = sum(fraction for _, fraction in pairs)
    if not isclose(total, 1.0, abs_tol=1e-6):
        raise _bad_split(text, f"a sum of {total:g}")
    return MappingProxyType(dict(pairs))


def assign_splits(fractions: Mapping[str, float], seed: int) -> Iterator[str]:
    """Yields the split of the first kept row, the second, ...

    Stratified sampling: rows come in blocks, and each block is spread evenly over 0..1 in a
    random order. So any stretch of the data is divided as asked, a small set too, and the
    beginning of a data set is divided the same when more rows follow.

    Args:
        fractions: Split name -> fraction, as `parse_split` gives it.
        seed: Decides everything.

    Yields:
        Split names, without end.
    """
    names = list(fractions)
    bounds = list(accumulate(fractions.values()))[:-1]
    block_rows = min(MAX_BLOCK_ROWS, ceil(1 / min(fractions.values()) - 1e-9))
    rng = np.random.Generator(np.random.Philox(seed))
    for block in count():
        # The offset walks with the golden ratio, so that the blocks' roundings even out too.
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
