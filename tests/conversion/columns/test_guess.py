"""The YAML of columns that is guessed from a look at a file."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mathcanvas_lightning import convert_cot, iter_examples
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.conversion.columns import find_columns
from mathcanvas_lightning.conversion.columns.guess import guess_columns
from mathcanvas_lightning.conversion.handler import generate_dataset_handler
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from tests.conftest import write_json
from tests.conversion.columns.samples import SAMPLES, write_sample

GUESSED = ("mathcanvas", "zebra_cot", "sharegpt", "messages", "open_r1")
"""Presets whose columns a look at the file finds."""


@pytest.mark.parametrize("name", GUESSED)
def test_guessed_columns_convert_as_the_preset(name: str, tmp_path: Path) -> None:
    source, path = write_sample(name, tmp_path / "in", count=3), tmp_path / "mine.yaml"
    written = generate_dataset_handler("my_data", str(path), input=str(source))
    assert name in written.summary
    assert yaml.safe_load(path.read_text())["columns"].keys() <= set(dir(find_columns(str(path))))
    found = []
    for number, preset in enumerate((name, str(path))):
        output = str(tmp_path / f"out{number}")
        convert_cot(str(source), output, preset=preset, num_workers=0, progress=False)
        found.append(list(iter_examples(output)))
    assert [(e.question, e.solution) for e in found[0]] == [
        (e.question, e.solution) for e in found[1]
    ]


def test_command_writes_a_configuration_of_convert(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, path = write_sample("zebra_cot", tmp_path / "in", count=2), tmp_path / "mine.yaml"
    words = ["--name", "zebras", "--output", str(path), "--input", str(source)]
    assert main(["generate-handler", *words]) == 0
    out = capsys.readouterr().out
    assert "solution: Text Reasoning Trace  (the name 'Text Reasoning Trace')" in out
    assert "also fit --preset zebra_cot" in out
    text = path.read_text()
    assert "question_images: problem_image_*  # pictures, by their names" in text
    output = tmp_path / "out"
    words = ["--config", str(path), "--input", str(source), "--output", str(output)]
    assert main(["convert", *words, "--num_workers", "0"]) == 0
    assert len(list(iter_examples(output))) == 2
    assert (output / "zebras_000.parquet").is_file()


def guessed(*records: dict[str, Any]) -> dict[str, Any]:
    return guess_columns(records).values


def test_a_column_serves_one_key_and_an_id_is_unique() -> None:
    record = {"id": 1, "question_id": 2, "problem": "x", "reference answer": "y", "level": 3}
    values = guessed(record, record | {"question_id": 3})
    assert values == {"id": "question_id", "question": "problem", "answer": "reference answer"}
    guess = guess_columns([record])
    assert set(guess.unused) == {"question_id", "level"}


def test_marks_tags_and_options_are_seen() -> None:
    text = "<think>See ![](a.png)</think><answer>4</answer>"
    values = guessed({"prompt": "x", "rationale": text, "choices": ["4", "5"], "pics": ["a.png"]})
    assert values["marks"] == ["![](image.png)"]
    assert values["strip"] == ["</?think>", "</?answer>"]
    assert values["answer_pattern"] == "<answer>(.*?)</answer>"
    assert (values["options"], values["images"]) == ("choices", "pics")


def test_tags_with_paths_and_further_ids_are_seen() -> None:
    record = {"task_id": 1, "task": "x", "question": "y", "cot_text": "<image>a.png</image> So."}
    values = guessed(record, record | {"task_id": 2})
    assert values["id"] == "task_id"
    assert values["marks"] == ["<image>image.png</image>"]


def test_no_question_is_said() -> None:
    guess = guess_columns([{"a": 1}])
    assert guess.values["question"] == "TODO"
    assert "write the one" in guess.reasons["question"]


@pytest.mark.parametrize(
    ("output", "source", "error", "match"),
    [
        ("x.py", "x.json", ConfigError, r"a \.yaml file"),
        ("x.yaml", None, ConfigError, "a file of records"),
        ("x.yaml", "none.json", InputError, "none.json"),
        ("x.yaml", "empty.json", InputError, "no objects"),
        ("there.yaml", "x.json", OutputError, "an existing file"),
    ],
)
def test_wrong_files(
    output: str, source: str | None, error: type[Exception], match: str, tmp_path: Path
) -> None:
    write_json(tmp_path / "x.json", [SAMPLES["sharegpt"].record])
    write_json(tmp_path / "empty.json", [])
    (tmp_path / "there.yaml").write_text("")
    path = None if source is None else str(tmp_path / source)
    with pytest.raises(error, match=match):
        generate_dataset_handler("x", str(tmp_path / output), input=path)
