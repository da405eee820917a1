"""Filters of records."""

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from mathcanvas_lightning.errors import ConfigError
from mathcanvas_lightning.records.filters import (
    FieldIs,
    HasImages,
    Matches,
    RecordFilter,
)
from mathcanvas_lightning.records.record import Record


def record(images: tuple[Any, ...] = (), **values: Any) -> Record:
    return Record(
        uid="x:1", position=0, index=1, query="?", images=images, values=values, digest=""
    )


@pytest.mark.parametrize(
    ("values", "found", "accepted"),
    [
        (["algebra"], "algebra", True),
        (["algebra"], "logic", False),
        (["algebra", "logic"], "logic", True),
        ([3], 3, True),
        ([3], "3", True),
        (["3"], 3, True),
        ([True], True, True),
        ([True], 1, False),
        ([None], None, True),
        ([], "x", False),
    ],
)
def test_field_is(values: list[Any], found: Any, accepted: bool) -> None:
    assert FieldIs("kind", values)(record(kind=found)) == accepted


def test_an_absent_field_is_null() -> None:
    assert FieldIs("kind", [None])(record())
    assert not FieldIs("kind", ["x"])(record())
    assert not Matches("kind", "")(record())


@pytest.mark.parametrize("wanted", [True, False])
def test_has_images(wanted: bool) -> None:
    assert HasImages(wanted)(record(("a.png",))) == wanted
    assert HasImages(wanted)(record()) != wanted


@given(st.text(max_size=5), st.text(max_size=5), st.text(max_size=5))
def test_matches_anywhere(before: str, word: str, after: str) -> None:
    assert Matches("q", re.escape(word))(record(q=before + word + after))


def test_matches_compares_numbers_as_texts_and_rejects_invalid_expressions() -> None:
    assert Matches("level", "^[45]$")(record(level=5))
    assert not Matches("level", "^[45]$")(record(level=3))
    with pytest.raises(ConfigError, match="regular expression"):
        Matches("level", "(")


def test_configured_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--filters", type=list[RecordFilter])
    place = "mathcanvas_lightning.records.filters"
    config = [
        {"class_path": f"{place}.FieldIs", "init_args": {"field": "level", "values": [4, "5"]}},
        {"class_path": f"{place}.HasImages", "init_args": {"wanted": False}},
        {"class_path": f"{place}.Matches", "init_args": {"field": "q", "regex": "^W"}},
    ]
    filters = parser.instantiate(parser.parse_object({"filters": config})).filters
    assert [accepts(record(level=4, q="Why?")) for accepts in filters] == [True] * 3
    assert [accepts(record(("a",), level=3, q="How?")) for accepts in filters] == [False] * 3
