"""Short reprs, views for notebooks, and help() with the fields."""

import ast
import inspect
import textwrap
from dataclasses import is_dataclass
from html.parser import HTMLParser
from io import BytesIO
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

import mathcanvas_lightning
from mathcanvas_lightning import (
    DatasetConfig,
    EchoBackend,
    GenerationResponse,
    ImageSegment,
    InterleavedExample,
    MathCanvasDataModule,
    Picture,
    TextSegment,
)
from mathcanvas_lightning.evaluation.verdicts import Scores
from mathcanvas_lightning.generation.bagel.problem import Answer, Step
from mathcanvas_lightning.generation.requests import Failure, Output
from tests.conftest import png

EVIL = "<script>alert(1)</script>"


def jpeg() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


EXAMPLE = InterleavedExample(
    uid=EVIL,
    question=(TextSegment(text=f"{EVIL} $x^2$"), ImageSegment(data=png(), path="a.png")),
    solution=(
        ImageSegment(data=jpeg()),
        ImageSegment(data=b"broken"),
        TextSegment(text="x" * 9999),
    ),
    answer="B",
    extras={"level": EVIL},
)
ANSWER = Answer(
    uid="q1",
    steps=(Step(number=1, content=EVIL), Step(number=1, content=Image.new("RGB", (32, 16)))),
    finish_reason="stop",
    num_input_tokens=5,
    num_written_tokens=2,
)
RESPONSE = GenerationResponse(
    uid="q1", outputs=(Output(text="Look.", steps=("Look.", Picture(png(), EVIL))),)
)
SCORES = Scores(
    num_records=1200,
    num_responses=1200,
    num_right=600,
    num_wrong=600,
    num_unanswered=0,
    num_failed=0,
    num_undecided=0,
    accuracy=0.5,
    interval=(0.47, 0.53),
    complete=0.5,
    weighted=0.5,
    majority=None,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (EXAMPLE, f"InterleavedExample('{EVIL}', 2 texts, 3 images, answer='B')"),
        (EXAMPLE.question[1], f"ImageSegment({len(png())} bytes, path='a.png')"),
        (
            RESPONSE,
            "GenerationResponse('q1', Output(1 drawing, text='Look.', finish_reason=None))",
        ),
        (
            GenerationResponse(uid="q", failure=Failure(kind="timeout", message="m")),
            "GenerationResponse('q', failure='timeout')",
        ),
        (ANSWER, f"Answer('q1', 1 drawing, text='{EVIL}', finish_reason='stop')"),
        (SCORES, "Scores(1,200 records, accuracy 50.0% (47.0% to 53.0%))"),
        (EchoBackend(), "EchoBackend(model_name='echo')"),
        (
            MathCanvasDataModule(
                train=[DatasetConfig(path="a/b"), DatasetConfig(path="c.parquet")]
            ),
            "MathCanvasDataModule(train=[b, c])",
        ),
    ],
)
def test_reprs_are_short(value: Any, text: str) -> None:
    assert repr(value) == text


class Tags(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []
        self.sources: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        self.sources += [value or "" for name, value in attrs if name == "src"]
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize(
    ("value", "pictures", "holds"),
    [
        (EXAMPLE, 2, ["None: ", "level", " ..."]),
        (EXAMPLE.question[1], 1, ["a.png"]),
        (RESPONSE, 1, ["Look."]),
        (RESPONSE.outputs[0], 1, ["Look."]),
        (ANSWER, 1, ["drawing, 32x16"]),
        (
            GenerationResponse(uid=EVIL, failure=Failure(kind="timeout", message=EVIL)),
            0,
            ["no answer", "timeout"],
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_notebooks_show_pictures_and_escaped_texts(
    value: Any, pictures: int, holds: list[str]
) -> None:
    shown, tags = value._repr_html_(), Tags()
    tags.feed(shown)
    assert tags.open == []
    assert "script" not in tags.found
    assert len(tags.sources) == pictures
    assert all(source.startswith("data:image/") for source in tags.sources)
    assert all(text in shown for text in holds)
    assert len(shown) < 20_000


PUBLIC = {name: getattr(mathcanvas_lightning, name) for name in mathcanvas_lightning.__all__}


@pytest.mark.parametrize("name", [name for name, found in PUBLIC.items() if is_dataclass(found)])
def test_help_explains_the_fields_of_public_dataclasses(name: str) -> None:
    doc = inspect.getdoc(getattr(mathcanvas_lightning, name)) or ""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(PUBLIC[name]))).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
            assert isinstance(field.target, ast.Name)
            assert f"    {field.target.id}: " in doc
    assert doc.count("Fields:") <= 1


def test_help_of_a_data_set() -> None:
    doc = inspect.getdoc(mathcanvas_lightning.DatasetConfig) or ""
    assert doc.startswith("One data set.\n\nFields:\n")
    assert "    fraction: Part of the rows to use; the same rows in every run." in doc
