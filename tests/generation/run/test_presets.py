"""Answers to records whose fields a preset names."""

from pathlib import Path

import pytest

from mathcanvas_lightning.generation.backends.base import EchoBackend
from mathcanvas_lightning.records.files import read_records
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS
from tests.conversion.columns.samples import SAMPLES, write_sample
from tests.generation.runs import predict

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)


@pytest.mark.parametrize("name", ["mathvista", "zebra_cot", "sharegpt"])
def test_answers_stand_beside_the_published_fields(name: str, tmp_path: Path) -> None:
    source = write_sample(name, tmp_path, count=3)
    one = RecordInput(path=str(source), preset=name)
    report = predict(EchoBackend(), [one])
    answered = list(read_records(one.output_path))
    assert [set(record) for record in answered] == [{*SAMPLES[name].record, "model_answer"}] * 3
    text = next(part for part in SAMPLES[name].question if not part.startswith("@"))
    assert all(text in record["model_answer"] for record in answered)
    again = predict(EchoBackend(), [one])
    assert (report.num_asked, again.num_asked) == (3, 0)
