"""Batches: each item once, none empty, none too large."""

from itertools import count, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.generation.requests import (
    Failure,
    GenerationRequest,
    GenerationResponse,
    Message,
)
from mathcanvas_lightning.generation.run.batching import Batching, ByLength, FixedSize


def request(number: int, length: int) -> GenerationRequest:
    messages = (Message(role="user", parts=("x" * length,)),)
    return GenerationRequest(uid=str(number), messages=messages)


@given(st.integers(0, 30), st.integers(1, 10))
def test_fixed_sizes_keep_the_order(num_items: int, batch_size: int) -> None:
    batches = list(FixedSize(batch_size)(iter(range(num_items))))
    assert [item for batch in batches for item in batch] == list(range(num_items))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert all(batches)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 5), st.integers(1, 12))
def test_windows_are_sorted_by_length(lengths: list[int], batch_size: int, window: int) -> None:
    items = [request(number, length) for number, length in enumerate(lengths)]
    batches = list(ByLength(batch_size, window)(iter(items)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    drawn = [item for batch in batches for item in batch]
    for start in range(0, len(items), window):
        part = drawn[start : start + window]
        assert {item.uid for item in part} == {item.uid for item in items[start : start + window]}
        sizes = [len(item.messages[0].text) for item in part]
        assert sizes == sorted(sizes)


def test_failures_come_first_in_their_window() -> None:
    failed = GenerationResponse(uid="f", failure=Failure(kind="picture_missing", message="gone"))
    (batch,) = ByLength()(iter([request(0, 2), failed, request(1, 1)]))
    assert [item.uid for item in batch] == ["f", "1", "0"]


@pytest.mark.parametrize("batching", [FixedSize(2), ByLength(2, 4)])
def test_items_are_read_lazily(batching: FixedSize | ByLength) -> None:
    assert len(list(islice(batching(count()), 3))) == 3


def test_sizes_are_positive() -> None:
    for make in (lambda: FixedSize(0), lambda: ByLength(0, 1), lambda: ByLength(1, 0)):
        with pytest.raises(ConfigError, match="1 or more"):
            make()


@pytest.mark.parametrize("name", ["FixedSize", "ByLength"])
def test_configured_from_yaml(name: str) -> None:
    parser = ArgumentParser()
    parser.add_argument("--batching", type=Batching)
    place = f"mathcanvas_lightning.generation.run.batching.{name}"
    config = {"class_path": place, "init_args": {"batch_size": 2}}
    batching = parser.instantiate(parser.parse_object({"batching": config})).batching
    assert [len(batch) for batch in batching(iter(range(3)))] == [2, 1]
