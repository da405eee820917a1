"""The four row formats, in the encodings of the published data sets."""

import json
import os
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.data.images.decode import ImageError, ImageLimits
from mathcanvas_lightning.data.rows.left_out import row_boundary
from mathcanvas_lightning.data.rows.readers import (
    COLUMNS,
    READERS,
    NoSampleError,
    Role,
    RowFormat,
    read_edit,
    read_interleaved,
    read_t2i,
    read_vlm,
)
from mathcanvas_lightning.data.sequence.encode import measure
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError
from tests.conftest import png
from tests.data.make_rows import interleaved_row

PNG = png()


def contents(sample: Any) -> list[tuple[Role, Any]]:
    return [(e.role, "image" if e.content == PNG else e.content) for e in sample.elements]


def test_interleaved_as_lists_of_structs_with_float_indexes() -> None:
    row = {
        "id": "x",
        "answer": "6",
        "question_interleave": [
            {"type": "text", "content": " Area? ", "index": None},
            {"type": "image", "content": None, "index": 0.0},
        ],
        "solution_interleave": [
            {"type": "text", "content": "Draw.", "index": float("nan")},
            {"type": "image", "content": None, "index": 0.0},
            {"type": "text", "content": "  ", "index": None},
        ],
        "question_images": [{"bytes": PNG}],
        "solution_images": [{"bytes": PNG, "path": "a.png"}],
        "subject": "geometry",
    }
    assert contents(read_interleaved(row, "p")) == [
        (Role.PROMPT_TEXT, "Area?"),
        (Role.CONTEXT_IMAGE, "image"),
        (Role.ANSWER_TEXT, "Draw."),
        (Role.DRAWN_IMAGE, "image"),
    ]


@pytest.mark.parametrize("missing", ["answer", "question", "solution"])
def test_interleaved_rows_with_missing_parts(missing: str) -> None:
    row = interleaved_row(0)
    row |= (
        {"answer": None}
        if missing == "answer"
        else {f"{missing}_interleave": "[]", f"{missing}_images": []}
    )
    with pytest.raises(NoSampleError, match=missing):
        read_interleaved(row, "p")


@pytest.mark.parametrize(
    ("columns", "captions"),
    [
        ({"caption": " One. "}, [" One. "]),  # MathCanvas-Imagen; not stripped
        ({"captions": ["One.", "Two."]}, ["One.", "Two."]),
        ({"captions": json.dumps({"a": "One.", "b": "Two."})}, ["One.", "Two."]),  # BAGEL
        ({"captions": json.dumps(["One."])}, ["One."]),
        ({"captions": {"a": "One.", "b": None}}, ["One."]),
        ({"captions": "One."}, ["One."]),
        ({"caption": "One.", "captions": ["Two."]}, ["One."]),
    ],
)
@pytest.mark.parametrize("image", [PNG, {"bytes": PNG, "path": None}, {"bytes": PNG}])
def test_t2i(columns: dict[str, Any], captions: list[str], image: Any) -> None:
    sample = read_t2i({"image": image, **columns}, "p")
    assert sample.uid == "p"
    texts = [(Role.PROMPT_TEXT, caption) for caption in captions]
    assert contents(sample) == [*texts, (Role.TARGET_IMAGE, "image")]


@pytest.mark.parametrize(
    "columns",
    [
        *({}, {"caption": ""}, {"captions": []}, {"captions": "{}"}),
        *({"caption": " \n"}, {"captions": [" ", None]}),
    ],
)
def test_t2i_without_caption(columns: dict[str, Any]) -> None:
    with pytest.raises(NoSampleError, match=r"no (caption|column caption)"):
        read_t2i({"image": PNG, **columns}, "p")


@pytest.mark.parametrize("instructions", [["One.", "Two."], [["One."], ["Two.", "Deux."]]])
def test_edit(instructions: list[Any]) -> None:
    row = {"image_list": [PNG, {"bytes": PNG}, PNG], "instruction_list": instructions}
    sample = read_edit(row, "p")
    last = ["Two."] if instructions[1] == "Two." else ["Two.", "Deux."]
    assert [(e.role, e.step) for e in sample.elements] == [
        (Role.CONTEXT_IMAGE, 0),
        (Role.PROMPT_TEXT, 1),
        (Role.CONTEXT_IMAGE, 1),
        *[(Role.PROMPT_TEXT, 2)] * len(last),
        (Role.CONTEXT_IMAGE, 2),
    ]
    assert [c for r, c in contents(sample) if r == Role.PROMPT_TEXT] == ["One.", *last]


def test_vlm() -> None:
    row = {
        "id": 7,
        "image": ["a.png", "b.png"],
        "conversations": [
            {"from": "human", "value": "<image>\nWhat? <image> And this?"},
            {"from": "gpt", "value": "A box."},
            {"from": "human", "value": "Sure?"},
            {"from": "gpt", "value": "Yes."},
        ],
    }
    sample = read_vlm(row, "p")
    assert sample.uid == "7"
    assert contents(sample) == [
        (Role.SEEN_IMAGE, "a.png"),
        (Role.FIXED_TEXT, "What?"),
        (Role.SEEN_IMAGE, "b.png"),
        (Role.FIXED_TEXT, "And this?"),
        (Role.FIXED_ANSWER, "A box."),
        (Role.FIXED_TEXT, "Sure?"),
        (Role.FIXED_ANSWER, "Yes."),
    ]


def test_vlm_without_answer() -> None:
    for answer in ("", " \n"):
        turns = [{"from": "human", "value": "?"}, {"from": "gpt", "value": answer}]
        with pytest.raises(NoSampleError, match="no answer"):
            read_vlm({"conversations": turns}, "p")
        again = [*turns, turns[0], {"from": "gpt", "value": "Yes."}]
        assert len(read_vlm({"conversations": again}, "p").elements) == 4


TALK = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "!"}]


@pytest.mark.parametrize(
    ("row_format", "row", "message"),
    [
        ("t2i", {"image": None, "caption": "x"}, "NoneType"),
        ("t2i", {"image": PNG, "captions": [3]}, "3"),
        ("edit", {"image_list": [PNG, PNG], "instruction_list": []}, "0 instructions"),
        ("edit", {"image_list": [PNG, PNG], "instruction_list": [[""]]}, "no instruction"),
        ("edit", {"image_list": [PNG, PNG], "instruction_list": [" "]}, "no instruction"),
        ("edit", {"image_list": [PNG, "x"], "instruction_list": ["a"]}, r"image_list\[1\]"),
        ("vlm", {"image": [], "conversations": TALK}, "more <image> marks"),
        ("vlm", {"image": ["a", "b"], "conversations": TALK}, "2 images"),
        ("vlm", {"conversations": [{"from": "system", "value": "x"}]}, "system"),
        ("vlm", {"conversations": [{"from": "gpt", "value": None}]}, "None"),
    ],
)
def test_broken_rows(row_format: RowFormat, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        READERS[row_format](row, "shard, row 3")
    assert "shard, row 3" in str(caught.value)


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "\ud83d", "[" * 5000, '[{"type": "image", "index": NaN}]'])
    | st.just(PNG),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["from", "value", "type", "content", "index", "bytes", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


VALID: dict[RowFormat, dict[str, Any]] = {
    "interleaved": interleaved_row(3),
    "t2i": {"image": PNG, "captions": ["a", "b"]},
    "edit": {"image_list": [PNG] * 3, "instruction_list": [["a"], ["b", "c"]]},
    "vlm": {
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image> hi"}, {"from": "gpt", "value": "x"}],
    },
}
NUM_ROWS = int(os.environ.get("MATHCANVAS_FUZZ_ROWS", "40"))
"""Rows that each reader gets in `test_any_row_is_read_or_is_an_error_of_ours`."""


@pytest.mark.parametrize("row_format", sorted(READERS))
@settings(deadline=None, max_examples=NUM_ROWS, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_row_is_read_or_is_an_error_of_ours(row_format: RowFormat, data: st.DataObject) -> None:
    """Arbitrary rows, and valid ones with arbitrary changes, as far as the index needs them."""
    columns = st.sampled_from([*COLUMNS[row_format], "other"])
    base = data.draw(st.sampled_from([{}, VALID[row_format]]))
    row = base | data.draw(st.dictionaries(columns, JSON_VALUES, max_size=4))
    try:
        sample = READERS[row_format](row, "shard.parquet, row 3")
        for text in (sample.uid, *(e.content for e in sample.elements)):
            assert isinstance(text, bytes) or text.encode().decode() == text
        with row_boundary("shard.parquet, row 3"):
            measure(sample, TextTokenizer(None), ImageLimits(), lambda e: _file(e.content))
    except (NoSampleError, ImageError):
        return
    except DataError as error:
        assert "shard.parquet, row 3" in error.place


def _file(content: str | bytes) -> bytes:
    return content if isinstance(content, bytes) else PNG


@pytest.mark.parametrize(
    ("row_format", "row", "found"),
    [
        ("vlm", {"conversations": ["hello"]}, "'hello'"),
        ("vlm", {"conversations": "hello"}, "'hello'"),
        ("vlm", {"conversations": [], "image": 5}, "found 5"),
        ("vlm", {"id": "\ud800", "conversations": [{"from": "gpt", "value": "x"}]}, "surrogate"),
        ("vlm", {"conversations": [{"from": "gpt", "value": "caf\ud83d"}]}, "surrogate"),
        ("edit", {"image_list": {"bytes": b""}, "instruction_list": []}, "image_list"),
        ("edit", {"image_list": [b"", b""]}, "no instruction_list"),
        ("edit", {"images": [b"", b""]}, "no image_list and no instruction_list"),
        ("vlm", {"messages": []}, "no conversations"),
        ("t2i", {"image": b"", "captions": 5}, "captions: found 5"),
    ],
)
def test_what_is_wrong_with_a_row(row_format: Any, row: dict[str, Any], found: str) -> None:
    with pytest.raises(DataError, match=re.escape(found)):
        READERS[row_format](row, "place")


def test_instructions_may_be_json() -> None:
    row = {"image_list": [PNG, PNG], "instruction_list": '[["Make it red."]]'}
    texts = [e.content for e in read_edit(row, "place").elements if e.role == Role.PROMPT_TEXT]
    assert texts == ["Make it red."]
