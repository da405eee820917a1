"""The output folder belongs to its manifest: files of others are never changed."""

import json
import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning import convert_cot, index_shards, iter_examples
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from tests.conftest import examples, folder_bytes
from tests.conversion.records import canvas_record, canvas_source, noise_png, run


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


def parquet_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": [1]}), path)
    return path


@pytest.mark.slow
@settings(max_examples=examples(12), deadline=None)
@given(
    sizes=st.lists(st.integers(1, 11), min_size=2, max_size=4).map(sorted),
    rows=st.integers(1, 4),
    split=st.sampled_from([None, "train=0.5,test=0.5"]),
)
def test_growing_beside_an_index(
    sizes: list[int], rows: int, split: str | None, folder: Path
) -> None:
    """Convert, index, append records, convert: as if all records had been there at first."""
    shutil.rmtree(folder / "grow", ignore_errors=True)
    for size in sizes:
        source = canvas_source(folder / "grow", size)
        report = run(source, folder / "grow" / "out", samples_per_file=rows, split=split)
        assert report.num_rows == size
        index_shards([str(folder / "grow" / "out")], num_workers=0, progress=False)
    run(source, folder / "grow" / "straight", samples_per_file=rows, split=split)
    grown = folder_bytes(folder / "grow" / "out")
    kept = {name: data for name, data in grown.items() if ".mathcanvas_index" not in name}
    assert kept == folder_bytes(folder / "grow" / "straight")
    assert len(grown) > len(kept)


NEIGHBOURS = [
    *("notes.txt", ".tmp-notes", ".tmp-x_000.parquet", "sub/.tmp-mathcanvas_000.parquet"),
    *("sub/notes.txt", "sub/other_000.parquet", "sub/mathcanvas_000.parquet"),
    *(".hidden/mathcanvas_000.parquet", "sub/deep/mathcanvas_001.parquet", "mine.parquet"),
    *("mathcanvas_007.parquet", "train/mathcanvas_000.parquet", "train/conversion.json"),
    *("train/other.parquet", "sub/train_parquet_info.json", "sub/rejects.jsonl"),
    *("test/train_parquet_info.json", "x.PARQUET"),
]


@settings(max_examples=examples(60), deadline=None)
@given(
    names=st.sets(st.sampled_from(NEIGHBOURS), max_size=5),
    set_in=st.sampled_from([None, "sub", "train", "other"]),
    first=st.sampled_from([None, "train=0.5,test=0.5"]),
    second=st.sampled_from([None, "train=0.5,test=0.5", "a=0.5,b=0.5"]),
    prefix=st.sampled_from(["mathcanvas", "new"]),
)
def test_overwriting_beside_neighbours(
    names: set[str],
    set_in: str | None,
    first: str | None,
    second: str | None,
    prefix: str,
    folder: Path,
) -> None:
    """Neighbours stay as they are. A refusal changes nothing at all."""
    shutil.rmtree(folder / "over", ignore_errors=True)
    source = canvas_source(folder / "over", 4)
    output = folder / "over" / "out"
    run(source, output, samples_per_file=2, split=first)
    theirs = {name: name.encode() for name in names if not (output / name).exists()}
    for name, content in theirs.items():
        (output / name).parent.mkdir(exist_ok=True, parents=True)
        (output / name).write_bytes(content)
    if set_in is not None and not (output / set_in).exists():
        run(source, output / set_in, samples_per_file=2)
        files = folder_bytes(output / set_in)
        theirs |= {f"{set_in}/{name}": data for name, data in files.items()}
    before = folder_bytes(output)
    try:
        report = run(source, output, samples_per_file=3, split=second, name=prefix, overwrite=True)
    except OutputError as error:
        assert "nothing was deleted" in str(error)
        assert folder_bytes(output) == before
    else:
        after = folder_bytes(output)
        assert theirs.items() <= after.items()
        assert report.num_rows == 4
        run(source, folder / "over" / "new", samples_per_file=3, split=second, name=prefix)
        assert after == theirs | folder_bytes(folder / "over" / "new")


def test_overwrite_leaves_a_data_set_in_a_sub_folder(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 4)
    for output in ("data", "data/other"):
        run(source, tmp_path / output)
    other = folder_bytes(tmp_path / "data" / "other")
    for _ in range(2):
        assert run(source, tmp_path / "data", name="mine", overwrite=True).num_rows == 4
        assert folder_bytes(tmp_path / "data" / "other") == other
    assert not (tmp_path / "data" / "mathcanvas_000.parquet").exists()


def test_split_is_not_an_output_folder(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", split="train=0.5,test=0.5")
    before = folder_bytes(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="the split train of the conversion in"):
            run(source, tmp_path / "out" / "train", overwrite=overwrite)
    assert folder_bytes(tmp_path / "out") == before


def test_output_of_another_conversion_is_not_a_split(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out" / "train")
    before = folder_bytes(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="the output of another conversion"):
            run(source, tmp_path / "out", split="train=0.5,test=0.5", overwrite=overwrite)
    assert folder_bytes(tmp_path / "out") == before


def test_shards_of_a_killed_conversion_are_replaced(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    for split in (None, "train=0.5,test=0.5"):
        run(source, tmp_path / "out", samples_per_file=2, split=split, overwrite=True)
        for name in ("conversion.json", "rejects.jsonl", "train_parquet_info.json"):
            for path in (tmp_path / "out").rglob(name):
                path.unlink()
        with pytest.raises(OutputError, match="other settings"):
            run(source, tmp_path / "out", samples_per_file=3, split=split)
        report = run(source, tmp_path / "out", samples_per_file=3, split=split, overwrite=True)
        assert (report.num_resumed, report.num_rows) == (0, 6)
        run(source, tmp_path / "straight", samples_per_file=3, split=split, overwrite=True)
        assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "straight")


def test_splits_of_a_killed_conversion_are_not_left_beside_new_shards(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", split="train=0.5,test=0.5")
    (tmp_path / "out" / "conversion.json").unlink()
    before = folder_bytes(tmp_path / "out")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="a split of an unfinished conversion"):
            run(source, tmp_path / "out", overwrite=overwrite)
    assert folder_bytes(tmp_path / "out") == before


@pytest.mark.parametrize("name", ["conversion.json", "rejects.jsonl", "train_parquet_info.json"])
@pytest.mark.parametrize("content", ['{"my": "file"}', "text", "[1]"])
def test_files_of_others_with_our_names_are_kept(name: str, content: str, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 2)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="no conversion wrote"):
            run(source, tmp_path / "out", overwrite=overwrite)
    assert folder_bytes(tmp_path / "out") == {name: content.encode()}


def test_manifest_names_only_folders_inside(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 2)
    run(source, tmp_path / "out")
    run(source, tmp_path / "precious")
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    summary["split"] = {"../precious": 1.0}
    (tmp_path / "out" / "conversion.json").write_text(json.dumps(summary))
    before = folder_bytes(tmp_path)
    with pytest.raises(OutputError, match="no conversion wrote"):
        run(source, tmp_path / "out", overwrite=True)
    assert folder_bytes(tmp_path) == before


def test_refusals_come_before_anything_is_deleted(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", samples_per_file=2)
    mine = parquet_file(tmp_path / "out" / "mine.parquet")
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(OutputError, match=r"mine\.parquet"):
        run(source, tmp_path / "out", overwrite=True)
    assert folder_bytes(tmp_path / "out") == before
    mine.unlink()
    with pytest.raises(ConfigError, match="--num_workers"):
        run(source, tmp_path / "out", num_workers=-1, overwrite=True)
    source.write_text(source.read_text()[:-20])
    with pytest.raises(InputError, match="malformed JSON"):
        run(source, tmp_path / "out", samples_per_file=2, overwrite=True)
    assert folder_bytes(tmp_path / "out") == {
        name: data for name, data in before.items() if name != "mine.parquet"
    }


def test_temporary_files_of_others_are_kept(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 2)
    theirs = ["sub/.tmp-of-another-tool", ".tmp-notes", "sub/.tmp-mathcanvas_000.parquet"]
    ours = [".tmp-mathcanvas_000.parquet", ".tmp-rejects.jsonl", ".tmp-conversion.json"]
    for name in (*theirs, *ours):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).write_text("precious")
    (tmp_path / "out" / ".tmp-mathcanvas_001.parquet").mkdir()
    run(source, tmp_path / "out")
    assert all((tmp_path / "out" / name).exists() for name in theirs)
    assert not any((tmp_path / "out" / name).exists() for name in ours)


def test_folder_with_a_temporary_name_is_named(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 2)
    (tmp_path / "out" / ".tmp-mathcanvas_000.parquet").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"\.tmp-mathcanvas_000\.parquet: found a folder"):
        run(source, tmp_path / "out")
    assert (tmp_path / "out" / ".tmp-mathcanvas_000.parquet").is_dir()


@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize("split", [None, "train=0.5,test=0.5"])
def test_damaged_shard_is_written_again(
    is_finished: bool, split: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = canvas_source(tmp_path, 12)
    (tmp_path / "a.png").write_bytes(noise_png())
    output = tmp_path / "out"
    run(source, output, samples_per_file=2, split=split)
    before = folder_bytes(output)
    damaged = sorted(output.rglob("*.parquet"))[1]
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    if not is_finished:
        (output / "conversion.json").unlink()
        for info in output.rglob("train_parquet_info.json"):
            info.unlink()
    with caplog.at_level(logging.WARNING):
        report = run(source, output, samples_per_file=2, split=split)
    assert f"{damaged}: damaged" in caplog.text
    assert folder_bytes(output) == before
    assert report.num_resumed < 12
    report = run(source, output, samples_per_file=2, split=split)
    assert report.num_resumed == 12


@pytest.mark.parametrize("is_damaged", [True, False])
def test_only_the_damaged_or_missing_shard_is_written(is_damaged: bool, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 11)
    run(source, tmp_path / "out", samples_per_file=2)
    before = folder_bytes(tmp_path / "out")
    files = {path.name: path.stat().st_ino for path in (tmp_path / "out").glob("*.parquet")}
    shard = tmp_path / "out" / "mathcanvas_001.parquet"
    if is_damaged:
        shard.write_bytes(shard.read_bytes()[:-10])
    else:
        shard.unlink()
    assert run(source, tmp_path / "out", samples_per_file=2).num_resumed == 8
    assert folder_bytes(tmp_path / "out") == before
    for name in ("mathcanvas_000.parquet", "mathcanvas_002.parquet", "mathcanvas_004.parquet"):
        assert (tmp_path / "out" / name).stat().st_ino == files[name]


def test_damage_costs_no_other_shard(tmp_path: Path) -> None:
    """Not even if the images of the damaged shard are gone: whoever has them may run again."""
    source = canvas_source(tmp_path, 10)
    run(source, tmp_path / "out", samples_per_file=2)
    before = folder_bytes(tmp_path / "out")
    shard = tmp_path / "out" / "mathcanvas_001.parquet"
    damaged = shard.read_bytes()[:-10]
    shard.write_bytes(damaged)
    image = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").unlink()
    report = run(source, tmp_path / "out", samples_per_file=2)
    assert report.rejects == {"image_missing": 2}
    assert report.problem is not None
    after = folder_bytes(tmp_path / "out")
    assert after.pop("mathcanvas_001.parquet.damaged") == damaged
    for name in after:
        assert not name.endswith(".parquet") or after[name] == before[name]
    (tmp_path / "a.png").write_bytes(image)
    run(source, tmp_path / "out", samples_per_file=2)
    assert folder_bytes(tmp_path / "out") == before | {"mathcanvas_001.parquet.damaged": damaged}


def test_damaged_footer_is_written_again(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", samples_per_file=2)
    before = folder_bytes(tmp_path / "out")
    shard = tmp_path / "out" / "mathcanvas_001.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    run(source, tmp_path / "out", samples_per_file=2)
    assert folder_bytes(tmp_path / "out") == before


def test_damage_does_not_hide_other_settings(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 6)
    run(source, tmp_path / "out", samples_per_file=2)
    shard = tmp_path / "out" / "mathcanvas_000.parquet"
    shard.write_bytes(shard.read_bytes()[:-10])
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(OutputError, match="other settings"):
        run(source, tmp_path / "out", samples_per_file=2, row_group_rows=1)
    assert folder_bytes(tmp_path / "out") == before


def test_shard_that_grew_before_a_kill_is_kept(tmp_path: Path) -> None:
    """The info file still lists the smaller shard."""
    source = canvas_source(tmp_path, 3)
    run(source, tmp_path / "out", samples_per_file=2)
    old = folder_bytes(tmp_path / "out")
    run(canvas_source(tmp_path, 5), tmp_path / "out", samples_per_file=2)
    for name in ("conversion.json", "rejects.jsonl", "train_parquet_info.json"):
        (tmp_path / "out" / name).write_bytes(old[name])
    assert run(source, tmp_path / "out", samples_per_file=2).num_resumed == 4
    assert [e.uid for e in iter_examples(tmp_path / "out")] == [f"m{i}" for i in range(5)]


@pytest.mark.parametrize("output", ["file", "file/sub", "/proc/conversion"])
def test_impossible_output(output: str, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 2)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="a place where no folder can be made"):
        run(source, tmp_path / output)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_output_is_no_input(tmp_path: Path) -> None:
    """A folder that holds the output of its conversion is read without it."""
    canvas_source(tmp_path, 5)
    for count in (5, 5, 8):
        canvas_source(tmp_path, count)
        report = run(tmp_path, tmp_path / "out", samples_per_file=2)
        assert report.num_records == report.num_rows == count
    (tmp_path / "link").symlink_to("out")
    assert run(tmp_path, tmp_path / "link", samples_per_file=2).num_records == 8


@pytest.mark.parametrize("pattern", ["", "*.json"])
def test_the_input_folder_is_no_output(pattern: str, tmp_path: Path) -> None:
    canvas_source(tmp_path, 5)
    with pytest.raises(InputError, match="the folder of --output"):
        run(tmp_path / pattern, tmp_path)
    assert run(tmp_path / "x.json", tmp_path).num_rows == 5


def test_empty_paths(tmp_path: Path) -> None:
    source = str(canvas_source(tmp_path, 1))
    with pytest.raises(InputError, match="--input: found an empty path"):
        convert_cot("", str(tmp_path / "out"))
    with pytest.raises(ConfigError, match="--output: found an empty path"):
        convert_cot(source, "")


def test_splits_without_a_row_leave_nothing(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 3)
    (tmp_path / "a.png").unlink()
    assert not run(source, tmp_path / "out", split="a=0.5,b=0.5").num_rows
    canvas_source(tmp_path, 3)
    assert run(source, tmp_path / "out").num_rows == 3
    assert not list((tmp_path / "out").glob("[ab]*"))


@pytest.mark.parametrize("value", [5.0, -0.1, float("nan")])
def test_fractions_are_within_bounds(value: float, tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 1)
    for name in ("max_reject_fraction", "max_image_reject_fraction"):
        with pytest.raises(ConfigError, match=f"--{name}"):
            run(source, tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("appended", [0, 1, 2])
def test_rows_of_an_earlier_run_are_not_lost_with_their_images(
    appended: int, tmp_path: Path
) -> None:
    """The last shard is not full, so it is written again; without its image it stays."""
    source = canvas_source(tmp_path, 5)
    run(source, tmp_path / "out", samples_per_file=2)
    before = folder_bytes(tmp_path / "out")
    image = (tmp_path / "a.png").read_bytes()
    canvas_source(tmp_path, 5 + appended)
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match=r"record 4 \(m4\): found image_missing: .* converted it"):
        run(source, tmp_path / "out", samples_per_file=2)
    assert folder_bytes(tmp_path / "out") == before
    (tmp_path / "a.png").write_bytes(image)
    assert run(source, tmp_path / "out", samples_per_file=2).num_rows == 5 + appended


def test_rejected_records_stay_rejected_beside_a_shard_that_grows(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 1)
    records = [canvas_record(0), canvas_record(1, "b.png"), canvas_record(1, "a.png")]
    source.write_text(json.dumps(records))
    assert run(source, tmp_path / "out").rejects == {"image_missing": 1}
    assert run(source, tmp_path / "out").num_rows == 2
    (tmp_path / "b.png").write_bytes(noise_png())
    assert run(source, tmp_path / "out").rejects == {"duplicate_id": 1}


def test_nothing_replaces_finished_shards_with_nothing(tmp_path: Path) -> None:
    source = canvas_source(tmp_path, 3)
    run(source, tmp_path / "out")
    before = folder_bytes(tmp_path / "out")
    source.write_text("[]")
    with pytest.raises(InputError, match="no record"):
        run(source, tmp_path / "out", source="mathcanvas", overwrite=True)
    assert folder_bytes(tmp_path / "out") == before
