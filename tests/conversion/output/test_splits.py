"""Splits: exact fractions in any range of rows, determined only by the seed."""

from collections import Counter
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.conversion.output.splits import WHOLE, assign_splits, parse_split
from mathcanvas_lightning.errors import ConfigError


@given(
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(0, 3000),
    st.integers(0, 2**63),
)
def test_every_range_has_the_given_fractions(weights: list[int], num_rows: int, seed: int) -> None:
    fractions = {f"s{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    counts = Counter(islice(assign_splits(fractions, seed), num_rows))
    block = 1 / min(fractions.values()) + 2
    for name, fraction in fractions.items():
        assert abs(counts[name] - num_rows * fraction) <= block * fraction + 3


def test_one_of_ten_rows_is_for_testing() -> None:
    for seed in range(20):
        parts = list(islice(assign_splits(parse_split("train=0.9,test=0.1"), seed), 30))
        assert [parts[i : i + 10].count("test") for i in (0, 10, 20)] == [1, 1, 1]


def test_same_seed_same_splits_and_positions_vary() -> None:
    fractions = parse_split("train=0.9,test=0.1")
    assigned = {seed: tuple(islice(assign_splits(fractions, seed), 500)) for seed in (1, 1, 2)}
    assert assigned[1] == tuple(islice(assign_splits(fractions, 1), 500))
    assert assigned[1] != assigned[2]
    positions = {i % 10 for i, part in enumerate(assigned[1]) if part == "test"}
    assert len(positions) > 5


def test_no_split() -> None:
    assert parse_split(None) is WHOLE
    assert set(islice(assign_splits(WHOLE, 0), 10)) == {""}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "train",
        "train=x",
        "train=0.9",
        "train=1.5,test=-0.5",
        "a=0.5,A=0.5",
        "a=0.5,a=0.5",
        "../a=1",
        "a/b=1",
    ],
)
def test_bad_split(text: str) -> None:
    with pytest.raises(ConfigError, match="--split"):
        parse_split(text)
