"""Conversion of real MathVision problems, if a copy of the data set is available."""

import json
from pathlib import Path

import pytest

from mathcanvas_lightning import convert_cot, inspect_shards, iter_examples
from tests.conftest import read_jsonl, real_problems


@pytest.fixture
def source() -> Path:
    return real_problems() / "test.jsonl"


@pytest.mark.slow
def test_training_keeps_only_solved_problems(source: Path, tmp_path: Path) -> None:
    records = read_jsonl(source)
    solved = [record for record in records if record["solution"]]
    report = convert_cot(str(source), str(tmp_path))
    assert report.num_rows == len(solved)
    assert report.rejects == {"no_solution": len(records) - len(solved)}


@pytest.mark.slow
def test_prediction_keeps_all_problems(source: Path, tmp_path: Path) -> None:
    records = read_jsonl(source)
    report = convert_cot(str(source), str(tmp_path), allow_no_solution=True)
    assert report.num_rows == len(records)
    assert inspect_shards(str(tmp_path), validate=True).problems == []
    for example, record in zip(iter_examples(tmp_path), records, strict=True):
        (image,) = example.images
        assert image.data == (source.parent / record["image"]).read_bytes()
        assert example.extras == {"level": record["level"], "subject": record["subject"]}
        question = json.dumps([getattr(s, "text", None) for s in example.question])
        assert "<image" not in question
        for option in record["options"]:
            assert json.dumps(option)[1:-1] in question
