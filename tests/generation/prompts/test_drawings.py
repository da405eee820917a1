"""True and shuffled drawings of records, and how they reach a backend."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.generation.prompts import drawings as module
from mathcanvas_lightning.generation.prompts.drawings import shuffled
from mathcanvas_lightning.generation.requests import DrawingsUse, Sampling
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS, png
from tests.generation.fakes import LastFirst
from tests.generation.runs import predict, records, write_lines

pytestmark = [pytest.mark.filterwarnings(text) for text in TRAINER_WARNINGS]

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


class Drawing(LastFirst):
    """A backend with a use of drawings."""

    def __init__(self, use: DrawingsUse) -> None:
        super().__init__()
        self.drawings = use


@given(lengths=st.lists(st.integers(0, 4), max_size=12), seed=st.integers(0, 9))
def test_shuffled_drawings_are_of_the_same_step_of_others(lengths: list[int], seed: int) -> None:
    own = [[(number, step) for step in range(size)] for number, size in enumerate(lengths)]
    found = shuffled(own, seed)
    assert found == shuffled(own, seed)
    for step in range(4):
        owners = [number for number, size in enumerate(lengths) if size > step]
        given_now = [(number, one[step]) for number, one in enumerate(found) if len(one) > step]
        if len(owners) < 2:
            assert not given_now
            continue
        assert [number for number, _ in given_now] == owners
        assert sorted(drawing for _, drawing in given_now) == [(n, step) for n in owners]
        assert all(drawing[0] != number for number, drawing in given_now)


def questions(folder: Path, num: int) -> RecordInput:
    """Records with one drawing each in a field."""
    some = records(num)
    for number, record in enumerate(some):
        (folder / f"{number}.png").write_bytes(png(colour=COLOURS[number]))
        record["solution_images"] = [f"{number}.png"]
    path = write_lines(folder / "questions.jsonl", some)
    return RecordInput(path=str(path), output=str(folder / "answers.jsonl"))


def asked(use: DrawingsUse, source: RecordInput, seed: int = 0) -> dict[str, Any]:
    """Index of the record -> colours of the drawings that a backend gets with it."""
    backend = Drawing(use)
    predict(backend, [source], sampling=Sampling(seed=seed))
    colour_of = {png(colour=colour): colour for colour in COLOURS}
    return {
        one.uid.split(":")[1]: one.drawings
        and [colour_of[picture.data] for picture in one.drawings]
        for one in backend.asked
    }


def test_each_use_of_the_drawings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_RECORDS", 3)
    uses: list[DrawingsUse] = ["own", "none", "reference", "shuffled"]
    found = {}
    for use in uses:
        folder = tmp_path / use
        folder.mkdir()
        found[use] = asked(use, questions(folder, 6))
    true = {str(number): [colour] for number, colour in enumerate(COLOURS)}
    assert found["own"] == found["none"] == dict.fromkeys(true)
    assert found["reference"] == true
    for number in range(6):  # drawings of the same block of three records
        (colour,) = found["shuffled"][str(number)]
        assert colour in set(COLOURS[number // 3 * 3 :][:3]) - {COLOURS[number]}


def test_a_resumed_run_shuffles_as_before(tmp_path: Path) -> None:
    source = questions(tmp_path, 4)
    first = asked("shuffled", source, seed=5)
    journal = tmp_path / "answers.jsonl.journal" / "rank0.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:2]))
    again = asked("shuffled", source, seed=5)
    assert len(again) == 2
    assert again.items() <= first.items()


def test_drawings_of_a_shard(tmp_path: Path) -> None:
    images = [{"bytes": png(colour=colour), "path": None} for colour in COLOURS[:2]]
    texts = [{"type": "text", "content": text} for text in ("First", "then")]
    row = {
        "id": "a",
        "question_interleave": [{"type": "text", "content": "What?"}],
        "solution_interleave": [
            texts[0],
            {"type": "image", "index": 1},
            texts[1],
            {"type": "image", "index": 0},
        ],
        "question_images": [],
        "solution_images": images,
        "answer": "1",
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    source = RecordInput(path=str(tmp_path / "a.parquet"), output=str(tmp_path / "b.jsonl"))
    assert asked("reference", source) == {"a": ["green", "red"]}


def test_a_changed_drawing_is_asked_again(tmp_path: Path) -> None:
    source = questions(tmp_path, 2)
    assert len(asked("reference", source)) == 2
    some = records(2)
    some[0]["solution_images"], some[1]["solution_images"] = ["0.png"], ["0.png"]
    write_lines(tmp_path / "questions.jsonl", some)
    assert asked("reference", source) == {"1": ["red"]}


def test_a_broken_drawing_fails_alone(tmp_path: Path) -> None:
    source = questions(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    assert asked("reference", source) == {"0": ["red"], "2": ["blue"]}
    text = (tmp_path / "answers.jsonl").read_text()
    assert "picture_missing" in text
    assert "solution, picture 1" in text


def test_records_without_drawings_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "questions.jsonl", records(2))
    source = RecordInput(path=str(path), drawings_field="steps")
    with pytest.raises(InputError, match="'steps'"):
        asked("reference", source)
