"""Conversations built from records."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from mathcanvas_lightning.data.rows.readers import IMAGE_MARK
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.generation.prompts.chat import (
    ChatPrompt,
    Example,
    PromptBuilder,
    fill_template,
    options_text,
    read_system_prompt,
)
from mathcanvas_lightning.generation.requests import Message, Part
from mathcanvas_lightning.records.pictures import Picture, read_pictures
from mathcanvas_lightning.records.record import Record, RecordInput, iter_records
from mathcanvas_lightning.records.survey import survey
from tests.conftest import png, real_problems, write_json

A, B = Picture(b"a"), Picture(b"b")


def record(query: str, **values: Any) -> Record:
    return Record(uid="x:1", position=0, index=1, query=query, images=(), values=values, digest="")


def user(*parts: Part) -> Message:
    return Message(role="user", parts=parts)


def test_question_without_system_prompt() -> None:
    assert ChatPrompt()(record("Why?"), ()) == (user("Why?"),)


def test_system_prompt_and_pictures_at_their_marks() -> None:
    prompt = ChatPrompt("Be brief.")
    messages = prompt(record("See <image2> and <image1>!"), (A, B))
    assert messages[0] == Message(role="system", parts=("Be brief.",))
    assert messages[1:] == (user("See", B, "and", A, "!"),)
    assert prompt(record("Why?"), (A, B))[1:] == (user(A, B, "Why?"),)


def test_pictures_first() -> None:
    prompt = ChatPrompt(images="first")
    assert prompt(record("See <image2>\n<image1>"), (A, B)) == (user(A, B, "See"),)


@pytest.mark.parametrize("images", ["marks", "first"])
def test_a_mark_without_picture_names_the_record(images: Any) -> None:
    with pytest.raises(InputError, match="x:1: found more <image> marks than pictures"):
        ChatPrompt(images=images)(record("<image> and <image>"), (A,))


@given(st.text(), st.text())
def test_inserted_values_are_not_templates(query: str, hint: str) -> None:
    text = fill_template(r"{hint}|{query}|\boxed{}", {"query": query, "hint": hint}, place="x")
    assert text == rf"{hint}|{query}|\boxed{{}}"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{query}", r"\frac{a}{b}"),
        (r"{query} in \boxed{}", r"\frac{a}{b} in \boxed{}"),
        (r"\sqrt{{2}} {level}", r"\sqrt{2} 3"),
        ("{{query}}", "{query}"),
        ("{none}|{list}|{two words}", '|["é", 1]|yes'),
    ],
)
def test_templates(template: str, text: str) -> None:
    values = {"level": 3, "none": None, "list": ["é", 1], "two words": "yes"}
    (message,) = ChatPrompt(template=template)(record(r"\frac{a}{b}", **values), ())
    assert message.text == text


def test_missing_template_field() -> None:
    with pytest.raises(InputError) as error:
        ChatPrompt(template=r"\sqrt{2} {query}")(record("Why?", level=1), ())
    assert "no field '2'" in str(error.value)
    assert "level, query" in str(error.value)
    assert "write {{2}}" in str(error.value)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["one", 2], "(A) one\n(B) 2"),
        ({"A": "one", "C": "three"}, "(A) one\n(C) three"),
        ({"A": "one", "B": None, "C": 3, "D": None}, "(A) one\n(C) 3"),
        (["one", None, 3, None], "(A) one\n(C) 3"),
        ('["one", "two"]', "(A) one\n(B) two"),
        (["A", "B", "C"], ""),
        (["(A)", "(B)", "(C)"], ""),
        (["A", "C"], "(A) A\n(B) C"),
        ([], ""),
        (None, ""),
        ("", ""),
    ],
)
def test_options(options: Any, text: str) -> None:
    assert options_text(options, place="x") == text
    (message,) = ChatPrompt(options_field="choices")(record("Which?", choices=options), ())
    assert message.text == f"Which?\n{text}".strip()


@pytest.mark.parametrize("options", ["one", 5, list(range(27))])
def test_invalid_options(options: Any) -> None:
    with pytest.raises(InputError, match="x:1: found the options"):
        ChatPrompt(options_field="choices")(record("Which?", choices=options), ())


def test_marks_in_options(tmp_path: Path) -> None:
    options = ["<image2>", "<image1>"]
    (message,) = ChatPrompt(options_field="o")(record("Which?", o=options), (A, B))
    assert message.parts == ("Which?\n(A)", B, "(B)", A)


def test_examples_come_before_the_question(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png())
    prompt = ChatPrompt(
        "Be brief.",
        few_shot=[
            Example(query="1 + 1?", answer="2"),
            Example(query="<image> red?", answer="Yes.", image=str(tmp_path / "a.png")),
        ],
        template="Q: {query}",
    )
    messages = prompt(record("2 + 2?"), ())
    assert [message.role for message in messages] == ["system", *["user", "assistant"] * 2, "user"]
    assert [message.text for message in messages[1:3]] == ["Q: 1 + 1?", "2"]
    parts = messages[3].parts
    assert (parts[0], parts[2]) == ("Q:", "red?")
    assert isinstance(parts[1], Picture)
    assert parts[1].data == png()


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_examples_of_a_file(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "a.png").write_bytes(png())
    examples = [
        {"query": "Red?", "answer": "Yes", "image": "a.png", "hint": "h"},
        {"query": "Blue?", "answer": "No", "hint": "i"},
    ]
    path = tmp_path / f"x{suffix}"
    lines = "\n".join(map(json.dumps, examples))
    path.write_text(json.dumps(examples) if suffix == ".json" else lines)
    messages = ChatPrompt(few_shot=str(path), template="{hint}: {query}")(
        record("Green?", hint="j"), ()
    )
    assert [m.text for m in messages] == ["h: Red?", "Yes", "i: Blue?", "No", "j: Green?"]
    assert sum(isinstance(part, Picture) for m in messages for part in m.parts) == 1


@pytest.mark.parametrize(
    "example", [{"query": "x"}, {"query": "x", "answer": 2}, 5, {"answer": "x"}]
)
def test_invalid_examples(tmp_path: Path, example: Any) -> None:
    path = write_json(tmp_path / "x.json", [{"query": "a", "answer": "b"}, example])
    with pytest.raises(ConfigError, match="example 1"):
        ChatPrompt(few_shot=str(path))


def test_examples_whose_files_are_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        ChatPrompt(few_shot=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"gone\.png"):
        ChatPrompt(few_shot=[Example(query="x", answer="y", image="gone.png")])


PYTHON = '''
"""Prompts."""
import os
from textwrap import dedent
import textwrap

os.environ["A_PROMPT_WAS_RUN"] = "yes"
PLAIN = "Be brief."
JOINED = "Be " "brief."
LONG = """
Be brief.
"""
SUM = PLAIN + " " + JOINED
TYPED: str = 'Be {brief}.'
ONE = TWO = "Both."
INDENTED = dedent("""
    Be
      brief.
    """).strip()
OTHER = textwrap.dedent("  x")
NUMBER = 5
FORMATTED = f"Be {PLAIN}"
CALLED = os.getcwd()
LOST = "first"
LOST = str(5)
LAST = "first"
LAST = "last"
EMPTY: str
class Inside:
    NAME = "hidden"
'''


def test_texts_of_a_python_file(tmp_path: Path) -> None:
    path = tmp_path / "prompts.py"
    path.write_text(PYTHON)
    expected = {
        "PLAIN": "Be brief.",
        "JOINED": "Be brief.",
        "LONG": "\nBe brief.\n",
        "SUM": "Be brief. Be brief.",
        "TYPED": "Be {brief}.",
        "ONE": "Both.",
        "TWO": "Both.",
        "INDENTED": "Be\n  brief.",
        "OTHER": "x",
        "LAST": "last",
    }
    for name, text in expected.items():
        assert read_system_prompt(str(path), name) == text
        prompt = ChatPrompt(system_prompt_file=str(path), system_prompt_variable=name)
        assert prompt(record("?"), ())[0] == Message(role="system", parts=(text,))
    for name in ("NUMBER", "FORMATTED", "CALLED", "LOST", "EMPTY", "NAME", "os"):
        with pytest.raises(ConfigError, match=", ".join(expected)):
            read_system_prompt(str(path), name)
    assert "A_PROMPT_WAS_RUN" not in os.environ


def test_text_of_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("\ufeffBe brief.\n\nAlways.\n", encoding="utf-8")
    assert read_system_prompt(str(path), None) == "Be brief.\n\nAlways."


@pytest.mark.parametrize(
    "options",
    [
        {"system_prompt": "x", "system_prompt_file": "p.txt"},
        {"system_prompt_variable": "X"},
        {"system_prompt_file": "p.py"},
        {"system_prompt_file": "p.txt", "system_prompt_variable": "X"},
        {"system_prompt_file": "none.txt"},
        {"system_prompt_file": "bytes.txt"},
        {"system_prompt_file": "broken.py", "system_prompt_variable": "X"},
        {"system_prompt_file": "nothing.py", "system_prompt_variable": "X"},
    ],
)
def test_contradictory_system_prompt_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.txt").write_text("x")
    Path("p.py").write_text("X = 'x'")
    Path("bytes.txt").write_bytes(b"\xff\xfe\xff")
    Path("broken.py").write_text("X = ")
    Path("nothing.py").write_text("")
    with pytest.raises(ConfigError):
        ChatPrompt(**options)  # type: ignore[arg-type]


def test_configured_from_yaml() -> None:
    parser = ArgumentParser()
    parser.add_argument("--prompt", type=PromptBuilder)
    config = {
        "class_path": "mathcanvas_lightning.generation.prompts.chat.ChatPrompt",
        "init_args": {
            "system_prompt": "Be brief.",
            "images": "first",
            "few_shot": [{"query": "1 + 1?", "answer": "2"}],
            "template": "{query} In \\boxed{}.",
        },
    }
    prompt = parser.instantiate(parser.parse_object({"prompt": config})).prompt
    messages = prompt(record("2 + 2?"), (A,))
    assert [m.text for m in messages[1:]] == ["1 + 1? In \\boxed{}.", "2", "2 + 2? In \\boxed{}."]
    assert messages[-1].parts[0] == A


def test_real_problems() -> None:
    path = real_problems() / "test.jsonl"
    source = RecordInput(path=str(path), index_field="id", query_field="question")
    prompt = ChatPrompt(options_field="options", template="{query}\nAnswer with a letter.")
    assert survey([source])
    for one in iter_records(source):
        (message,) = prompt(one, read_pictures(one))
        (picture,) = (part for part in message.parts if isinstance(part, Picture))
        assert picture.data == (path.parent / one.values["image"]).read_bytes()
        assert not re.search(r"<image\d*>", message.text)
        assert message.text.endswith("Answer with a letter.")
        letters = [text.strip("()") for text in one.values["options"]]
        if letters != list("ABCDE")[: len(letters)]:
            assert all(text in message.text for text in one.values["options"])
        assert IMAGE_MARK not in message.text
