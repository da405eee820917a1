"""Source formats: the sample of each good record, and the reason code of each bad one."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.conversion.files import SourceFiles
from mathcanvas_lightning.conversion.rejection import Reason, RejectError, Rejection
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.conversion.sources import (
    BLOCKMOVING_PROMPT,
    BlockMoving,
    Draft,
    MathCanvas,
    MathVision,
    Picture,
    SourceFormat,
    options_text,
    split_image_tags,
)
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.rows.schema import ImageSegment, InterleavedExample
from tests.conftest import encoded, png


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.png").write_bytes(png(colour="red"))
    (folder / "b.png").write_bytes(png(colour="blue"))
    (folder / "sub" / "c.jpg").write_bytes(encoded("JPEG"))
    (folder / "cut.png").write_bytes(png(60, 60)[:-20])
    (folder / "text.png").write_text("this is no picture")
    (folder / "large.png").write_bytes(png(2000, 1000))
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    (tmp_path / "outside.png").write_bytes(png())
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "inner_link.png").symlink_to(folder / "a.png")
    return folder


def convert(
    source: SourceFormat, record: Any, images: Path, *, allow_no_solution: bool = False
) -> InterleavedExample | Rejection:
    converter = RecordConverter(
        source=source,
        files=SourceFiles(str(images)),
        limits=ImageLimits(max_pixels=1_000_000),
        allow_no_solution=allow_no_solution,
    )
    return converter.convert(7, record)


def good(source: SourceFormat, record: Any, images: Path, **options: bool) -> InterleavedExample:
    outcome = convert(source, record, images, **options)
    assert isinstance(outcome, InterleavedExample), outcome
    return outcome


def flat(segments: tuple[Any, ...]) -> list[str]:
    return [s.path if isinstance(s, ImageSegment) else s.text for s in segments]


def cot(text: Any = "<image>a.png</image> So it is B.", **fields: Any) -> dict[str, Any]:
    return {"task_id": 3, "gt": "B", "pred": "B", "cot_text": text} | fields


def canvas(**fields: Any) -> dict[str, Any]:
    return {
        "id": "m1",
        "question_interleave": [{"type": "text", "content": "How many?"}],
        "solution_interleave": [
            {"type": "text", "content": "Draw it."},
            {"type": "image", "content": "a.png"},
        ],
        "answer": 4,
    } | fields


def vision(**fields: Any) -> dict[str, Any]:
    return {
        "id": "v1",
        "question": "Which? <image1>",
        "options": ["one", "two"],
        "answer": "B",
        "solution": "It is two.",
        "image": "a.png",
    } | fields


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def deep(name: str, value: Any) -> dict[str, Any]:
    return canvas(**{name: value})


BAD = {
    "array": (BlockMoving(), ["no object"], Reason.NOT_AN_OBJECT),
    "null": (MathVision(), None, Reason.NOT_AN_OBJECT),
    "no task_id": (BlockMoving(), without(cot(), "task_id"), Reason.MISSING_FIELD),
    "no gt": (BlockMoving(), without(cot(), "gt"), Reason.MISSING_FIELD),
    "null gt": (BlockMoving(), cot(gt=None, pred=None), Reason.MISSING_FIELD),
    "no pred": (BlockMoving(), without(cot(), "pred"), Reason.MISSING_FIELD),
    "no text": (BlockMoving(), without(cot(), "cot_text"), Reason.MISSING_FIELD),
    "number as text": (BlockMoving(), cot(5), Reason.INVALID_FIELD),
    "list as id": (BlockMoving(), cot(task_id=[1]), Reason.INVALID_FIELD),
    "half a character": (BlockMoving(), cot("<image>a.png</image>\ud800"), Reason.INVALID_FIELD),
    "wrong": (BlockMoving(), cot(pred="C"), Reason.WRONG_ANSWER),
    "no answer": (BlockMoving(), cot(pred=None), Reason.WRONG_ANSWER),
    "undrawn": (
        BlockMoving(),
        cot("<image>a.png</image> Step [render_result]"),
        Reason.RENDER_RESULT,
    ),
    "empty": (BlockMoving(), cot("  \n"), Reason.EMPTY),
    "null text": (BlockMoving(), cot(None), Reason.EMPTY),
    "no image": (BlockMoving(), cot("So it is B."), Reason.NO_IMAGE),
    "unclosed": (BlockMoving(), cot("<image>a.png So it is B."), Reason.UNCLOSED_TAG),
    "nested": (
        BlockMoving(),
        cot("<image>a.png <image>b.png</image> B."),
        Reason.UNCLOSED_TAG,
    ),
    "unopened": (
        BlockMoving(),
        cot("<image>a.png</image> then b.png</image>"),
        Reason.UNOPENED_TAG,
    ),
    "empty tag": (BlockMoving(), cot("<image> </image> B."), Reason.EMPTY_TAG),
    "only a question": (BlockMoving(), cot("<image>a.png</image>"), Reason.NO_SOLUTION),
    "missing": (BlockMoving(), cot("<image>z.png</image> B"), Reason.IMAGE_MISSING),
    "missing step": (
        BlockMoving(),
        cot("<image>a.png</image> B <image>z.png</image>"),
        Reason.IMAGE_MISSING,
    ),
    "below a file": (BlockMoving(), cot("<image>a.png/b.png</image> B"), Reason.IMAGE_MISSING),
    "NUL": (BlockMoving(), cot("<image>a\0.png</image> B"), Reason.IMAGE_MISSING),
    "long name": (BlockMoving(), cot(f"<image>{'a' * 5000}</image> B"), Reason.IMAGE_MISSING),
    "URL": (BlockMoving(), cot("<image>http://x/a.png</image> B"), Reason.IMAGE_MISSING),
    "cut": (BlockMoving(), cot("<image>cut.png</image> B"), Reason.IMAGE_TRUNCATED),
    "text": (BlockMoving(), cot("<image>text.png</image> B"), Reason.IMAGE_UNREADABLE),
    "folder": (BlockMoving(), cot("<image>folder.png</image> B"), Reason.IMAGE_UNREADABLE),
    "pipe": (BlockMoving(), cot("<image>pipe.png</image> B"), Reason.IMAGE_UNREADABLE),
    "bomb": (BlockMoving(), cot("<image>large.png</image> B"), Reason.IMAGE_TOO_LARGE),
    "dots": (BlockMoving(), cot("<image>../outside.png</image> B"), Reason.PATH_OUTSIDE),
    "absolute": (BlockMoving(), cot("<image>/etc/passwd</image> B"), Reason.PATH_OUTSIDE),
    "link out": (BlockMoving(), cot("<image>link.png</image> B"), Reason.PATH_OUTSIDE),
    "dots in the id": (BlockMoving(), cot(task_id="1/../../../x"), Reason.PATH_OUTSIDE),
    "no id": (MathCanvas(), without(canvas(), "id"), Reason.MISSING_FIELD),
    "empty answer": (MathCanvas(), canvas(answer=" "), Reason.MISSING_FIELD),
    "true as answer": (MathCanvas(), canvas(answer=True), Reason.INVALID_FIELD),
    "no question": (
        MathCanvas(),
        without(canvas(), "question_interleave"),
        Reason.MISSING_FIELD,
    ),
    "empty question": (MathCanvas(), deep("question_interleave", []), Reason.NO_QUESTION),
    "empty solution": (
        MathCanvas(),
        deep("solution_interleave", [{"type": "text", "content": " "}]),
        Reason.NO_SOLUTION,
    ),
    "no JSON": (MathCanvas(), deep("question_interleave", "[{"), Reason.INVALID_FIELD),
    "an object": (MathCanvas(), deep("question_interleave", {}), Reason.INVALID_FIELD),
    "unknown item": (
        MathCanvas(),
        deep("question_interleave", [{"type": "video"}]),
        Reason.INVALID_FIELD,
    ),
    "string item": (MathCanvas(), deep("question_interleave", ["x"]), Reason.INVALID_FIELD),
    "image without path": (
        MathCanvas(),
        deep("question_interleave", [{"type": "image", "index": 0}]),
        Reason.MISSING_FIELD,
    ),
    "no solution": (MathVision(), vision(solution=None), Reason.NO_SOLUTION),
    "third of two": (
        MathVision(),
        vision(question="<image3>", image=["a.png", "b.png"]),
        Reason.IMAGE_MARK,
    ),
    "mark, no image": (MathVision(), vision(image=None), Reason.IMAGE_MARK),
    "image number": (MathVision(), vision(image=3), Reason.INVALID_FIELD),
    "options text": (MathVision(), vision(options="A, B"), Reason.INVALID_FIELD),
    "solution list": (MathVision(), vision(solution=["x"]), Reason.INVALID_FIELD),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_record_has_its_reason(case: str, images: Path) -> None:
    source, record, reason = BAD[case]
    outcome = convert(source, record, images)
    assert isinstance(outcome, Rejection), outcome
    assert outcome.reason == reason
    assert outcome.record == 7
    assert outcome.message


def test_bad_records_cover_all_reason_codes() -> None:
    covered = {reason for _, _, reason in BAD.values()}
    elsewhere = {Reason.DUPLICATE_ID, Reason.BAD_TASK_FILE, Reason.PARSER_FAILED}
    elsewhere.add(Reason.SEVERAL_ANSWERS)
    assert covered | elsewhere == set(Reason)


@pytest.mark.parametrize("content", ["{", '{"options": 3}', "3"])
def test_bad_task_file(content: str, images: Path) -> None:
    (images / "task_3").mkdir()
    (images / "task_3" / "data.json").write_text(content)
    outcome = convert(BlockMoving(), cot(), images)
    assert isinstance(outcome, Rejection)
    assert outcome.reason in (Reason.BAD_TASK_FILE, Reason.INVALID_FIELD)


def test_exception_in_a_format_is_a_rejection(images: Path) -> None:
    class Failing(SourceFormat):
        name = "failing"
        fields = frozenset({"id"})
        recognised_by = frozenset({"id"})

        def parse(self, record: Any, files: SourceFiles) -> Draft:
            return record["nothing"]

    outcome = convert(Failing(), {"id": "x"}, images)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == Reason.PARSER_FAILED
    assert outcome.uid == "x"
    assert "KeyError" in outcome.message


def test_unreadable_file_is_a_rejection(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    outcome = convert(BlockMoving(), cot(), images)
    assert isinstance(outcome, Rejection)
    assert outcome.reason == Reason.IMAGE_UNREADABLE


def test_blockmoving_question_and_solution(images: Path) -> None:
    text = "Look. <image> a.png </image>\n\nFirst. <image>b.png</image><image>sub/c.jpg</image> B."
    example = good(BlockMoving(), cot(text, gt=" B ", source_model="m", steps=[1]), images)
    assert example.uid == "task_3"
    assert example.answer == "B"
    assert flat(example.question) == ["Look.", "a.png"]
    assert flat(example.solution) == ["First.", "b.png", "sub/c.jpg", "B."]
    assert example.extras == {"source_model": "m"}
    assert [image.data for image in example.images] == [
        (images / name).read_bytes() for name in ("a.png", "b.png", "sub/c.jpg")
    ]


def test_blockmoving_question_is_built_from_the_options(images: Path) -> None:
    (images / "task_3").mkdir()
    task = {"options": {"B": "two", "A": "one"}}
    (images / "task_3" / "data.json").write_text(json.dumps(task))
    text = "Look. <image>a.png</image> B."
    options = "Options:\nA: one\nB: two"
    example = good(BlockMoving(), cot(text), images)
    assert flat(example.question) == [f"{BLOCKMOVING_PROMPT}\n\n{options}", "a.png"]
    example = good(BlockMoving(prompt="Which?"), cot(text), images)
    assert flat(example.question) == [f"Which?\n\n{options}", "a.png"]
    example = good(BlockMoving(prompt=None), cot(text), images)
    assert flat(example.question) == ["Look.", "a.png"]


def test_links_and_dots_inside_the_folder_are_followed(images: Path) -> None:
    text = "<image>sub/../a.png</image> then <image>inner_link.png</image>"
    example = good(BlockMoving(), cot(text), images)
    assert len({image.data for image in example.images}) == 1


def test_mathcanvas(images: Path) -> None:
    question = json.dumps([{"type": "image", "content": "b.png", "index": 5}])
    record = canvas(
        question_interleave=question, knowledge="Algebra", level=3, tags=["x"], note=None
    )
    example = good(MathCanvas(), record, images)
    assert flat(example.question) == ["b.png"]
    assert flat(example.solution) == ["Draw it.", "a.png"]
    assert example.answer == "4"
    assert example.extras == {"knowledge": "Algebra", "level": 3, "note": None}


def test_mathvision(images: Path) -> None:
    example = good(MathVision(), vision(level=5, subject="logic"), images)
    assert flat(example.question) == ["Which?", "a.png", "Options:\nA: one\nB: two"]
    assert flat(example.solution) == ["It is two."]
    assert example.extras == {"level": 5, "subject": "logic"}


@pytest.mark.parametrize(
    ("question", "image", "expected"),
    [
        ("x <image1> y <image2> z", ["a.png", "b.png"], ["x", "a.png", "y", "b.png", "z"]),
        ("x <image2> y <image1>", ["a.png", "b.png"], ["x", "b.png", "y", "a.png"]),
        ("x <image> y <image> z", ["a.png", "b.png"], ["x", "a.png", "y", "b.png", "z"]),
        ("x <image1> y <image2> z", "a.png", ["x", "a.png", "y  z"]),
        ("x <image1> y <image1> z", ["a.png"], ["x", "a.png", "y  z"]),
        ("no mark", ["a.png", "b.png"], ["no mark", "a.png", "b.png"]),
        ("text alone", None, ["text alone"]),
    ],
)
def test_mathvision_marks(question: str, image: Any, expected: list[str], images: Path) -> None:
    record = vision(question=question, image=image, options=[])
    assert flat(good(MathVision(), record, images).question) == expected


def test_mathvision_marks_in_options(images: Path) -> None:
    record = vision(question="Which?", options=["<image1>", "<image2>"], image=["a.png", "b.png"])
    question = flat(good(MathVision(), record, images).question)
    assert question == ["Which?\nOptions:\nA:", "a.png", "B:", "b.png"]


def test_prediction_needs_no_solution(images: Path) -> None:
    example = good(MathVision(), vision(solution=None), images, allow_no_solution=True)
    assert example.solution == ()


def test_former_name_of_the_error_still_works() -> None:
    from mathcanvas_lightning.conversion.rejection import Reject

    assert Reject is RejectError


def test_options_text() -> None:
    assert options_text(["x", "y"]) == "Options:\nA: x\nB: y"
    assert options_text({"b": 2, "a": 1}) == "Options:\na: 1\nb: 2"
    assert options_text([]) == options_text({}) == ""
    assert options_text({"A": ["x", 2], "B": True}) == "Options:\nA: x, 2\nB: True"


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_names_without_an_option_are_left_out(nothing: Any) -> None:
    """A struct of a Parquet file has the same names in all rows, with nulls."""
    assert options_text({"A": "x", "B": 0, "C": nothing}) == "Options:\nA: x\nB: 0"


@pytest.mark.parametrize(
    "options",
    [["x", None], ["x", math.nan], [{"text": "x"}], {"A": {"text": "x"}}, [[None]], [b"x"]],
)
def test_options_that_are_no_texts_are_rejected(options: Any) -> None:
    with pytest.raises(RejectError, match=r"option [AB] is .*, not text"):
        options_text(options)


PLAIN = st.text(st.characters(codec="utf-8")).filter(lambda text: "<" not in text)
PATHS = PLAIN.filter(lambda path: bool(path.strip()))


@pytest.mark.slow
@given(st.lists(st.tuples(PLAIN, PATHS)), PLAIN)
def test_tags_round_trip(pieces: list[tuple[str, str]], end: str) -> None:
    text = "".join(f"{before}<image>{path}</image>" for before, path in pieces) + end
    parts = split_image_tags(text)
    assert parts[::2] == [before for before, _ in pieces] + [end]
    assert parts[1::2] == [Picture(path.strip()) for _, path in pieces]


@given(st.lists(st.sampled_from(["<image>", "</image>", "a.png", "<", "image>", " "])))
def test_tag_parser_keeps_everything_or_rejects(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        parts = split_image_tags(text)
    except RejectError as reject:
        assert reject.reason in (Reason.UNCLOSED_TAG, Reason.UNOPENED_TAG, Reason.EMPTY_TAG)
        return
    rebuilt = "".join(
        f"<image>{part.path}</image>" if isinstance(part, Picture) else part for part in parts
    )
    assert rebuilt.replace(" ", "") == text.replace(" ", "")
    assert text.count("<image>") == text.count("</image>") == len(parts) // 2
