"""Rows in every encoding give the same examples, and broken rows are refused."""

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.data.rows.schema import (
    ImageSegment,
    InterleavedExample,
    TextSegment,
    example_from_row,
    row_from_example,
)
from mathcanvas_lightning.data.rows.shards import iter_examples
from mathcanvas_lightning.errors import DataError

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).map(str.strip).filter(bool)
SEGMENTS = st.lists(
    st.builds(TextSegment, text=TEXT)
    | st.builds(ImageSegment, data=st.binary(), path=st.none() | TEXT)
).map(tuple)
EXAMPLES = st.builds(
    InterleavedExample,
    uid=TEXT,
    question=SEGMENTS,
    solution=SEGMENTS,
    answer=TEXT,
    extras=st.dictionaries(st.sampled_from(["level", "subject"]), TEXT | st.integers()),
)


@pytest.mark.slow
@given(EXAMPLES, st.sampled_from(["json", "struct"]))
def test_row_and_back(example: InterleavedExample, encoding: Any) -> None:
    row = row_from_example(example, encoding)
    assert example_from_row(row, place="here") == example


@pytest.mark.slow
@given(EXAMPLES)
def test_struct_items_are_all_numbered(example: InterleavedExample) -> None:
    row = row_from_example(example, "struct")
    for section in ("question", "solution"):
        for kind in ("text", "image"):
            indexes = [i["index"] for i in row[f"{section}_interleave"] if i["type"] == kind]
            assert indexes == list(range(len(indexes)))


def row(**columns: Any) -> dict[str, Any]:
    return {
        "id": "r1",
        "answer": "4",
        "question_interleave": [{"type": "image", "index": 0}, {"type": "text", "content": " x "}],
        "solution_interleave": [],
        "question_images": [b"data"],
        "solution_images": None,
    } | columns


@pytest.mark.parametrize(
    "image", [b"data", {"bytes": b"data"}, {"bytes": b"data", "path": "a.png"}]
)
@pytest.mark.parametrize("index", [0, 0.0])
@pytest.mark.parametrize("encode", [list, json.dumps])
def test_published_encodings(image: Any, index: float, encode: Any) -> None:
    items = encode([{"type": "image", "index": index}, {"type": "text", "content": " x "}])
    example = example_from_row(row(question_interleave=items, question_images=[image]), place="p")
    first, second = example.question
    assert isinstance(first, ImageSegment)
    assert first.data == b"data"
    assert second == TextSegment(text="x")


def test_task_id_is_an_id() -> None:
    assert example_from_row(row(id=None, task_id=7), place="p").uid == "7"
    assert example_from_row(row(id=None), place="file#3").uid == "file#3"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"question_interleave": "[{"}, "isn't JSON"),
        ({"question_interleave": {"type": "text"}}, "array of items"),
        ({"question_interleave": ["x"]}, "item of type text or image"),
        ({"question_interleave": [{"type": "video"}]}, "item of type text or image"),
        ({"question_interleave": [{"type": "text", "content": 5}]}, "a string"),
        ({"question_interleave": [{"type": "image", "index": 1}]}, "an index below 1"),
        ({"question_interleave": [{"type": "image", "index": None}]}, "an index below 1"),
        ({"question_interleave": [{"type": "image", "index": 0.5}]}, "an index below 1"),
        ({"question_interleave": [{"type": "image", "index": True}]}, "an index below 1"),
        ({"question_interleave": []}, "each of 1 images once"),
        ({"question_images": [None]}, "NoneType"),
        ({"question_images": [{"path": "a.png"}]}, "NoneType"),
    ],
)
def test_broken_rows_name_the_row(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        example_from_row(row(**columns), place="file.parquet#3")
    assert "file.parquet#3" in str(caught.value)
    assert "r1" in str(caught.value)


def test_missing_column() -> None:
    with pytest.raises(DataError, match="solution_images"):
        example_from_row({k: v for k, v in row().items() if k != "solution_images"}, place="p")


def test_reference_rows_are_read(golden: Path) -> None:
    path = golden / "rows.parquet"
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = pq.read_table(path).to_pylist()
    for example, source in zip(iter_examples(path), rows, strict=True):
        assert example.uid == source["id"]
        assert example.answer == source["answer"]
        images = [*source["question_images"], *source["solution_images"]]
        assert [image.data for image in example.images] == images


@pytest.mark.parametrize(
    "change",
    [
        {"question_interleave": '[{"type": "image", "index": NaN}]'},
        {"question_interleave": '[{"type": "image", "index": Infinity}]'},
        {"question_interleave": "[" * 100_000},
        {"question_images": {"bytes": b"", "path": None}},
        {"question_images": b""},
        {"answer": {"text": "A"}},
    ],
)
def test_broken_rows_are_errors_of_ours(change: dict[str, Any]) -> None:
    row = {"id": "7", "answer": "A", "solution_interleave": None, "solution_images": None}
    row |= {"question_interleave": "[]", "question_images": []}
    assert example_from_row(row, place="here").uid == "7"
    with pytest.raises(DataError, match="here"):
        example_from_row(row | change, place="here")


@pytest.mark.parametrize(("answer", "read"), [(float("nan"), ""), (["A", "B"], "A, B"), (3, "3")])
def test_answers_that_are_not_texts(answer: Any, read: str) -> None:
    row = dict.fromkeys(("id", "question_interleave", "solution_interleave"))
    row |= dict.fromkeys(("question_images", "solution_images")) | {"answer": answer}
    assert example_from_row(row, place="here").answer == read
    assert example_from_row(row | {"id": float("nan")}, place="here").uid == "here"
