"""Credits and metrics against numbers computed by hand, in one process and in two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import distributed

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.evaluation.credit import CREDITS, part_weights, wilson_interval
from mathcanvas_lightning.evaluation.metrics import (
    AnswerAccuracy,
    CompleteAccuracy,
    GroupedAccuracy,
    WeightedAccuracy,
)
from tests.ranks import run_ranks

PUBLISHED = [
    (1.0,),
    (0.4348, 0.5652),
    (0.2506, 0.3258, 0.4236),
    (0.1616, 0.2101, 0.2732, 0.3551),
]
VERDICTS = [[True], [False, True], [True, True, False], [True, True], [False]]
GROUPS = ["algebra", "geometry", "geometry", "algebra", "logic"]
EXPECTED = {
    "accuracy": (1 + 1 / 2 + 2 / 3 + 1 + 0) / 5,
    "complete": 2 / 5,
    "weighted": (1 + 0.5652 + 0.5764 + 1 + 0) / 5,
}
METRICS = {
    "accuracy": AnswerAccuracy,
    "complete": CompleteAccuracy,
    "weighted": WeightedAccuracy,
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


@pytest.mark.parametrize("name", METRICS)
def test_metrics(name: str) -> None:
    metric = METRICS[name]()
    batch = metric(VERDICTS[:2])  # forward returns the value of the batch
    assert float(batch) == pytest.approx((1 + {"complete": 0}.get(name, _second(name))) / 2)
    metric.update(VERDICTS[2:])
    assert float(metric.compute()) == pytest.approx(EXPECTED[name], abs=1e-4)
    metric.reset()
    metric.update(torch.tensor([True, False, True, True]))
    assert float(metric.compute()) == 0.75
    metric.update(torch.tensor([[1, 1], [0, 0]]))
    assert float(metric.compute()) == pytest.approx(4 / 6)


def _second(name: str) -> float:
    return CREDITS[name]([False, True])


def test_groups() -> None:
    metric = GroupedAccuracy(["algebra", "geometry", "logic", "unused"], "complete")
    metric.update(VERDICTS, GROUPS)
    found = {group: float(value) for group, value in metric.compute().items()}
    assert found == {"algebra": 1.0, "geometry": 0.0, "logic": 0.0}
    metric.update([True], ["logic"])
    assert float(metric.compute()["logic"]) == 0.5


def test_unknown_and_duplicate_groups_are_refused() -> None:
    with pytest.raises(ConfigError, match="each once"):
        GroupedAccuracy(["a", "a"])
    with pytest.raises(ConfigError, match="'b'"):
        GroupedAccuracy(["a"]).update([True], ["b"])


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    run_ranks(2, tmp_path, _work, output=tmp_path)
    results = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert results[0] == results[1]
    plain, grouped = results[0]
    assert plain == pytest.approx(EXPECTED, abs=1e-4)
    assert grouped == pytest.approx({"algebra": 1.0, "geometry": 7 / 12, "logic": 0.0})


def _work(output: Path) -> None:
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    mine = slice(0, 2) if rank == 0 else slice(2, None)  # ranks of unequal shares
    plain: dict[str, Any] = {}
    for name, kind in METRICS.items():
        metric = kind()
        metric.update(VERDICTS[mine])
        plain[name] = float(metric.compute())
    grouped = GroupedAccuracy(sorted(set(GROUPS)))
    grouped.update(VERDICTS[mine], GROUPS[mine])
    values = {group: float(value) for group, value in grouped.compute().items()}
    torch.save((plain, values), output / f"{rank}.pt")
    distributed.destroy_process_group()
