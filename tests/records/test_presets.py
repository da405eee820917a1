"""Presets name the fields of records."""

from pathlib import Path

import pytest

from mathcanvas_lightning import RecordInput
from mathcanvas_lightning.errors import ConfigError, InputError
from mathcanvas_lightning.records.marks import place_marks
from mathcanvas_lightning.records.pictures import read_pictures
from mathcanvas_lightning.records.record import iter_records
from mathcanvas_lightning.records.survey import survey
from tests.conftest import write_json
from tests.conversion.columns.samples import PNGS, SAMPLES, write_sample


@pytest.mark.parametrize("name", SAMPLES)
def test_a_question_is_asked_as_it_is_trained(name: str, tmp_path: Path) -> None:
    source = RecordInput(path=str(write_sample(name, tmp_path)), preset=name)
    assert [key.fault for key in survey([source])] == [None]
    record = next(iter(iter_records(source)))
    colours = {data: colour for colour, data in PNGS.items()}
    pictures = [colours[picture.data] for picture in read_pictures(record)]
    asked = [
        piece if isinstance(piece, str) else f"@{pictures[piece]}"
        for piece in place_marks(record.query, len(pictures))
    ]
    # Neighbouring texts become one.
    wanted = "\n".join(SAMPLES[name].question).replace("\n@", "@").split("\n")
    assert "\n".join(asked).replace("\n@", "@").split("\n") == wanted


def test_marks_in_the_text_stay_texts(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", [{"id": 1, "q": "What is <image>?", "p": "a.png"}])
    preset = tmp_path / "mine.yaml"
    preset.write_text("columns: {id: id, question: q, question_images: p, marks: []}")
    record = next(iter(iter_records(RecordInput(path=str(path), preset=str(preset)))))
    assert place_marks(record.query, 1) == [0, "What is <image>?"]


def test_faults_name_the_column(tmp_path: Path) -> None:
    path = write_json(tmp_path / "x.json", [{"pid": "1", "querry": "x"}])
    with pytest.raises(InputError, match=r"(?s)unreadable columns.*'question' is absent"):
        survey([RecordInput(path=str(path), preset="mathvista")])
    with pytest.raises(ConfigError, match="Did you mean mathvista"):
        survey([RecordInput(path=str(path), preset="mathvsta")])
