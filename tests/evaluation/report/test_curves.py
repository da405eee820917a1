"""The page shows the curves of a run; other files are refused with their name."""

import re
from base64 import b64decode
from pathlib import Path

import pytest

from mathcanvas_lightning.errors import InputError
from mathcanvas_lightning.evaluation.report.page import write_report
from mathcanvas_lightning.records.files import write_records

METRICS = """step,train/ce,train/mse,val/puzzles/ce,val/puzzles/accuracy,lr,answers/p/accuracy
0,4.0,1.0,,,0.1,
9,2.0,0.5,,,0.1,
9,,,3.0,0.25,,0.25
19,1.0,nan,1.5,0.5,0.1,0.75
"""


def write_page(folder: Path, curves: Path) -> str:
    answers = folder / "answers.jsonl"
    write_records(answers, [{"sample_index": 0, "query_cot": "1 + 1?", "model_answer": "2"}])
    return write_report(str(answers), curves=str(curves)).path.read_text()


def test_the_page_has_the_curves(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS)
    found = re.search(
        r"src=\"data:image/svg\+xml;base64,([^\"]+)\"", write_page(tmp_path, tmp_path)
    )
    assert found is not None
    drawn = b64decode(found[1]).decode()
    assert all(name in drawn for name in METRICS.partition("\n")[0].split(",")[1:])


@pytest.mark.parametrize("text", ["", "epoch,loss\n1,2\n", "step,train/ce\nx,1\n"])
def test_other_files_are_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    if text:
        with pytest.raises(InputError, match=r"other\.csv"):
            write_page(tmp_path, path)
    else:
        assert "svg" not in write_page(tmp_path, path)
    with pytest.raises(InputError, match="absent"):
        write_page(tmp_path, tmp_path / "absent.csv")
