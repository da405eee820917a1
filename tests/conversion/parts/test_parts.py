"""Parts and their merge: equal to one conversion, byte for byte, in any order and after kills."""

import itertools
import json
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mathcanvas_lightning import convert_cot, merge_conversion
from mathcanvas_lightning.cli.main import main
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.parts import blocks, part
from mathcanvas_lightning.conversion.parts.part import Part, find_markers, parse_part
from mathcanvas_lightning.errors import ConfigError, InputError, OutputError
from tests.conftest import folder_bytes, png, write_json
from tests.conversion.columns.samples import write_sample
from tests.conversion.records import canvas_record, canvas_source


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_RECORDS", 3)


def convert(path: Path, output: Path, **options: Any) -> Any:
    limits = {"max_image_reject_fraction": 1.0, "samples_per_file": 4}
    return convert_cot(
        str(path), str(output), num_workers=0, progress=False, **{**limits, **options}
    )


def merge(output: Path, **options: Any) -> Any:
    return merge_conversion(str(output), progress=False, **options)


def in_parts(source: Path, output: Path, of: int, **options: Any) -> None:
    for number in range(1, of + 1):
        convert(source, output, part=f"{number}/{of}", **options)


KINDS = {
    "good": {},
    "no image": {"question_interleave": [{"type": "image", "content": "none.png"}]},
    "no solution": {"solution_interleave": []},
    "same id": {"id": "m0"},
    "a float": {"level": 0.5},
    "a text": {"level": "hard"},
    "renamed": {"question_images": 3},
}


@pytest.mark.slow
@given(
    kinds=st.lists(st.sampled_from(list(KINDS)), min_size=1, max_size=14),
    of=st.integers(1, 5),
    order=st.randoms(use_true_random=False),
    split=st.sampled_from([None, "train=0.7,test=0.3"]),
    encoding=st.sampled_from(["json", "struct"]),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_merged_parts_equal_one_conversion(
    kinds: list[str], of: int, order: Any, split: str | None, encoding: str
) -> None:
    records = [canvas_record(n) | {"level": n} | KINDS[kind] for n, kind in enumerate(kinds)]
    options = {"split": split, "interleave_encoding": encoding, "source": "mathcanvas"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "a.png").write_bytes(png())
        source = write_json(folder / "x.json", records)
        one = convert(source, folder / "one", **options)
        numbers = list(range(1, of + 1))
        order.shuffle(numbers)
        for number in numbers:
            convert(source, folder / "merged", part=f"{number}/{of}", **options)
        merged = merge(folder / "merged")
        assert folder_bytes(folder / "merged") == folder_bytes(folder / "one")
        assert (merged.rows, merged.rejects) == (one.rows, one.rejects)
        assert merged.num_records == len(records)


@given(num_records=st.integers(0, 60), of=st.integers(1, 9))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_each_block_has_one_part(num_records: int, of: int) -> None:
    found = [list(Part(n, of).blocks(num_records)) for n in range(1, of + 1)]
    assert list(itertools.chain(*found)) == list(range(blocks.count_blocks(num_records)))
    assert max(map(len, found)) - min(map(len, found)) <= 1
    ranges = [blocks.block_range(n, num_records) for n in itertools.chain(*found)]
    assert list(itertools.chain(*ranges)) == list(range(num_records))


@pytest.mark.parametrize("name", ["zebra_cot", "sharegpt"])
def test_parts_of_public_data(name: str, tmp_path: Path) -> None:
    source = write_sample(name, tmp_path / "source", count=8)
    convert(source, tmp_path / "one", preset=name)
    in_parts(source, tmp_path / "merged", 2, preset=name)
    merge(tmp_path / "merged")
    assert folder_bytes(tmp_path / "merged") == folder_bytes(tmp_path / "one")


def test_parts_of_puzzles(puzzles: Path, tmp_path: Path) -> None:
    source = puzzles / "enhanced_cot_cleaned.json"
    options = {"split": "train=0.8,test=0.2", "question_prompt": "Which move?"}
    convert(source, tmp_path / "one", **options)
    in_parts(source, tmp_path / "merged", 3, **options)
    merge(tmp_path / "merged")
    assert folder_bytes(tmp_path / "merged") == folder_bytes(tmp_path / "one")


def test_a_part_reads_only_its_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"q": f"Q{n}", "s": "So."} for n in range(12)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet", row_group_size=3)
    read: list[Any] = []
    whole = part.InputFiles.read

    def spy(self: Any, start: int = 0, stop: int | None = None) -> Any:
        read.append((start, stop))
        return whole(self, start, stop)

    monkeypatch.setattr(part.InputFiles, "read", spy)
    keys = {"question": "q", "solution": "s"}
    convert(tmp_path / "x.parquet", tmp_path / "out", columns=keys, part="2/4")
    assert read == [(3, 6)]


def test_an_interrupted_part_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = canvas_source(tmp_path / "in", 10)
    written = part.write_block

    def fail(folder: Any, number: int, *args: Any) -> None:
        if number == 2:
            raise KeyboardInterrupt
        written(folder, number, *args)

    monkeypatch.setattr(part, "write_block", fail)
    with pytest.raises(KeyboardInterrupt):
        convert(source, tmp_path / "out", part="1/1")
    with pytest.raises(OutputError, match="no finished part"):
        merge(tmp_path / "out")
    monkeypatch.setattr(part, "write_block", written)
    report = convert(source, tmp_path / "out", part="1/1")
    assert (report.num_resumed, report.num_records) == (6, 10)
    merge(tmp_path / "out")
    convert(source, tmp_path / "one")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "one")


def test_an_interrupted_merge_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = canvas_source(tmp_path / "in", 10)
    in_parts(source, tmp_path / "out", 2)
    whole = blocks.read_block

    def fail(folder: Any, number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return whole(folder, number)

    path = "mathcanvas_lightning.conversion.parts.merge.read_block"
    monkeypatch.setattr(path, fail)
    with pytest.raises(KeyboardInterrupt):
        merge(tmp_path / "out")
    monkeypatch.setattr(path, whole)
    assert merge(tmp_path / "out").num_resumed == 4
    convert(source, tmp_path / "one")
    assert folder_bytes(tmp_path / "out") == folder_bytes(tmp_path / "one")


def test_a_merge_resumes_what_one_conversion_began(tmp_path: Path) -> None:
    source = canvas_source(tmp_path / "in", 10)
    convert(source, tmp_path / "out")
    whole = folder_bytes(tmp_path / "out")
    (tmp_path / "out" / "mathcanvas_001.parquet").unlink()
    in_parts(source, tmp_path / "out", 2)
    assert merge(tmp_path / "out").num_resumed == 4
    assert folder_bytes(tmp_path / "out") == whole


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/0", "a/b", "-1/3", ""])
def test_a_wrong_part(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--part.*1/8, 2/8"):
        parse_part(text)


def test_missing_and_mixed_parts_are_named(tmp_path: Path) -> None:
    source, output = canvas_source(tmp_path / "in", 10), tmp_path / "out"
    with pytest.raises(OutputError, match="no finished part"):
        merge(output)
    convert(source, output, part="2/4")
    with pytest.raises(OutputError, match=r"no finished part 1/4, 3/4, 4/4.*Run --part 1/4"):
        merge(output)
    with pytest.raises(OutputError, match=r"part 2/4 of a job with 4 parts.*--part 1/2"):
        convert(source, output, part="1/2")
    (output / ".parts" / "1_of_2.json").write_text("{}")
    with pytest.raises(OutputError, match="parts of 2 and of 4"):
        merge(output)


def test_parts_of_other_settings_or_inputs_are_refused(tmp_path: Path) -> None:
    source, output = canvas_source(tmp_path / "in", 10), tmp_path / "out"
    convert(source, output, part="1/2")
    convert(source, output, part="2/2", samples_per_file=5)
    with pytest.raises(OutputError, match=r"other settings in .*block_000000.* and .*block_000002"):
        merge(output)
    with pytest.raises(OutputError, match="a block of another conversion"):
        convert(source, output, part="1/2", samples_per_file=5)
    convert(source, output, part="1/2", samples_per_file=5, overwrite=True)
    assert merge(output).num_rows == 10
    convert(source, tmp_path / "more", part="1/2")
    longer = canvas_source(tmp_path / "in", 13)
    convert(longer, tmp_path / "more", part="2/2")
    with pytest.raises(OutputError, match="inputs with 10 and 13 records"):
        merge(tmp_path / "more")


def test_a_marker_of_another_program_is_named(tmp_path: Path) -> None:
    (tmp_path / ".parts").mkdir()
    for text in ("{}", "[", "3"):
        (tmp_path / ".parts" / "1_of_1.json").write_text(text)
        with pytest.raises(OutputError, match=r"1_of_1\.json, which no part wrote"):
            merge(tmp_path)


def test_a_changed_input_is_refused(tmp_path: Path) -> None:
    source, output = canvas_source(tmp_path / "in", 4), tmp_path / "out"
    convert(source, output, part="1/1")
    write_json(source, [canvas_record(n) | {"answer": "x"} for n in range(4)])
    with pytest.raises(OutputError, match="or of other records"):
        convert(source, output, part="1/1")


def test_a_damaged_block_is_named(tmp_path: Path) -> None:
    source, output = canvas_source(tmp_path / "in", 4), tmp_path / "out"
    in_parts(source, output, 2)
    block = output / ".parts" / "block_000001.parquet"
    data = block.read_bytes()
    block.write_bytes(data[:-9])
    with pytest.raises(OutputError, match=r"block_000001.*no block, or a damaged one"):
        merge(output)
    block.write_bytes(data[:40] + bytes(8) + data[48:])
    with pytest.raises(OutputError, match=r"block_000001.*a damaged file"):
        merge(output)
    block.unlink()
    convert(source, output, part="2/2")
    assert merge(output).num_rows == 4


def test_more_parts_than_blocks(tmp_path: Path) -> None:
    source = canvas_source(tmp_path / "in", 4)
    in_parts(source, tmp_path / "out", 5)
    assert merge(tmp_path / "out").num_rows == 4
    assert not (tmp_path / "out" / ".parts").exists()


def test_malformed_input_leaves_no_finished_part(tmp_path: Path) -> None:
    source = canvas_source(tmp_path / "in", 4)
    source.write_text(source.read_text()[:-5])
    with pytest.raises(InputError, match="malformed JSON"):
        convert(source, tmp_path / "out", part="1/2")
    assert not any((tmp_path / "out").rglob("*.json"))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = canvas_source(tmp_path / "in", 4), tmp_path / "out"
    for number in (1, 2):
        words = ["--input", str(source), "--output", str(output), "--part", f"{number}/2"]
        assert main(["convert", *words, "--num_workers", "0"]) == 0
    assert f"convert --merge {output}" in capsys.readouterr().out
    assert main(["convert", "--merge", str(output)]) == 0
    assert json.loads((output / "conversion.json").read_text())["records"] == 4
    assert main(["convert", "--merge", str(output)]) == 1
    assert "no finished part" in capsys.readouterr().err


def test_markers_are_sorted_by_number(tmp_path: Path) -> None:
    source = canvas_source(tmp_path / "in", 40)
    in_parts(source, tmp_path / "out", 11)
    found = list(find_markers(OutputFolder(str(tmp_path / "out"))))
    assert [one.number for one in found] == list(range(1, 12))
