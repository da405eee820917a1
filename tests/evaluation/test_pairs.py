"""The verdicts on the golden table of answers and references."""

from collections.abc import Iterable
from itertools import groupby

import pytest

from mathcanvas_lightning.evaluation.comparison.equivalence import compare
from mathcanvas_lightning.evaluation.extraction import extract_answers, reference_parts
from tests.evaluation.pairs import WHOLE_RESPONSES, GoldenPair, read_pairs

PAIRS = read_pairs()
KINDS = {kind: list(pairs) for kind, pairs in groupby(PAIRS, key=lambda pair: pair.kind)}


def verdict(pair: GoldenPair) -> bool:
    if pair.kind not in WHOLE_RESPONSES:
        return compare(pair.given, pair.expected, pair.options).is_right
    expected = reference_parts(pair.expected)
    given = extract_answers(pair.given, len(expected))
    return all(compare(a, b, pair.options).is_right for a, b in zip(given, expected, strict=True))


def wrong_verdicts(pairs: Iterable[GoldenPair]) -> list[GoldenPair]:
    return [pair for pair in pairs if verdict(pair) != pair.is_right]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_verdicts(kind: str) -> None:
    assert wrong_verdicts(KINDS[kind]) == []


def test_verdicts_on_a_part_of_each_kind() -> None:
    assert wrong_verdicts(pair for pairs in KINDS.values() for pair in pairs[::120]) == []


def test_table_covers_the_kinds_of_answers() -> None:
    assert len(PAIRS) > 1000
    assert {"points", "unions", "lists", "roots", "units", "matrices", "choices"} <= KINDS.keys()
    assert sum(not pair.is_right for pair in PAIRS) > len(PAIRS) / 3
