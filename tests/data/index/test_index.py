"""The index: built once, rebuilt after changes, intact after a kill."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image

from mathcanvas_lightning import convert_cot
from mathcanvas_lightning.data.images.decode import ImageLimits
from mathcanvas_lightning.data.index import sidecar as sidecar_module
from mathcanvas_lightning.data.index.index import INDEX_FOLDER, DatasetIndex, Scanner, build_index
from mathcanvas_lightning.data.index.sidecar import METADATA_KEY
from mathcanvas_lightning.data.rows.readers import Role, RowFormat
from mathcanvas_lightning.data.rows.shards import INFO_FILE
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.errors import DataError
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage
from tests.conftest import ROOT, png, run_python
from tests.data.make_rows import (
    TOKENIZER,
    edit_shards,
    interleaved_row,
    interleaved_shards,
    t2i_shards,
    vlm_file,
    write_shards,
)
from tests.kills import NUM_KILLS, kill_and_resume, kill_in_the_middle


def build(
    path: Path,
    row_format: RowFormat = "interleaved",
    workers: int = 0,
    index_dir: str | None = None,
    **options: Any,
) -> DatasetIndex:
    source = RowSource(row_format, Storage(StorageConfig()), **options)
    tokenizer = TextTokenizer(TOKENIZER)
    return build_index(str(path), source, tokenizer, index_dir=index_dir, num_workers=workers)


def build_url(url: str, folder: Path) -> DatasetIndex:
    source = RowSource("interleaved", Storage(StorageConfig(cache_dir=str(folder / "cache"))))
    tokenizer = TextTokenizer(TOKENIZER)
    return build_index(url, source, tokenizer, index_dir=str(folder), num_workers=0)


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


@pytest.fixture
def read_columns(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Columns that were read from shards."""
    names: set[str] = set()
    read = Storage.read_row_group

    def note(self: Storage, path: str, group: int, columns: Any) -> Any:
        names.update(columns)
        return read(self, path, group, columns)

    monkeypatch.setattr(Storage, "read_row_group", note)
    return names


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


def test_a_shard_that_is_replaced_while_it_is_scanned_is_scanned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interleaved_shards(tmp_path, 4, num_files=1)
    path = folder / "part_0.parquet"
    changed = path.read_bytes().replace(b"Question 1?", b"Question 9?")
    call = Scanner.__call__

    def replace_after(self: Scanner, tasks: Any) -> Any:
        tables = call(self, tasks)
        path.write_bytes(changed)
        return tables

    with monkeypatch.context() as patch:
        patch.setattr(Scanner, "__call__", replace_after)
        assert build(folder).num_rows == 4
    assert build(folder).num_rows == 0  # its page checksum is broken


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


def converted(tmp_path: Path, **options: Any) -> Path:
    """Shards of the converter, with pictures of several sizes, some of them to turn."""
    source = tmp_path / "source"
    source.mkdir()
    records = []
    for number in range(9):
        names = [f"{number}_{i}.jpg" for i in range(number % 3)]
        for i, name in enumerate(names):
            picture = Image.new("RGB", (24 + 8 * number, 32 + i), "red")
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = 6 if number == 2 else 1
            picture.save(source / name, exif=exif)
        texts = [f"Step {i} <image>{name}</image>" for i, name in enumerate(names)]
        record = {"task_id": number, "gt": "A", "pred": "A"}
        records.append(record | {"cot_text": " ".join(["What?", *texts, "It is A."])})
    (source / "records.json").write_text(json.dumps(records))
    options = {"samples_per_file": 3, "row_group_rows": 2, "num_workers": 0} | options
    convert_cot(str(source / "records.json"), str(tmp_path / "shards"), **options)
    return tmp_path / "shards"


def content(index: DatasetIndex) -> dict[str, Any]:
    arrays = ("roles", "text_tokens", "widths_px", "heights_px", "offsets", "rows", "row_groups")
    found = {name: getattr(index, name).tolist() for name in arrays}
    return found | {"uids": index.uids.to_pylist(), "oriented": index.num_oriented}


@pytest.mark.parametrize("encoding", ["json", "struct"])
def test_sizes_of_the_converter_give_the_same_index(
    encoding: Any, tmp_path: Path, read_columns: set[str]
) -> None:
    shards = converted(tmp_path, interleave_encoding=encoding)
    quick = build(shards, index_dir=str(tmp_path / "quick"))
    assert not read_columns & {"question_images", "solution_images"}
    (shards / INFO_FILE).unlink()  # nothing says that the shards are as they were written
    whole = build(shards, index_dir=str(tmp_path / "whole"))
    assert read_columns > {"question_images", "solution_images"}
    assert content(quick) == content(whole)
    assert (quick.num_rows, quick.num_oriented, sum(quick.widths_px > 0)) == (6, 2, 9)


def test_sizes_of_a_remote_shard_count_if_its_size_is_the_listed_one(
    tmp_path: Path, read_columns: set[str]
) -> None:
    remote = fsspec.filesystem("memory")
    shards = converted(tmp_path)
    remote.put(str(shards), "/converted", recursive=True)
    quick = build_url("memory://converted", tmp_path / "quick")
    assert "question_images" not in read_columns
    info = json.loads((shards / INFO_FILE).read_text())
    info["files"][0]["bytes"] += 1  # an edited copy may have the sizes of the original
    remote.pipe_file(f"/converted/{INFO_FILE}", json.dumps(info).encode())
    whole = build_url("memory://converted", tmp_path / "whole")
    assert "question_images" in read_columns
    assert content(quick) == content(whole) == content(build(shards))
    remote.rm("/converted", recursive=True)


@pytest.mark.parametrize("row_format", ["t2i", "edit", "vlm"])
def test_images_to_turn_are_counted_in_every_format(
    row_format: RowFormat, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture = io.BytesIO()
    Image.new("RGB", (40, 32)).save(picture, "JPEG", exif=exif)
    turned = picture.getvalue()
    if row_format == "vlm":
        path = vlm_file(tmp_path, 2)
        (tmp_path / "pictures" / "a.png").write_bytes(turned)
    else:
        row = {"image": turned, "caption": "A box."}
        if row_format == "edit":
            row = {"image_list": [png(8, 8), turned], "instruction_list": [["Turn it."]]}
        path = write_shards(tmp_path, [row] * 2)
    assert build(path, row_format).num_oriented == 2
    assert build(path, row_format).num_oriented == 2
    assert caplog.text.count("2 images have an EXIF orientation") == 1


def test_a_changed_shard_is_read_whole(tmp_path: Path, read_columns: set[str]) -> None:
    shards = converted(tmp_path)
    shard = next(iter(sorted(shards.glob("*.parquet"))))
    data = bytearray(shard.read_bytes())
    data[data.index(b"\xff\xd8\xff") + 30] ^= 1  # in the first picture
    shard.write_bytes(data)
    index = build(shards)
    assert "question_images" in read_columns
    assert [row.stage for row in index.left_out] == ["read", "read"]
    assert index.num_rows == 4


def test_images_beyond_the_limits_are_left_out_by_either_way(tmp_path: Path) -> None:
    limits = ImageLimits(max_pixels=60 * 32)
    shards = converted(tmp_path)
    quick = build(shards, index_dir=str(tmp_path / "quick"), limits=limits)
    (shards / INFO_FILE).unlink()
    whole = build(shards, index_dir=str(tmp_path / "whole"), limits=limits)
    assert content(quick) == content(whole)
    assert quick.left_out == whole.left_out
    assert {row.stage for row in quick.left_out} == {"image"}


@pytest.mark.parametrize("layout", ["array.json", "array.jsonl"])
def test_an_array_of_conversations(layout: str, tmp_path: Path) -> None:
    """As LLaVA writes them: one JSON array in a file that is named."""
    lines = vlm_file(tmp_path, 150)
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    array = tmp_path / layout
    array.write_text(json.dumps(rows, indent=1))
    found, wanted = build(array, "vlm"), build(lines, "vlm")
    assert content(found) | {"row_groups": 0} == content(wanted) | {"row_groups": 0}
    assert len(set(found.row_groups.tolist())) == 3


def test_a_folder_without_conversations_is_named(tmp_path: Path) -> None:
    (tmp_path / "llava.json").write_text("[]")
    with pytest.raises(DataError, match=r"found no \.jsonl file; .* is read if it is named"):
        build(tmp_path, "vlm")


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


@pytest.mark.parametrize(
    ("name", "row_format", "found"),
    [
        ("rows.jsonl", "interleaved", "a JSON file for the row format interleaved"),
        ("rows.parquet", "vlm", "a Parquet file for the row format vlm"),
        ("packed.jsonl", "vlm", "a gzip file"),
    ],
)
def test_files_of_another_row_format_are_named(
    name: str, row_format: RowFormat, found: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(b"\x1f\x8b\x08\0")
    with pytest.raises(DataError) as caught:
        build(tmp_path / name, row_format)
    assert caught.value.found == found


def test_sidecars_of_other_programs_are_made_again(tmp_path: Path, scans: list[str]) -> None:
    folder = interleaved_shards(tmp_path, 4)
    wanted = content(build(folder))
    (path, *_) = sorted((tmp_path / INDEX_FOLDER).glob("*.parquet"))
    whole = pq.read_table(path)
    about = whole.schema.metadata[METADATA_KEY]
    others = [
        whole.drop_columns(["roles"]),
        whole.set_column(1, "row_group", whole["row"]),
        *(
            whole.replace_schema_metadata({METADATA_KEY: text})
            for text in (b"[]", b"{", b'{"size_bytes": 1}', b"5")
        ),
    ]
    for other in others:
        pq.write_table(other, path)
        scans.clear()
        assert content(build(folder)) == wanted
        assert scans == ["part_0.parquet"]
    assert pq.read_table(path).schema.metadata[METADATA_KEY] == about


def test_a_damaged_sidecar_is_named(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path, 4)
    build(folder)
    (path, *_) = sorted((tmp_path / INDEX_FOLDER).glob("*.parquet"))
    data = bytearray(path.read_bytes())
    data[4:60] = bytes(56)
    path.write_bytes(data)
    with pytest.raises(DataError, match="Delete it: it is made again"):
        build(folder)


def test_read_only_shards_are_indexed_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = interleaved_shards(tmp_path / "shards", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sidecar_module.os, "access", lambda *_: False)
    assert build(folder).num_rows == 4
    assert not (folder / INDEX_FOLDER).exists()
    assert list((tmp_path / "cache").rglob("*.parquet"))


def test_an_index_beside_read_only_shards_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scans: list[str]
) -> None:
    folder = interleaved_shards(tmp_path / "shards", 6)
    build(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(sidecar_module.os, "access", lambda *_: False)
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


PROGRAM = f"""
import sys
from mathcanvas_lightning.data.index.index import build_index
from mathcanvas_lightning.data.rows.source import RowSource
from mathcanvas_lightning.data.sequence.tokenizer import TextTokenizer
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.files import Storage

def work():
    source = RowSource("interleaved", Storage(StorageConfig()))
    build_index(sys.argv[1], source, TextTokenizer({TOKENIZER!r}), num_workers=1)

"""
GUARDED = (
    PROGRAM
    + """
if __name__ == "__main__":
    work()
"""
)


@pytest.mark.slow
def test_a_killed_build_resumes(tmp_path: Path, scans: list[str]) -> None:
    folder = interleaved_shards(tmp_path / "shards", 400, num_files=20, rows_per_group=2)
    script = tmp_path / "script.py"
    script.write_text(GUARDED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def num_done() -> int:
        return len(list((folder / INDEX_FOLDER).glob("part*.parquet")))

    kill_in_the_middle(
        [sys.executable, str(script), str(folder)],
        folder / INDEX_FOLDER,
        is_far=lambda: num_done() >= 3,
        is_finished=lambda: num_done() == 20,
        env=environment,
    )
    done = num_done()
    assert done >= 3
    assert build(folder).num_rows == 400
    assert len(scans) == 20 - done  # finished shards are not scanned again


def build_aside(folder: Path, index_dir: Path) -> None:
    source = RowSource("interleaved", Storage(StorageConfig()))
    tokenizer = TextTokenizer(TOKENIZER)
    build_index(str(folder), source, tokenizer, index_dir=str(index_dir), num_workers=0)


@pytest.mark.slow
def test_kills_at_random_times(tmp_path: Path) -> None:
    folder = interleaved_shards(tmp_path / "shards", 400, num_files=20, rows_per_group=2)
    files, kills = kill_and_resume(build_aside, (folder,), tmp_path / "index")
    assert kills >= NUM_KILLS
    assert len(files) == 20


@pytest.mark.slow
def test_a_script_without_main_guard_ends_with_a_remedy(tmp_path: Path) -> None:
    interleaved_shards(tmp_path / "shards", 40)
    script = tmp_path / "script.py"
    script.write_text(f"{PROGRAM}work()")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = run_python(script, tmp_path / "shards", env=environment, timeout=300)
    assert done.returncode == 1
    assert 'below if __name__ == "__main__"' in done.stderr.splitlines()[-1]
