"""The index: built once, rebuilt after changes, intact after a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index import index as index_module
from mathcanvas_lightning.data.index.index import INDEX_FOLDER, DatasetIndex, Scanner, build_index
from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage
from tests.conftest import ROOT
from tests.data.make_rows import (
    TOKENIZER,
    edit_shards,
    interleaved_row,
    interleaved_shards,
    t2i_shards,
    vlm_file,
    write_shards,
)


def build(
    path: Path, row_format: RowFormat = "interleaved", workers: int = 0, **options: Any
) -> DatasetIndex:
    source = RowSource(row_format, Storage(StorageConfig()), **options)
    return build_index(str(path), source, TextTokenizer(TOKENIZER), num_workers=workers)


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that were scanned."""
    scanned: list[str] = []
    call = Scanner.__call__

    def count(self: Scanner, tasks: Any) -> Any:
        scanned.extend(Path(path).name for path, _ in tasks)
        return call(self, tasks)

    monkeypatch.setattr(Scanner, "__call__", count)
    return scanned


def test_content(tmp_path: Path) -> None:
    index = build(interleaved_shards(tmp_path, 10))
    assert index.num_rows == 10
    assert sorted(index.uids.to_pylist()) == sorted(f"row{n}" for n in range(10))
    first = index.uids.to_pylist().index("row0")
    here = slice(index.offsets[first], index.offsets[first + 1])
    assert [Role(r).name for r in index.roles[here]] == [
        "PROMPT_TEXT",
        "CONTEXT_IMAGE",
        "ANSWER_TEXT",
        "DRAWN_IMAGE",
        "ANSWER_TEXT",
    ]
    sizes = list(zip(index.widths_px[here], index.heights_px[here], strict=True))
    assert sizes == [(0, 0), (24, 24), (0, 0), (24, 32), (0, 0)]
    tokenizer = TextTokenizer(TOKENIZER)
    assert index.text_tokens[here][0] == len(tokenizer.encode("Question 0?"))
    path = Path(index.files[index.file_numbers[first]])
    row = pq.ParquetFile(path).read_row_group(index.row_groups[first]).to_pylist()
    assert row[index.rows[first]]["id"] == "row0"


@pytest.mark.parametrize(
    ("row_format", "make", "elements"),
    [("t2i", t2i_shards, 3), ("edit", edit_shards, 6), ("vlm", vlm_file, 3)],
)
def test_other_formats(row_format: RowFormat, make: Any, elements: int, tmp_path: Path) -> None:
    index = build(make(tmp_path, 5), row_format)
    assert index.num_rows == 5
    assert index.offsets[1] == elements
    assert not index.left_out


def test_scanned_once_and_again_when_changed(tmp_path: Path, scans: list[str]) -> None:
    folder = interleaved_shards(tmp_path / "shards", 10)
    first = build(folder)
    assert sorted(scans) == ["part_0.parquet", "part_1.parquet"]
    scans.clear()
    assert build(folder).digest == first.digest
    os.utime(folder / "part_0.parquet")  # touched, with the same content
    assert build(folder).digest == first.digest
    (tmp_path / "shards").rename(tmp_path / "moved")
    folder = tmp_path / "moved"
    assert build(folder).digest == first.digest
    assert not scans
    write_shards(folder, [interleaved_row(n) for n in range(10, 14)], num_files=1)
    changed = build(folder)
    assert scans == ["part_0.parquet"]
    assert changed.digest != first.digest
    assert "row10" in changed.uids.to_pylist()
    scans.clear()
    source = RowSource("interleaved", Storage(StorageConfig()), limits=ImageLimits(max_pixels=9))
    refused = build_index(str(folder), source, TextTokenizer(TOKENIZER), num_workers=0)
    assert sorted(scans) == ["part_0.parquet", "part_1.parquet"]  # other limits need another index
    assert refused.num_rows == 0
    assert {row.stage for row in refused.left_out} == {"image"}


def test_changed_content_of_the_same_size_is_detected(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 4, num_files=1)
    build(folder)
    path = folder / "part_0.parquet"
    before = path.read_bytes()
    path.write_bytes(before.replace(b"Question 1?", b"Question 9?"))  # breaks its page checksum
    assert path.stat().st_size == len(before)
    index = build(folder)
    assert index.num_rows == 0
    assert [(row.stage, row.uid) for row in index.left_out] == [
        ("read", f"part_0.parquet:0:{n}") for n in range(4)
    ]


@pytest.mark.slow
def test_workers_give_the_same_index(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path / "a", 70, num_files=1, rows_per_group=1)
    one_process = build(folder)
    for path in (folder / INDEX_FOLDER).glob("*.parquet"):
        path.unlink()
    workers = build(folder, workers=2)
    assert workers.digest == one_process.digest
    assert workers.uids.to_pylist() == one_process.uids.to_pylist()
    assert workers.text_tokens.tolist() == one_process.text_tokens.tolist()


def test_rows_that_are_left_out(tmp_path: Path) -> None:
    rows = [interleaved_row(n) for n in range(4)]
    rows[1]["answer"] = ""
    rows[2]["question_images"][0]["bytes"] = b"no picture"
    rows[3]["question_interleave"] = "{"
    index = build(write_shards(tmp_path, rows, num_files=1))
    assert index.uids.to_pylist() == ["row0"]
    found = {row.row: (row.uid, row.stage) for row in index.left_out}
    assert found == {
        1: ("part_0.parquet:0:1", "no_sample"),
        2: ("row2", "image"),
        3: ("part_0.parquet:0:3", "row"),
    }


def test_shards_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        build(tmp_path)
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 cut short")
    with pytest.raises(DataError, match=r"bad\.parquet"):
        build(tmp_path)


def test_read_only_shards_are_indexed_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interleaved_shards(tmp_path / "shards", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module.os, "access", lambda *_: False)
    assert build(folder).num_rows == 4
    assert not (folder / INDEX_FOLDER).exists()
    assert list((tmp_path / "cache").rglob("*.parquet"))


def test_an_index_beside_read_only_shards_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: list[str]
) -> None:
    folder = interleaved_shards(tmp_path / "shards", 6)
    build(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module.os, "access", lambda *_: False)
    scans.clear()
    assert build(folder).num_rows == 6
    assert not scans
    assert not (tmp_path / "cache").exists()
    os.utime(folder / "part_0.parquet")  # as copies are: the new time is noted in the cache
    build(folder)
    write_shards(folder, [interleaved_row(n) for n in range(9, 12)], num_files=1)
    assert build(folder).num_rows == 6
    assert scans == ["part_0.parquet"]
    assert len(list((tmp_path / "cache").rglob("*.parquet"))) == 1


def test_names_of_shards(tmp_path: Path) -> None:
    """Long and odd names, capital suffixes, links to folders."""
    folder = interleaved_shards(tmp_path / "shards", 8, num_files=4)
    (folder / "part_0.parquet").rename(folder / ("n" * 240 + ".parquet"))
    (folder / "part_1.parquet").rename(folder / "PART.PARQUET")
    (folder / "part_2.parquet").rename(folder / "part.pq")
    (tmp_path / "elsewhere").mkdir()
    (folder / "part_3.parquet").rename(tmp_path / "elsewhere" / os.fsdecode(b"caf\xe9.parquet"))
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    for _ in range(2):
        index = build(folder)
        assert sorted(index.uids.to_pylist()) == sorted(f"row{n}" for n in range(8))


@pytest.mark.parametrize("name", ["", "/part_0.parquet"])
def test_file_urls_name_the_same_index(name: str, tmp_path: Path, scans: list[str]) -> None:
    folder = interleaved_shards(tmp_path / "shards", 6)
    path = f"{folder}{name}"
    plain, num_scans = build(path), len(scans)
    assert build(f"file://{path}").files == plain.files
    assert len(scans) == num_scans


def test_an_index_is_not_read_as_a_shard(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 6)
    build(folder)
    assert build(folder).num_rows == 6


KILLED = """
import sys
from tests.data.index.test_index import *
if __name__ == "__main__":
    build(Path(sys.argv[1]), workers=1)
"""


@pytest.mark.slow
def test_a_killed_build_resumes(tmp_path: Path, scans: list[str]) -> None:
    folder = interleaved_shards(tmp_path / "shards", 400, num_files=20, rows_per_group=2)
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(script), str(folder)], env=environment)
    deadline = time.monotonic() + 600
    while len(list((folder / INDEX_FOLDER).glob("part*.parquet"))) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(list((folder / INDEX_FOLDER).glob("part*.parquet")))
    assert 3 <= done < 20
    assert build(folder).num_rows == 400
    assert len(scans) == 20 - done  # finished shards are not scanned again


def test_a_script_without_main_guard_ends_with_a_remedy(tmp_path: Path) -> None:
    interleaved_shards(tmp_path / "shards", 40)
    script = tmp_path / "script.py"
    script.write_text(
        f"""
from mathcanvas_lightning.data.index.index import build_index
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage

source = RowSource("interleaved", Storage(StorageConfig()))
build_index({str(tmp_path / "shards")!r}, source, TextTokenizer({str(TOKENIZER)!r}), num_workers=1)
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 1
    assert 'below if __name__ == "__main__"' in done.stderr.splitlines()[-1]
