"""Whole conversions: their output, which depends only on the input and the settings."""

import hashlib
import json
import threading
from collections import Counter
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from mathcanvas_lightning import convert_cot, iter_examples, merge_conversion
from mathcanvas_lightning.conversion import convert as convert_module
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.samples import RecordConverter
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from mathcanvas_lightning.inspection.shards import inspect_shards
from tests.conftest import folder_bytes, png, read_jsonl, write_json

SOURCE = "enhanced_cot_cleaned.json"


def run(input_file: Path, output: Path, **options: Any) -> Any:
    return convert_cot(str(input_file), str(output), **{"num_workers": 0, **options})


def canvas_records(folder: Path, count: int) -> list[dict[str, Any]]:
    (folder / "a.png").write_bytes(png())
    return [
        {
            "id": f"m{i}",
            "question_interleave": [
                {"type": "text", "content": f"Question {i}"},
                {"type": "image", "content": "a.png"},
            ],
            "solution_interleave": [{"type": "text", "content": f"Solution {i}"}],
            "answer": str(i),
        }
        for i in range(count)
    ]


def test_every_record_is_one_row_or_one_reject(puzzles: Path, tmp_path: Path) -> None:
    records = json.loads((puzzles / SOURCE).read_text())
    report = run(puzzles / SOURCE, tmp_path / "out", samples_per_file=10)
    rejects = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    examples = list(iter_examples(tmp_path / "out"))
    assert report.problem is None
    assert report.num_records == len(records) == len(examples) + len(rejects)
    assert {e.uid for e in examples}.isdisjoint(r["id"] for r in rejects)
    kept = [r for r in records if r["pred"] == r["gt"] and "[render_result]" not in r["cot_text"]]
    assert [e.uid for e in examples] == [f"task_{r['task_id']}" for r in kept]
    assert Counter(r["reason"] for r in rejects) == report.rejects
    assert set(report.rejects) == {"wrong_answer", "render_result"}
    for reject in rejects:
        assert reject["id"] == f"task_{records[reject['record']]['task_id']}"
    summary = json.loads((tmp_path / "out" / "conversion.json").read_text())
    assert summary["rows"] == {"": len(examples)}
    assert summary["rejects"] == report.rejects


def test_images_are_the_original_bytes(puzzles: Path, tmp_path: Path) -> None:
    run(puzzles / SOURCE, tmp_path)
    for example in iter_examples(tmp_path):
        for image in example.images:
            assert image.path is not None
            assert image.data == (puzzles / image.path).read_bytes()


def test_built_in_source_has_a_stable_name(puzzles: Path, tmp_path: Path) -> None:
    """Shards of earlier versions hold a hash of it, and are resumed only if it is unchanged."""
    run(puzzles / SOURCE, tmp_path)
    summary = json.loads((tmp_path / "conversion.json").read_text())
    assert summary["source"] == "mathcanvas_lightning.conversion.sources.BlockMoving"


def test_files_and_info(puzzles: Path, tmp_path: Path) -> None:
    report = run(puzzles / SOURCE, tmp_path, samples_per_file=10, row_group_rows=4, name="blocks")
    info = json.loads((tmp_path / "train_parquet_info.json").read_text())
    names = [f"blocks_{i:03d}.parquet" for i in range(-(-report.num_rows // 10))]
    assert sorted(p.name for p in tmp_path.glob("*.parquet")) == names
    assert [file["path"] for file in info["files"]] == names
    assert info["num_files"] == len(names)
    assert info["total_samples"] == report.num_rows
    end = 0
    for file in info["files"]:
        data = (tmp_path / file["path"]).read_bytes()
        parquet = pq.ParquetFile(tmp_path / file["path"], page_checksum_verification=True)
        assert file["start_idx"] == end
        end = file["end_idx"]
        assert end - file["start_idx"] == file["num_samples"] == parquet.metadata.num_rows
        assert file["num_row_groups"] == parquet.num_row_groups == -(-file["num_samples"] // 4)
        assert file["bytes"] == len(data)
        assert file["sha256"] == hashlib.sha256(data).hexdigest()
    assert end == report.num_rows


def test_large_images_end_a_row_group_early(
    puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mathcanvas_lightning.conversion.output.writer.ROW_GROUP_BYTES", 1)
    run(puzzles / SOURCE, tmp_path)
    report = inspect_shards(str(tmp_path))
    assert set(report.row_group_rows) == {1}


def test_pages_have_checksums(puzzles: Path, tmp_path: Path) -> None:
    run(puzzles / SOURCE, tmp_path, samples_per_file=5)
    path = tmp_path / "blockmoving_000.parquet"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    report = inspect_shards(str(tmp_path))
    assert any(path.name in problem.place for problem in report.problems)


@pytest.mark.parametrize("encoding", ["json", "struct"])
def test_encodings_read_the_same(encoding: str, puzzles: Path, tmp_path: Path) -> None:
    run(puzzles / SOURCE, tmp_path / "json")
    run(puzzles / SOURCE, tmp_path / "out", interleave_encoding=encoding)
    assert list(iter_examples(tmp_path / "json")) == list(iter_examples(tmp_path / "out"))
    column = pq.read_schema(tmp_path / "out" / "blockmoving_000.parquet").field(
        "solution_interleave"
    )
    assert pa.types.is_string(column.type) == (encoding == "json")


def test_struct_reads_through_pandas_as_the_public_trainer_does(
    puzzles: Path, tmp_path: Path
) -> None:
    run(puzzles / SOURCE, tmp_path, interleave_encoding="struct")
    frame = pq.ParquetFile(tmp_path / "blockmoving_000.parquet").read_row_group(0).to_pandas()
    for _, row in frame.iterrows():
        for section in ("question", "solution"):
            images = [
                row[f"{section}_images"][item["index"]]["bytes"]
                for item in row[f"{section}_interleave"]
                if item["type"] == "image"
            ]
            assert len(images) == len(row[f"{section}_images"]) > 0
            assert all(isinstance(item["index"], int) for item in row[f"{section}_interleave"])


def test_schema_marks_image_columns_for_hugging_face(puzzles: Path, tmp_path: Path) -> None:
    run(puzzles / SOURCE, tmp_path, interleave_encoding="struct")
    schema = pq.read_schema(tmp_path / "blockmoving_000.parquet")
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == schema.names
    assert features["question_images"] == [{"_type": "Image"}]
    assert features["id"] == {"dtype": "string", "_type": "Value"}
    assert features["question_interleave"][0]["index"] == {"dtype": "int64", "_type": "Value"}


@pytest.mark.slow
def test_split_is_the_same_for_any_number_of_workers(puzzles: Path, tmp_path: Path) -> None:
    for workers in (0, 1, 3):
        run(
            puzzles / SOURCE,
            tmp_path / str(workers),
            split="train=0.8,test=0.2",
            samples_per_file=7,
            num_workers=workers,
        )
    outputs = [folder_bytes(tmp_path / str(workers)) for workers in (0, 1, 3)]
    assert outputs[0] == outputs[1] == outputs[2]
    train = {e.uid for e in iter_examples(tmp_path / "0" / "train")}
    test = {e.uid for e in iter_examples(tmp_path / "0" / "test")}
    assert train
    assert test
    assert train.isdisjoint(test)
    assert len(test) == pytest.approx(0.2 * (len(train) + len(test)), abs=1)


@pytest.mark.usefixtures("no_worker_starts")
def test_short_work_starts_no_workers(puzzles: Path, tmp_path: Path) -> None:
    run(puzzles / SOURCE, tmp_path / "none")
    for name, options in {"default": {}, "parts": {"part": "1/1"}}.items():
        run(puzzles / SOURCE, tmp_path / name, num_workers=None, **options)
    merge_conversion(str(tmp_path / "parts"), progress=False)
    expected = folder_bytes(tmp_path / "none")
    assert folder_bytes(tmp_path / "default") == folder_bytes(tmp_path / "parts") == expected


def test_bytes_do_not_depend_on_the_location_of_the_data(puzzles: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.symlink_to(puzzles)
    run(puzzles / SOURCE, tmp_path / "a", image_dir=str(puzzles))
    run(moved / SOURCE, tmp_path / "b", image_dir=str(moved))
    assert folder_bytes(tmp_path / "a") == folder_bytes(tmp_path / "b")


def test_second_run_changes_nothing(puzzles: Path, tmp_path: Path) -> None:
    first = run(puzzles / SOURCE, tmp_path, samples_per_file=10)
    before = folder_bytes(tmp_path)
    second = run(puzzles / SOURCE, tmp_path, samples_per_file=10)
    assert folder_bytes(tmp_path) == before
    assert first.num_resumed == 0
    assert second.num_resumed == first.num_rows - first.num_rows % 10
    assert first.rejects == second.rejects


def test_conversion_of_longer_input_resumes(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 25)
    source = write_json(tmp_path / "x.json", records[:17])
    run(source, tmp_path / "grown", samples_per_file=5)
    write_json(source, records)
    report = run(source, tmp_path / "grown", samples_per_file=5)
    run(source, tmp_path / "straight", samples_per_file=5)
    assert report.num_resumed == 15
    assert folder_bytes(tmp_path / "grown") == folder_bytes(tmp_path / "straight")


def test_changed_input_or_settings_are_refused(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 12)
    source = write_json(tmp_path / "x.json", records)
    run(source, tmp_path / "out", samples_per_file=5)
    before = folder_bytes(tmp_path / "out")
    with pytest.raises(OutputError, match="other settings"):
        run(source, tmp_path / "out", samples_per_file=6)
    with pytest.raises(OutputError, match="another data set"):
        run(source, tmp_path / "out", samples_per_file=5, split="a=0.5,b=0.5")
    with pytest.raises(OutputError, match="another data set"):
        run(source, tmp_path / "out", samples_per_file=5, name="other")
    write_json(source, [records[0] | {"answer": "changed"}, *records[1:]])
    with pytest.raises(OutputError, match="differs before its record 4"):
        run(source, tmp_path / "out", samples_per_file=5)
    assert folder_bytes(tmp_path / "out") == before
    report = run(source, tmp_path / "out", samples_per_file=6, overwrite=True)
    assert report.num_resumed == 0
    assert next(iter_examples(tmp_path / "out")).answer == "changed"
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2


def test_overwrite_keeps_other_files(tmp_path: Path) -> None:
    source = write_json(tmp_path / "x.json", canvas_records(tmp_path, 3))
    output = tmp_path / "out"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    run(source, output)
    run(source, output, split="a=0.5,b=0.5", overwrite=True)
    assert (output / "notes.txt").read_text() == "mine"
    assert not list(output.glob("*.parquet"))
    pq.write_table(pa.table({"x": [1]}), output / "mine.parquet")
    with pytest.raises(OutputError, match=r"mine\.parquet"):
        run(source, output, split="a=0.5,b=0.5", overwrite=True)


def test_shard_of_another_program_is_refused(tmp_path: Path) -> None:
    source = write_json(tmp_path / "x.json", canvas_records(tmp_path, 3))
    (tmp_path / "out").mkdir()
    for content in (b"no parquet", None):
        path = tmp_path / "out" / "mathcanvas_000.parquet"
        if content is None:
            pq.write_table(pa.table({"id": ["x"]}), path)
        else:
            path.write_bytes(content)
        with pytest.raises(OutputError, match="no conversion wrote"):
            run(source, tmp_path / "out")


def test_finished_shards_are_read_on_one_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An Arrow thread that holds the Python file at exit would abort the process."""
    source = write_json(tmp_path / "x.json", canvas_records(tmp_path, 3))
    run(source, tmp_path / "out")
    readers: set[int] = set()

    class Watched(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    monkeypatch.setattr(
        OutputFolder, "open", lambda folder, name: Watched(Path(folder.path(name)).read_bytes())
    )
    with pytest.raises(OutputError, match="made with other settings"):
        run(source, tmp_path / "out", samples_per_file=2)
    assert readers == {threading.get_ident()}


def test_duplicate_ids_keep_the_first_good_one(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 4)
    bad = records[1] | {"answer": None}
    source = write_json(tmp_path / "x.json", [records[0], bad, records[1], records[0], records[2]])
    for _ in range(2):
        report = run(source, tmp_path / "out", samples_per_file=1)
        assert report.rejects == {"duplicate_id": 1, "missing_field": 1}
        rejects = read_jsonl(tmp_path / "out" / "rejects.jsonl")
        assert [(r["record"], r["reason"]) for r in rejects] == [
            (1, "missing_field"),
            (3, "duplicate_id"),
        ]
        assert [e.uid for e in iter_examples(tmp_path / "out")] == ["m0", "m1", "m2"]


def test_scalar_fields_become_columns(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 4)
    more: list[dict[str, Any]] = [
        {"knowledge": "Algebra", "level": 1, "score": 1, "odd": True, "mixed": "a", "tags": ["x"]},
        {"knowledge": None, "level": 2, "score": 0.5, "odd": False, "mixed": 5},
        {"level": None, "mixed": None, "big": 2**70},
        {},
    ]
    source = write_json(tmp_path / "x.jsonl", None)
    source.write_text("\n".join(json.dumps(a | b) for a, b in zip(records, more, strict=True)))
    run(source, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "mathcanvas_000.parquet")
    assert table["knowledge"].to_pylist() == ["Algebra", None, None, None]
    assert table["level"].to_pylist() == [1, 2, None, None]
    assert table["score"].to_pylist() == [1.0, 0.5, None, None]
    assert table["odd"].to_pylist() == [True, False, None, None]
    assert table["mixed"].to_pylist() == ["a", "5", None, None]
    assert table["big"].to_pylist() == [None, None, str(2**70), None]
    assert "tags" not in table.column_names


def test_malformed_json_keeps_finished_shards(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 25)
    source = tmp_path / "x.json"
    good = json.dumps(records)
    source.write_text(good[: good.index('"m23"')])
    for _ in range(2):
        with pytest.raises(InputError, match=r"x\.json:1:\d+.*malformed JSON"):
            run(source, tmp_path / "out", samples_per_file=10)
        names = sorted(path.name for path in (tmp_path / "out").iterdir())
        assert names == ["mathcanvas_000.parquet", "mathcanvas_001.parquet"]
        assert [e.uid for e in iter_examples(tmp_path / "out")] == [f"m{i}" for i in range(20)]
    source.write_text(good)
    report = run(source, tmp_path / "out", samples_per_file=10)
    assert report.num_resumed == 20
    assert report.num_rows == 25


def test_limits_on_rejects(tmp_path: Path) -> None:
    records = canvas_records(tmp_path, 4)
    source = write_json(tmp_path / "x.json", [*records[:3], {"id": "x"}])
    assert run(source, tmp_path / "a", source="mathcanvas").problem is None
    report = run(source, tmp_path / "b", source="mathcanvas", max_reject_fraction=0.2)
    assert "25.0%" in report.problem
    write_json(source, [1, {"id": "x"}])
    report = run(source, tmp_path / "c", source="mathcanvas")
    assert "no row was kept" in report.problem
    assert report.rejects == {"missing_field": 1, "not_an_object": 1}
    write_json(source, [])
    assert "no row was kept from 0" in run(source, tmp_path / "d", source="mathcanvas").problem


def test_question_prompt(puzzles: Path, tmp_path: Path) -> None:
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Which option?\n")
    texts = {}
    for name, value in {"text": "Which option?", "file": str(prompt), "none": "none"}.items():
        run(puzzles / SOURCE, tmp_path / name, question_prompt=value)
        texts[name] = next(iter_examples(tmp_path / name)).question
    assert texts["text"] == texts["file"]
    assert texts["text"][0].text.startswith("Which option?\n\nOptions:\nA: ")  # type: ignore[union-attr]
    assert texts["none"] == texts["file"][1:]
    prompt.write_text("Which option?", encoding="utf-16")
    with pytest.raises(ConfigError, match="Save it as UTF-8"):
        run(puzzles / SOURCE, tmp_path / "x", question_prompt=str(prompt))
    with pytest.raises(ConfigError, match="looks like a file"):
        run(puzzles / SOURCE, tmp_path / "x", question_prompt="promt.txt")


def test_bad_settings(puzzles: Path, tmp_path: Path) -> None:
    for options, place in (
        ({"samples_per_file": 0}, "--samples_per_file"),
        ({"row_group_rows": -1}, "--row_group_rows"),
        ({"name": "a/b"}, "--name"),
        ({"interleave_encoding": "JSON"}, "--interleave_encoding"),
        ({"num_workers": -1}, "--num_workers"),
        ({"image_dir": "nowhere"}, "--image_dir"),
        ({"source": "nowhere.Format"}, "--source"),
        ({"source": "json.JSONDecoder"}, "--source"),
        ({"source": "mathcanvas", "question_prompt": "x"}, "--question_prompt"),
    ):
        with pytest.raises(ConfigError, match=place):
            run(puzzles / SOURCE, tmp_path / "out", **options)
    assert not list(tmp_path.glob("out/*.parquet"))


def test_unknown_format_error_lists_the_fields(tmp_path: Path) -> None:
    source = write_json(tmp_path / "x.json", [1, {"prompt": "x", "reply": "y"}])
    with pytest.raises(InputError, match=r"\['prompt', 'reply'\].*mathvision"):
        run(source, tmp_path / "out")


def test_two_conversions_in_one_folder(puzzles: Path, tmp_path: Path) -> None:
    tmp_path.joinpath("out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".conversion.lock"),
        pytest.raises(OutputError, match="another conversion"),
    ):
        run(puzzles / SOURCE, tmp_path / "out")


def test_failing_storage_stops_the_run_and_leaves_no_partial_file(
    puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RecordConverter.convert

    def fail_later(self: Any, number: int, record: Any) -> Any:
        if number == 25:
            raise InputError("s3://x", found="a storage failure", wanted="bytes", remedy="Again.")
        return real(self, number, record)

    monkeypatch.setattr(RecordConverter, "convert", fail_later)
    with pytest.raises(InputError, match="storage failure"):
        run(puzzles / SOURCE, tmp_path / "out", samples_per_file=5)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == [f"blockmoving_{i:03d}.parquet" for i in range(len(names))] != []
    monkeypatch.undo()
    run(puzzles / SOURCE, tmp_path / "out", samples_per_file=5)
    run(puzzles / SOURCE, tmp_path / "straight", samples_per_file=5)
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "straight")


@pytest.mark.parametrize(
    ("change", "num_rows"),
    [
        (lambda records: records[:3], None),
        (lambda records: [*records[:4], records[4] | {"answer": "another"}], None),
        (lambda records: [*records, records[0] | {"id": "new"}], 5),
    ],
    ids=["shorter", "changed", "longer"],
)
def test_input_that_is_written_meanwhile(
    change: Any, num_rows: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The input is read twice; only appended records may come between."""
    records = canvas_records(tmp_path, 5)
    source = write_json(tmp_path / "x.json", records)
    prepare = convert_module.prepare_folder

    def prepare_while_writing(*args: Any, **options: Any) -> Any:
        write_json(source, change(records))
        return prepare(*args, **options)

    monkeypatch.setattr(convert_module, "prepare_folder", prepare_while_writing)
    if num_rows is None:
        with pytest.raises(InputError, match="changed while they were read"):
            run(source, tmp_path / "out")
        assert not list((tmp_path / "out").glob("*.*"))
    else:
        assert run(source, tmp_path / "out").num_rows == num_rows
    monkeypatch.undo()
    assert run(source, tmp_path / "out").num_rows == len(change(records))
