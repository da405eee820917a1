"""Folders of answers: the benchmark's layout, safe names, complete or absent."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.errors import OutputError
from mathcanvas_lightning.generation.backends.base import EchoBackend
from mathcanvas_lightning.generation.prompts.chat import ChatPrompt
from mathcanvas_lightning.generation.requests import Sampling
from mathcanvas_lightning.generation.run.answer_folders import (
    MAX_NAME,
    folder_name,
    reasoning_result,
    safe_name,
)
from mathcanvas_lightning.generation.run.journal.folder import claimed_folders, journal_folder
from mathcanvas_lightning.generation.run.reasoning_folders import ReasoningFolders
from mathcanvas_lightning.records.pictures import Picture
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, png
from tests.generation.fakes import Failing, LastFirst
from tests.generation.runs import predict, records, write_lines

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]


def source(folder: Path, some: list[dict[str, Any]]) -> RecordInput:
    path = write_lines(folder / "questions.jsonl", some)
    return RecordInput(path=str(path), output=str(folder / "answers.jsonl"))


def test_steps_and_counts() -> None:
    drawing = Picture(png())
    result = reasoning_result("7", ["First", drawing, "Second", "Third", drawing])
    assert result["id"] == "7"
    assert [(one["type"], one["iteration"]) for one in result["reasoning_steps"]] == [
        ("text", 1),
        ("image", 1),
        ("text", 2),
        ("text", 3),
        ("image", 3),
    ]
    assert result["reasoning_steps"][0]["content"] == "First"
    assert result["reasoning_steps"][4]["content"] == "images/reasoning_image_2.png"
    assert result["summary"] == {"total_steps": 5, "text_steps": 3, "image_steps": 2}
    (alone,) = reasoning_result("7", [drawing])["reasoning_steps"]
    assert alone["iteration"] == 1


def test_empty_texts_count_but_are_not_listed() -> None:
    drawing = Picture(png())
    result = reasoning_result("7", ["", drawing, "Then", "", drawing])
    assert [(one["type"], one["iteration"]) for one in result["reasoning_steps"]] == [
        ("image", 1),
        ("text", 2),
        ("image", 3),
    ]
    assert result["summary"] == {"total_steps": 3, "text_steps": 1, "image_steps": 2}


def test_one_folder_per_answer(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    some = records(2)
    some[1] |= {"image": "red.png", "query_cot": "Look <image> here"}
    predict(EchoBackend(), [source(tmp_path, some)], ReasoningFolders())
    folder = tmp_path / "answers" / "1"
    assert sorted(p.name for p in (tmp_path / "answers").iterdir()) == ["0", "1"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "images",
        "ori.json",
        "ori_images",
        "reasoning_result.json",
    ]
    result = json.loads((folder / "reasoning_result.json").read_text())
    assert [one["content"] for one in result["reasoning_steps"]] == [
        "Look",
        "images/reasoning_image_1.png",
        "here",
    ]
    assert (folder / "images" / "reasoning_image_1.png").read_bytes() == png()
    assert (folder / "ori_images" / "ori_image_1.png").read_bytes() == png()
    assert json.loads((folder / "ori.json").read_text()) == some[1]


class NotStarted(EchoBackend):
    """A backend that may not be started."""

    def start(self, *, local_rank: int = 0, device: str = "cpu") -> None:
        raise AssertionError


def test_folders_can_be_written_later_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    some = records(2)
    some[1] |= {"image": "red.png", "query_cot": "Look <image> here"}
    inputs = [source(tmp_path, some)]
    predict(EchoBackend(), inputs, sampling=Sampling(n=2))
    predict(NotStarted(), inputs, ReasoningFolders(), sampling=Sampling(n=2))
    names = sorted(path.name for path in (tmp_path / "answers").iterdir())
    assert names == ["1", "1+2"]  # the other one has no drawings
    for name in names:
        folder = tmp_path / "answers" / name
        result = json.loads((folder / "reasoning_result.json").read_text())
        assert [one["type"] for one in result["reasoning_steps"]] == ["text", "image", "text"]
        assert (folder / "images" / "reasoning_image_1.png").read_bytes() == png()
        assert json.loads((folder / "ori.json").read_text()) == some[1]


def test_each_sample_has_its_own_folder(tmp_path: Path) -> None:
    names = ["a", "a__2", "a+2"]
    inputs = [source(tmp_path, [{"sample_index": name, "query_cot": "?"} for name in names])]
    folders = ReasoningFolders(str(tmp_path / "here"))
    predict(EchoBackend(), inputs, folders, sampling=Sampling(n=2))
    found = sorted(p.name for p in (tmp_path / "here").iterdir())
    assert found == ["a", "a%2B2", "a%2B2+2", "a+2", "a__2", "a__2+2"]
    assert found == sorted(folder_name(name, number) for name in names for number in (1, 2))


def test_failures_have_no_folder_and_new_answers_replace_old_ones(tmp_path: Path) -> None:
    inputs = [source(tmp_path, records(3))]
    predict(Failing("1"), inputs, ReasoningFolders())
    assert sorted(p.name for p in (tmp_path / "answers").iterdir()) == ["0", "2"]
    (tmp_path / "answers" / "0" / "old").touch()
    predict(EchoBackend(), inputs, ReasoningFolders(), rerun=True)
    assert sorted(p.name for p in (tmp_path / "answers").iterdir()) == ["0", "1", "2"]
    assert not (tmp_path / "answers" / "0" / "old").exists()


def test_indexes_never_leave_the_folder(tmp_path: Path) -> None:
    names = ["../up", "/etc/passwd", ".", "..", "a/b", "a b", "ä", "x" * 400, "c:\\d", "nul\0"]
    some = [{"sample_index": name, "query_cot": "?"} for name in names]
    predict(EchoBackend(), [source(tmp_path, some)], ReasoningFolders())
    assert len(list((tmp_path / "answers").iterdir())) == len(names)
    result = [
        json.loads(path.read_text())["id"] for path in tmp_path.rglob("reasoning_result.json")
    ]
    assert sorted(result) == sorted(names)


@given(st.lists(st.text(min_size=1), min_size=2, max_size=5, unique=True))
def test_safe_names(texts: list[str]) -> None:
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(names)
    for name in names:
        assert 0 < len(name.encode()) <= MAX_NAME
        assert name not in (".", "..")
        assert not set(name) & set("/\\\0: \n")


def test_texts_of_backends_without_steps(tmp_path: Path) -> None:
    inputs = [source(tmp_path, records(2))]
    predict(LastFirst(), inputs, ReasoningFolders())
    assert not (tmp_path / "answers").exists()
    predict(LastFirst(), inputs, ReasoningFolders(texts_too=True), rerun=True)
    result = json.loads((tmp_path / "answers" / "1" / "reasoning_result.json").read_text())
    assert result["reasoning_steps"] == [
        {"type": "text", "content": "re: What is 1 + 1?", "iteration": 1}
    ]


def test_pictures_of_examples_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "red.png").write_bytes(png())
    examples = write_lines(
        tmp_path / "examples.jsonl", [{"query": "One?", "answer": "1", "image": "red.png"}]
    )
    predict(
        EchoBackend(),
        [source(tmp_path, records(1))],
        ReasoningFolders(),
        prompt=ChatPrompt(few_shot=str(examples)),
    )
    assert list((tmp_path / "answers" / "0" / "ori_images").iterdir()) == []


def first_text(folder: Path) -> str:
    result = json.loads((folder / "0" / "reasoning_result.json").read_text())
    text: str = result["reasoning_steps"][0]["content"]
    return text


def test_outputs_with_one_stem_have_separate_folders(tmp_path: Path) -> None:
    inputs = [
        RecordInput(
            path=str(
                write_lines(tmp_path / f"{name}.jsonl", [{"sample_index": 0, "query_cot": name}])
            ),
            output=str(tmp_path / output),
        )
        for name, output in (("m", "out.json"), ("t", "out.jsonl"))
    ]
    folders = [tmp_path / "out", tmp_path / "out.jsonl.folders"]
    predict(EchoBackend(), inputs, ReasoningFolders())
    assert [first_text(folder) for folder in folders] == ["m", "t"]
    # In separate runs too, in any order.
    for one in reversed(inputs):
        predict(EchoBackend(), [one], ReasoningFolders(), rerun=True)
    assert [first_text(folder) for folder in folders] == ["m", "t"]
    assert [claimed_folders(journal_folder(one.output_path)) for one in inputs] == folders


def test_folders_of_something_else_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "answers" / "0").mkdir(parents=True)
    (tmp_path / "answers" / "0" / "mine.txt").touch()
    predict(EchoBackend(), [source(tmp_path, records(1))], ReasoningFolders())
    assert (tmp_path / "answers" / "0" / "mine.txt").exists()
    assert first_text(tmp_path / "answers.jsonl.folders") == "What is 0 + 1?"


def test_answers_never_land_in_an_input(tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    row = {"sample_index": "0", "query_cot": "Why?"}
    pq.write_table(pa.Table.from_pylist([row]), shards / "s_000.parquet")
    one = RecordInput(path=str(shards), output=str(tmp_path / "shards.parquet"))
    backend = LastFirst()
    for inside in (shards, shards / "answers"):
        with pytest.raises(OutputError, match="an input"):
            predict(backend, [one], ReasoningFolders(str(inside)))
    assert backend.starts == []
    predict(EchoBackend(), [one], ReasoningFolders())
    assert [path.name for path in shards.iterdir()] == ["s_000.parquet"]
    assert first_text(tmp_path / "shards.parquet.folders") == "Why?"


def test_nan_and_bytes_of_a_record_are_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    row = {"sample_index": "0", "query_cot": "?", "level": float("nan"), "image": [png()]}
    pq.write_table(pa.Table.from_pylist([row]), path)
    predict(EchoBackend(), [RecordInput(path=str(path))], ReasoningFolders())
    text = (tmp_path / "x_answers" / "0" / "ori.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    assert record["level"] is None
    assert record["image"] == [f"{len(png())} bytes"]
