"""The index command and its report."""

from pathlib import Path

import pytest

from mathcanvas_lightning import index_shards
from mathcanvas_lightning.cli.main import run_command
from tests.data.make_rows import TOKENIZER, interleaved_row, interleaved_shards, write_shards


def test_report(tmp_path: Path) -> None:
    folders = [str(interleaved_shards(tmp_path / name, 5)) for name in ("a", "b")]
    reports = index_shards(folders, tokenizer=TOKENIZER, num_workers=0)
    assert [report.path for report in reports] == folders
    assert (reports[0].num_files, reports[0].num_samples, reports[0].num_images) == (2, 5, 10)
    assert sum(reports[0].sizes_px.values()) == 10
    assert reports[0].sizes_px[24, 24] == 2
    assert reports[0].text_tokens > 50


@pytest.mark.parametrize(("damage", "status"), [(False, 0), (True, 1)])
def test_command(
    damage: bool, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [interleaved_row(n) for n in range(3)]
    rows[0]["answer"] = ""  # not a sample, but not damaged
    if damage:
        rows[1]["question_images"][0]["bytes"] = b"none"
    folder = str(write_shards(tmp_path, rows, num_files=1))
    done = run_command("index", [folder, "--tokenizer", TOKENIZER, "--num_workers", "0"])
    out = capsys.readouterr().out
    assert done == status
    assert "no_sample: 1" in out
    assert ("uid row1" in out) == damage
