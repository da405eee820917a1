"""Selectors, marks, pictures and conversations of the source `columns`."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.conversion.columns import Columns
from mathcanvas_lightning.conversion.columns.config import columns_from
from mathcanvas_lightning.conversion.columns.marks import (
    DEFAULT_MARKS,
    KNOWN_MARKS,
    Mark,
    split_at_marks,
)
from mathcanvas_lightning.conversion.columns.selectors import select
from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError
from mathcanvas_lightning.conversion.sources import Draft, Part, Picture
from tests.conversion.columns.samples import PNGS, data_url, picture


def parse(record: dict[str, Any], **keys: Any) -> Draft:
    config = columns_from({"question": "q", "solution": "s?", **keys}, "columns")
    return Columns(config).parse(record, SourceFiles("/data/images"))


def flat(parts: Any) -> list[str]:
    """Stripped texts, and pictures as `@path`."""
    texts = [f"@{part.path}" if isinstance(part, Picture) else part.strip() for part in parts]
    return [text for text in texts if text]


@pytest.mark.parametrize(
    ("selector", "values"),
    [
        ("a", [1]),
        ("z | a", [1]),
        ("none | a", [1]),
        ("blank?", []),
        ("z?", []),
        ("i_*", ["two", "ten"]),
        ("l[0]", ["x"]),
        ("l[-1]", ["y"]),
        ("l[1:]", [["y"]]),
        ("l[:1]", [["x"]]),
        ("l[5]", []),
        ("l[5:]", []),
        ("text[1]", [2]),
        ("o.b", [3]),
        ("d.t", [4]),
        ("o.c?", []),
        ("Final Answer", [5]),
        ("nan", []),
        ("Why? (a|b) [0]", [6]),
    ],
)
def test_selector(selector: str, values: list[Any]) -> None:
    record = {
        "a": 1,
        "none": None,
        "blank": " ",
        "i_10": "ten",
        "i_2": "two",
        "i_3": None,
        "l": ["x", "y"],
        "text": "[1, 2]",
        "o": {"b": 3},
        "d.t": 4,
        "Final Answer": 5,
        "nan": float("nan"),
        "Why? (a|b) [0]": 6,
    }
    assert [found.value for found in select(record, selector)] == values


def test_absent_column_suggests_the_nearest() -> None:
    with pytest.raises(RejectError, match="did you mean 'Question'"):
        select({"Question": "x", "n": 1}, "question")
    with pytest.raises(RejectError, match="not a list"):
        select({"x": 3}, "x[0]")


@pytest.mark.parametrize(
    ("mark", "text", "target"),
    [
        ("<image>", "<image>", ""),
        ("<image1>", "<image12>", "12"),
        ("<image1>", "<image_3>", "3"),
        ("[image_1]", "[reasoning_image_1]", "reasoning_image_1"),
        ("<image_start>[image_1]<image_end>", "<image_start>[a_1]<image_end>", "a_1"),
        ("<image_start>[image_1]<image_end>", "<image_start><image_end>", ""),
        ("<image_start>", "<image_start>", ""),
        ("![](image.png)", "![a figure](figs/a.png)", "figs/a.png"),
        (r"\{fig(\d+)\}", "{fig2}", "2"),
        ("<image>image.png</image>", "<image> a b.png </image>", "a b.png"),
        ("PICTURE", "PICTURE", ""),
    ],
)
def test_mark(mark: str, text: str, target: str) -> None:
    assert split_at_marks(f"x {text} y", [mark]) == ["x ", Mark(text, target), " y"]


@given(st.lists(st.sampled_from(["a", " ", "<image>", "<image1>", "[x_1]", "<image_start>", "("])))
def test_splitting_loses_no_character(pieces: list[str]) -> None:
    text = "".join(pieces)
    for marks in (DEFAULT_MARKS, tuple(KNOWN_MARKS), ()):
        split = split_at_marks(text, marks)
        assert "".join(p.text if isinstance(p, Mark) else p for p in split) == text
        assert len(split) % 2 == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a.png", Picture("a.png")),
        ("/data/images/b/a.png", Picture("b/a.png")),
        ("file:///data/images/a.png", Picture("a.png")),
        (picture("red"), Picture("red.png", PNGS["red"])),
        ({"bytes": None, "path": "a.png"}, Picture("a.png")),
        ({"bytes": PNGS["red"], "path": None}, Picture("p", PNGS["red"])),
        ({"url": data_url("red")}, Picture("p", PNGS["red"])),
        (PNGS["red"], Picture("p", PNGS["red"])),
        (data_url("red"), Picture("p", PNGS["red"])),
        (data_url("red").partition(",")[2], Picture("p", PNGS["red"])),
        ('["a.png"]', Picture("a.png")),
        ([None, "a.png", ""], Picture("a.png")),
    ],
)
def test_picture(value: Any, expected: Picture) -> None:
    draft = parse({"q": "x", "p": value}, question_images="p")
    assert [part for part in draft.question if isinstance(part, Picture)] == [expected]


@pytest.mark.parametrize(
    ("keys", "record", "question", "solution"),
    [
        ({}, {"q": "no mark", "s": "So."}, ["@a", "@b", "no mark"], ["So."]),
        ({"unmarked": "after"}, {"q": "x"}, ["x", "@a", "@b"], []),
        ({}, {"q": "x <image> y"}, ["@b", "x", "@a", "y"], []),
        ({}, {"q": "<image2> then <image1>"}, ["@b", "then", "@a"], []),
        ({}, {"q": "<image1> and <image1> <image>"}, ["@a", "and", "@b"], []),
        ({}, {"q": "<image>", "s": "see <image> now"}, ["@a"], ["see", "@b", "now"]),
        ({}, {"q": "x", "s": "see <image2> now"}, ["@a", "x"], ["see", "@b", "now"]),
        ({"marks": "![](image.png)"}, {"q": "![](b) or ![](c)"}, ["@a", "@b", "or", "@c"], []),
        (
            {"marks": "<image>image.png</image>"},
            {"q": "x <image>c</image>"},
            ["@a", "@b", "x", "@c"],
            [],
        ),
        ({"marks": "[image_1]"}, {"q": "x [ref_1] y"}, ["@a", "@b", "x [ref_1] y"], []),
    ],
)
def test_pictures_stand_at_their_marks(
    keys: dict[str, Any], record: dict[str, Any], question: list[str], solution: list[str]
) -> None:
    draft = parse({"p": ["a", "b"], **record}, images="p", **keys)
    assert flat(draft.question) == question
    assert flat(draft.solution) == solution


@pytest.mark.parametrize(
    ("options", "record", "question"),
    [
        ("o", {"o": ["<image1>", "2"]}, ["@b", "x", "Options:\nA:", "@a", "B: 2"]),
        ("o", {"o": "['1', '2']"}, ["@a", "@b", "x", "Options:\nA: 1\nB: 2"]),
        ("o", {"o": '{"B": "2", "A": "1"}'}, ["@a", "@b", "x", "Options:\nA: 1\nB: 2"]),
        ("o", {"o": "A. 1; B. 2"}, ["@a", "@b", "x", "A. 1; B. 2"]),
        ("o", {"o": []}, ["@a", "@b", "x"]),
        (["A", "B"], {"A": 1, "B": 2}, ["@a", "@b", "x", "Options:\nA: 1\nB: 2"]),
    ],
)
def test_options_follow_the_question(
    options: Any, record: dict[str, Any], question: list[str]
) -> None:
    draft = parse({"q": "x", "p": ["a", "b"], **record}, images="p", options=options)
    assert flat(draft.question) == question


@pytest.mark.parametrize(
    ("keys", "record"),
    [
        ({"images": "p"}, {"q": "<image> <image>", "p": "a"}),
        ({"images": "p"}, {"q": "<image3>", "p": ["a", "b"]}),
        ({}, {"q": "<image>"}),
    ],
)
def test_a_mark_without_picture_is_rejected(keys: dict[str, Any], record: dict[str, Any]) -> None:
    with pytest.raises(RejectError) as rejected:
        parse(record, **keys)
    assert rejected.value.reason == Reason.IMAGE_MARK


def test_a_mark_of_the_question_in_the_solution_is_removed() -> None:
    record = {"q": "x", "p": "a", "s": "as in <image1> and <image>"}
    draft = parse(record, question_images="p")
    assert flat(draft.solution) == ["as in  and"]


@pytest.mark.parametrize(
    ("num_texts", "num_pictures", "expected"),
    [(2, 1, "tpt"), (1, 2, "ptp"), (2, 2, "tptp"), (1, 3, "ptpp"), (3, 1, "tptt")],
)
def test_texts_and_pictures_in_turn(num_texts: int, num_pictures: int, expected: str) -> None:
    record = {"q": "x", "s": ["t"] * num_texts, "p": [f"{n}.png" for n in range(num_pictures)]}
    draft = parse(record, solution_images="p", unmarked="between")
    assert "".join("p" if isinstance(part, Picture) else "t" for part in draft.solution) == expected


def turns(*roles: str, content: Any = None) -> list[dict[str, Any]]:
    return [{"role": role, "content": content or f"{role}{n}"} for n, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "mode", "question", "solution"),
    [
        (("user", "assistant"), "only", ["user0"], ["assistant1"]),
        (("user", "system", "assistant"), "only", ["system1", "user0"], ["assistant2"]),
        (("user",), "only", ["user0"], []),
        (("user", "assistant") * 2, "last", ["user0", "assistant1", "user2"], ["assistant3"]),
        (("user", "assistant", "user"), "last", ["user0", "assistant1", "user2"], []),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_conversation(
    roles: tuple[str, ...], mode: str, question: list[str], solution: list[str], *, as_text: bool
) -> None:
    value: Any = turns(*roles)
    draft = parse(
        {"m": json.dumps(value) if as_text else value},
        question=[],
        conversation={"column": "m", "turns": mode},
    )
    assert flat(draft.question) == question
    assert flat(draft.solution) == solution


@pytest.mark.parametrize(
    ("roles", "reason"),
    [
        (("user", "assistant", "user", "assistant"), Reason.SEVERAL_ANSWERS),
        (("user", "tool", "assistant"), Reason.INVALID_FIELD),
    ],
)
def test_conversation_that_is_no_question(roles: tuple[str, ...], reason: Reason) -> None:
    with pytest.raises(RejectError) as rejected:
        parse({"m": turns(*roles)}, question=[], conversation={"column": "m"})
    assert rejected.value.reason == reason


def test_content_parts() -> None:
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": data_url("red")}},
        {"type": "image", "image": "b.png"},
        {"type": "image"},
        {"type": "text", "text": "now."},
    ]
    draft = parse(
        {"m": turns("user", content=content), "images": ["c.png"]},
        question=[],
        conversation={"column": "m"},
        images="images",
    )
    assert flat(draft.question) == ["Compare", "@image_url", "@b.png", "@c.png", "now."]
    pictures = [part for part in draft.question if isinstance(part, Picture)]
    assert pictures[0].data == PNGS["red"]


@pytest.mark.parametrize(
    ("keys", "record", "answer"),
    [
        ({"answer": "a"}, {"a": 3}, "3"),
        ({"answer": "a"}, {"a": ["1", 2]}, "1, 2"),
        ({"answer": "a", "answer_pattern": "<b>(.*)</b>"}, {"a": "x <b> 4\n</b>"}, "4"),
        ({"answer": "a", "answer_pattern": r"\d+"}, {"a": "x 45"}, "45"),
        ({}, {"s": "So 5."}, "So 5."),
        ({}, {"s": ["one", "two"]}, "one\ntwo"),
        ({}, {}, ""),
    ],
)
def test_answer(keys: dict[str, Any], record: dict[str, Any], answer: str) -> None:
    assert parse({"q": "x", **record}, **keys).answer == answer


@pytest.mark.parametrize(
    ("keys", "record", "reason"),
    [
        ({"answer": "a"}, {"a": None}, Reason.MISSING_FIELD),
        ({"answer": "a"}, {"a": {"x": 1}}, Reason.INVALID_FIELD),
        ({"answer": "a"}, {"a": True}, Reason.INVALID_FIELD),
        ({"answer": "a", "answer_pattern": "<b>"}, {"a": "c"}, Reason.MISSING_FIELD),
        ({"id": "i"}, {"i": ""}, Reason.MISSING_FIELD),
        ({"question_images": "p"}, {"p": 3}, Reason.INVALID_FIELD),
        ({"question_images": "p"}, {"p": "data:image/png;base64,?"}, Reason.IMAGE_UNREADABLE),
        ({"solution": "t"}, {"t": [{"type": "video"}]}, Reason.INVALID_FIELD),
        ({"solution": "t"}, {"t": {"x": 1}}, Reason.INVALID_FIELD),
    ],
)
def test_bad_record_has_its_reason(
    keys: dict[str, Any], record: dict[str, Any], reason: Reason
) -> None:
    with pytest.raises(RejectError) as rejected:
        parse({"q": "x", **record}, **keys)
    assert rejected.value.reason == reason


def test_ids() -> None:
    record = {"q": "x", "a": "1", "b": 2}
    assert parse(record, id=["a", "b"]).uid == "1_2"
    assert parse(record).uid == parse({**record, "b": 3}).uid != parse({**record, "q": "y"}).uid
    assert parse(record, id="z?").uid == parse(record).uid


def test_removed_text_keeps_words_apart() -> None:
    record = {"q": "x", "s": "<t>One.</t><t>Two.</t> THOUGHT 1: Three."}
    draft = parse(record, strip=["</?t>", r"THOUGHT \d+:\s*"])
    assert flat(draft.solution) == ["One.\n\nTwo. Three."]


ODD: list[Any] = [None, True, 2, float("nan"), "", "<image>", "<image2>", "[1", "![](x)", b"", {}]
ODD += ["x", '[{"type": "text"}]', {"bytes": None}, {"type": "image"}, {"type": "text"}, [[]]]
VALUES = st.sampled_from(ODD) | st.lists(st.sampled_from(ODD), max_size=3)


@given(record=st.fixed_dictionaries({}, optional=dict.fromkeys(("q", "s", "a", "p", "o"), VALUES)))
def test_any_record_becomes_a_draft_or_a_rejection(record: dict[str, Any]) -> None:
    keys = {"answer": "a", "images": "p", "options": "o?"}
    try:
        draft = parse(record, **keys)
    except RejectError as rejected:
        assert rejected.message
    else:
        assert isinstance(draft.answer, str)
        parts: list[Part] = [*draft.question, *draft.solution]
        assert all(isinstance(part, str | Picture) for part in parts)


@pytest.mark.parametrize("text", ['[{"type": "text", "content": "Wh', ' [ {"content":'])
def test_a_text_of_parts_that_is_cut_short_is_rejected(text: str) -> None:
    with pytest.raises(RejectError, match="no whole JSON text"):
        parse({"q": text})
    assert flat(parse({"q": '[{"a": 1}, is JSON?'}).question) == ['[{"a": 1}, is JSON?']


@pytest.mark.parametrize("index", [0.5, float("inf"), True])
def test_an_index_that_is_no_whole_number_is_rejected(index: Any) -> None:
    parts = [{"type": "text", "content": "x"}, {"type": "image", "index": index}]
    with pytest.raises(RejectError, match="a picture with the index"):
        parse({"q": parts, "p": ["a", "b"]}, images="p")
    parts[1]["index"] = 1.0
    assert flat(parse({"q": parts, "p": ["a", "b"]}, images="p").question) == ["@a", "x", "@b"]
