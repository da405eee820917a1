"""Two models on the same records: counts, interval and test of the difference."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.paired import PairedDifference, compare_scores


def write(path: Path, verdicts: dict[str, bool]) -> str:
    """Writes a file of scores."""

    def part(is_right: bool) -> dict[str, str]:
        verdict = "right" if is_right else "wrong"
        return {"extracted": "A", "expected": "A", "verdict": verdict, "how": "text"}

    records = [
        {"index": index, "uid": uid, "responses": [{"parts": [part(is_right)]}]}
        for index, (uid, is_right) in enumerate(verdicts.items())
    ]
    path.write_text(json.dumps({"records": records}))
    return str(path)


def counts(both: int, first: int, second: int, neither: int) -> PairedDifference:
    return PairedDifference(
        num_records=both + first + second + neither,
        num_first=both + first,
        num_second=both + second,
        num_first_only=first,
        num_second_only=second,
    )


def test_records_are_paired_by_their_ids(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", {"a": True, "b": True, "c": False, "d": True})
    other = write(tmp_path / "other.json", {"d": False, "c": False, "b": True, "a": False})
    assert compare_scores(one, other) == counts(1, 2, 0, 1)
    assert compare_scores(other, one).difference == -0.5


def test_published_example() -> None:
    """Agresti, Categorical Data Analysis: approval of the prime minister, 794, 150, 86, 570."""
    found = counts(794, 150, 86, 570)
    assert found.difference == pytest.approx(0.04)
    assert found.interval == pytest.approx((0.021, 0.059), abs=1e-3)
    assert found.p_value == pytest.approx(3.7e-5, rel=0.1)


@given(*(st.integers(0, 60) for _ in range(4)))
def test_interval_and_test_are_symmetric(a: int, b: int, c: int, d: int) -> None:
    if a + b + c + d == 0:
        return
    found, mirrored = counts(a, b, c, d), counts(a, c, b, d)
    low, high = found.interval
    assert -1 <= low <= found.difference <= high <= 1
    assert mirrored.interval == pytest.approx((-high, -low))
    assert 0 < found.p_value == mirrored.p_value <= 1
    assert found.p_value == 1.0 or b != c


def test_other_records_are_refused(tmp_path: Path) -> None:
    one = write(tmp_path / "one.json", {"a": True, "b": True})
    other = write(tmp_path / "other.json", {"a": True, "c": True})
    with pytest.raises(InputError, match="2 records in only one of them, such as b"):
        compare_scores(one, other)
    empty = write(tmp_path / "empty.json", {})
    with pytest.raises(InputError, match="no records"):
        compare_scores(empty, empty)
    with pytest.raises(InputError, match="a file that mathcanvas score wrote"):
        compare_scores(one, str(tmp_path / "absent.json"))
