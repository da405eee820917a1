"""Presets name the fields of answered records."""

import json
from pathlib import Path

import pytest

from mathcanvas_lightning import score_responses
from mathcanvas_lightning.records.files import read_records, write_records
from tests.conversion.columns.samples import write_sample


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("mathvista", "So the answer is 3."),
        ("visulogic", "The answer is C."),
        ("we_math", "The answer is B."),
        ("mathvision", "The answer is two."),
        ("emma", "The answer is A."),
        ("zebra_cot", "Final Answer: B"),
        ("open_r1", "<answer>5</answer>"),
    ],
)
def test_scores_by_a_preset(name: str, response: str, tmp_path: Path) -> None:
    source = write_sample(name, tmp_path / "in", count=2)
    records = [dict(record) for record in read_records(source)]
    answered = tmp_path / f"answered{source.suffix}"
    for record, text in zip(records, (response, "I do not know."), strict=True):
        record["model_answer"] = text
    write_records(answered, records, like=source)
    report = score_responses(str(answered), preset=name, num_workers=0, progress=False)
    assert (report.overall.num_records, report.num_without_reference) == (2, 0)
    scores = json.loads(report.output.read_text())
    verdicts = [record["responses"][0]["verdict"] for record in scores["records"]]
    assert verdicts[0] == "right"
    assert verdicts[1] == "wrong"


def test_records_without_an_answer_are_not_scored(tmp_path: Path) -> None:
    source = write_sample("mathvista", tmp_path, count=2)
    records = [dict(record) | {"model_answer": "3"} for record in read_records(source)]
    records[1]["answer"] = None
    write_records(tmp_path / "x.parquet", records, like=source)
    report = score_responses(str(tmp_path / "x.parquet"), preset="mathvista", progress=False)
    assert report.num_without_reference == 1
