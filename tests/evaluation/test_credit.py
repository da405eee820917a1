"""Credits against numbers computed by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.evaluation.credit import CREDITS, part_weights, wilson_interval

PUBLISHED = [
    (1.0,),
    (0.4348, 0.5652),
    (0.2506, 0.3258, 0.4236),
    (0.1616, 0.2101, 0.2732, 0.3551),
]
VERDICTS = [[True], [False, True], [True, True, False], [True, True], [False]]
EXPECTED = {
    "accuracy": (1 + 1 / 2 + 2 / 3 + 1 + 0) / 5,
    "complete": 2 / 5,
    "weighted": (1 + 0.5652 + 0.5764 + 1 + 0) / 5,
}


@pytest.mark.parametrize("weights", PUBLISHED)
def test_weights_are_the_published_ones(weights: tuple[float, ...]) -> None:
    assert part_weights(len(weights)) == pytest.approx(weights, abs=5e-5)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_credits_are_shares(parts: list[bool]) -> None:
    found = {name: credit(parts) for name, credit in CREDITS.items()}
    assert all(0 <= value <= 1 + 1e-12 for value in found.values())
    assert found["complete"] == float(all(parts)) <= found["weighted"] + 1e-12
    if len(parts) == 1 or all(parts) or not any(parts):
        assert found["accuracy"] == found["complete"] == pytest.approx(found["weighted"])


def test_interval() -> None:
    # Published example: 10 of 20.
    assert wilson_interval(0.5, 20) == pytest.approx((0.2993, 0.7007), abs=1e-4)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(0.0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("name", "mean"), EXPECTED.items())
def test_means(name: str, mean: float) -> None:
    shares = [CREDITS[name](parts) for parts in VERDICTS]
    assert sum(shares) / len(shares) == pytest.approx(mean, abs=1e-4)
