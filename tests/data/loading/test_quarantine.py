"""Damaged rows are an error by default; if allowed, they are listed and leave the same holes."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.index.index import INDEX_FOLDER
from mathcanvas_lightning.data.loading import quarantine as quarantine_module
from mathcanvas_lightning.data.loading.config import WorkerConfig
from mathcanvas_lightning.data.loading.quarantine import Quarantine
from mathcanvas_lightning.data.rows.left_out import LeftOutRow
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT
from mathcanvas_lightning.errors import DataError, OutputError
from tests.conftest import examples, read_jsonl
from tests.data.hashes import by_step, uids
from tests.data.make_rows import config, interleaved_row, module, vlm_file, write_shards

NUM_ROWS = 24
DamageFunction = Callable[[Path], set[str]]
"""Damages shards in a folder and returns the ids of the damaged rows."""


def good_rows() -> list[dict[str, Any]]:
    return [interleaved_row(n) for n in range(NUM_ROWS)]


def corrupt_page(folder: Path) -> set[str]:
    """Changes a byte of a page, which damages the whole row group."""
    path = folder / "part_0.parquet"
    data = path.read_bytes()
    assert data.count(b"Question 10?") == 1
    path.write_bytes(data.replace(b"Question 10?", b"Question 11?"))
    return rows_of_group(path, "row10")


def rows_of_group(path: Path, uid: str) -> set[str]:
    order = [f"row{n}" for n in range(0 if path.name == "part_0.parquet" else 1, NUM_ROWS, 2)]
    group = order.index(uid) // 4
    return set(order[4 * group : 4 * group + 4])


def truncate(folder: Path) -> set[str]:
    """Cuts the end of a file."""
    path = folder / "part_1.parquet"
    path.write_bytes(path.read_bytes()[:-1000])
    return {f"row{n}" for n in range(1, NUM_ROWS, 2)}


def wrong_length(folder: Path) -> set[str]:
    """Writes a wrong length into the index."""
    [path] = (folder / INDEX_FOLDER).glob("part_0*.parquet")
    table = pq.read_table(path)
    values = table["text_tokens"].to_pylist()
    values[2][0] += 1
    column = pa.array(values, table.schema.field("text_tokens").type)
    number = table.schema.get_field_index("text_tokens")
    pq.write_table(table.set_column(number, "text_tokens", column), path)
    return {table["uid"][2].as_py()}


def bad_picture(folder: Path) -> set[str]:
    """Truncates the pixels of a picture; its header stays intact."""
    rows = good_rows()
    image = rows[5]["solution_images"][0]
    image["bytes"] = image["bytes"][:-20]
    write_shards(folder, rows)
    return {"row5"}


def opened(folder: Path, **options: Any) -> MathCanvasDataModule:
    listing = folder.parent / "quarantine.jsonl"
    defaults = {"quarantine_file": str(listing), "dropout": NO_DROPOUT, "packs_per_step": 2}
    return module(config(folder), **{**defaults, **options})


def opened_before(
    folder: Path, damage: DamageFunction, ranks: int = 1, **options: Any
) -> tuple[list[MathCanvasDataModule], set[str]]:
    """Data modules that were set up before the damage, and the ids of the damaged rows."""
    write_shards(folder, good_rows())
    opened(folder)
    if damage in (bad_picture, wrong_length):  # the damage must exist before the index is read
        bad = damage(folder)
        return [opened(folder, **options) for _ in range(ranks)], bad
    modules = [opened(folder, **options) for _ in range(ranks)]
    return modules, damage(folder)


DAMAGES = {corrupt_page: "read", truncate: "read", wrong_length: "length", bad_picture: "image"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_rows_are_listed_exactly(damage: DamageFunction, tmp_path: Path) -> None:
    found: dict[tuple[int, int], dict[tuple[int, int], list[str]]] = {}
    for ranks, workers in ((1, 0), (2, 0), (1, 3)):
        folder = tmp_path / f"{ranks}_{workers}" / "set"
        whole: dict[tuple[int, int], list[str]] = {}
        emitted: list[str] = []
        processes = WorkerConfig(num_workers=workers)
        modules, bad = opened_before(folder, damage, ranks, max_bad_fraction=0.6, workers=processes)
        for rank, data in enumerate(modules):
            data.use_rank(rank, ranks)
            batches = list(data.train_dataloader())
            emitted += uids(batches)
            for key, digests in by_step(batches).items():
                whole[key] = sorted([*whole.get(key, []), *digests])
            for batch in batches:
                assert sum(s.num_tokens for s in batch.samples) in (
                    batch.pack.sequence_length,
                    0,
                )
        found[ranks, workers] = whole
        lines = read_jsonl(folder.parent / "quarantine.jsonl")
        assert {line["uid"] for line in lines} == bad
        assert len(lines) == len(bad)
        assert {line["stage"] for line in lines} == {DAMAGES[damage]}
        assert sorted([*emitted, *bad]) == sorted(f"row{n}" for n in range(NUM_ROWS))
    assert found[1, 0] == found[2, 0] == found[1, 3]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", DAMAGES)
def test_the_default_is_an_error_that_names_the_row(
    damage: DamageFunction, workers: int, tmp_path: Path
) -> None:
    [data], bad = opened_before(tmp_path / "set", damage, workers=WorkerConfig(num_workers=workers))
    with pytest.raises(DataError) as caught:
        list(data.train_dataloader())
    message = str(caught.value)
    assert any(f"(uid {uid})" in message for uid in bad)
    assert "row group" in message
    assert f"part_{1 if damage in (truncate, bad_picture) else 0}.parquet" in message
    assert "max_bad_fraction" in message
    assert not (tmp_path / "quarantine.jsonl").exists()


def test_too_many_damaged_rows_are_an_error(tmp_path: Path) -> None:
    [data], bad = opened_before(tmp_path / "set", truncate, max_bad_fraction=0.1)
    with pytest.raises(DataError, match=r"[3-9] bad of 24 rows"):
        list(data.train_dataloader())
    assert len(read_jsonl(tmp_path / "quarantine.jsonl")) <= len(bad)


def test_damage_found_while_indexing(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    rows = good_rows()
    rows[3]["solution_images"][0]["bytes"] = b"none"
    rows[4]["answer"] = ""
    write_shards(folder, rows)
    with pytest.raises(DataError, match=r"uid row3\).*image"):
        opened(folder)
    data = opened(folder, max_bad_fraction=0.05)
    emitted = uids(data.train_dataloader())
    stages = {line["uid"]: line["stage"] for line in read_jsonl(tmp_path / "quarantine.jsonl")}
    assert sorted(stages.values()) == ["image", "no_sample"]
    assert len(emitted) + len(stages) == NUM_ROWS
    again = opened(folder, max_bad_fraction=0.05)
    list(again.train_dataloader())
    assert len(read_jsonl(tmp_path / "quarantine.jsonl")) == 2  # each row once


def test_rows_without_answer_are_not_damage(tmp_path: Path) -> None:
    rows = good_rows()
    rows[0]["answer"] = None
    rows[1]["answer"] = "A"
    data = opened(write_shards(tmp_path / "set", rows))
    assert "row0" not in uids(data.train_dataloader())


def test_a_file_truncated_by_a_kill_is_completed(tmp_path: Path) -> None:
    [data], _ = opened_before(tmp_path / "set", corrupt_page, max_bad_fraction=0.6)
    list(data.train_dataloader())
    listing = tmp_path / "quarantine.jsonl"
    complete = listing.read_text()
    listing.write_text(complete[:-15])
    list(data.train_dataloader())
    assert sorted(listing.read_text().splitlines()) == sorted(complete.splitlines())


def test_holes_have_no_loss(tmp_path: Path) -> None:
    [data], bad = opened_before(tmp_path / "set", corrupt_page, max_bad_fraction=0.6)
    for batch in data.train_dataloader():
        starts = np.cumsum([0, *batch.pack.sample_lens])
        for sample, start in zip(batch.samples, starts, strict=False):
            here = range(start, start + sample.num_tokens)
            losses = {*batch.pack.ce_indexes.tolist(), *batch.pack.mse_indexes.tolist()}
            assert sample.is_hole == (sample.uid in bad)
            assert sample.is_hole == losses.isdisjoint(here)
    assert json.loads((tmp_path / "quarantine.jsonl").read_text().splitlines()[0])["error"]


BROKEN: dict[str, dict[str, Any]] = {
    "NaN index": {"question_interleave": '[{"type": "image", "index": NaN}]'},
    "half a character": {"solution_interleave": '[{"type": "text", "content": "caf\\ud83d"}]'},
    "deep": {"question_interleave": "[" * 100_000},
}
BROKEN_TALKS: dict[str, Any] = {
    "turn": {"conversations": ["hello"]},
    "conversations": {"conversations": "hello"},
    "image": {"image": 5},
    "path": {"image": "\ud800.png"},
    "id": {"id": "\ud800"},
    "text": {
        "conversations": [
            {"from": "human", "value": "<image>a\ud83d"},
            {"from": "gpt", "value": "A."},
        ]
    },
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_row_that_breaks_its_reader_is_left_out(kind: str, tmp_path: Path) -> None:
    rows = good_rows()
    rows[2] |= BROKEN[kind]
    folder = write_shards(tmp_path / "set", rows)
    with pytest.raises(DataError, match=r"part_0\.parquet, row group 0, row 1 \(uid "):
        opened(folder)
    data = opened(folder, max_bad_fraction=0.1)
    assert len(uids(data.train_dataloader())) == NUM_ROWS - 1
    [line] = read_jsonl(tmp_path / "quarantine.jsonl")
    assert (line["row_group"], line["row"], line["stage"]) == (0, 1, "row")


@pytest.mark.parametrize("kind", BROKEN_TALKS)
def test_a_line_that_breaks_its_reader_is_left_out(kind: str, tmp_path: Path) -> None:
    path = vlm_file(tmp_path / "talks", 4)
    lines = path.read_text().splitlines()
    lines[2] = json.dumps(json.loads(lines[2]) | BROKEN_TALKS[kind])
    path.write_text("\n".join(lines))
    options = {"max_bad_fraction": 0.5, "quarantine_file": str(tmp_path / "quarantine.jsonl")}
    for _ in range(2):
        data = module(config(path, "vlm"), **options)
        assert sorted(uids(data.train_dataloader())) == ["talk0", "talk1", "talk3"]
    [line] = read_jsonl(tmp_path / "quarantine.jsonl")
    assert (line["row"], line["stage"]) == (2, "row")


def ledger(path: Path) -> Quarantine:
    return Quarantine(path, 0.9, 100, {"set": "d" * 64})


def left_out(number: int, **changes: Any) -> LeftOutRow:
    values: dict[str, Any] = {
        "uid": f"row{number}",
        "path": "part.parquet",
        "row_group": number,
        "row": 0,
        "stage": "image",
        "error": "truncated",
        "dataset": "set",
    }
    return LeftOutRow(**{**values, **changes})


@settings(deadline=None, max_examples=examples(60))
@given(uid=st.text(st.characters()), error=st.text(st.characters()))
def test_any_text_survives_in_the_list(uid: str, error: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "list.jsonl")
        rows = [left_out(0, uid=uid, error=error), left_out(1)]
        for _ in range(2):
            ledger(path).add(rows)
        lines = [json.loads(line) for line in path.read_bytes().split(b"\n") if line]
        assert [line["uid"] for line in lines] == [uid, "row1"]
        assert lines[0]["error"] == error


@settings(deadline=None, max_examples=examples(20))
@given(ids=st.lists(st.text(min_size=1), min_size=3, max_size=3, unique=True))
def test_any_id_survives_index_list_and_restart(ids: list[str]) -> None:
    rows = [{**interleaved_row(n), "id": uid} for n, uid in enumerate(ids)]
    rows[1]["question_images"][0]["bytes"] = b"none"
    with tempfile.TemporaryDirectory() as name:
        folder = write_shards(Path(name, "set"), rows, num_files=1)
        for _ in range(2):
            data = opened(folder, max_bad_fraction=0.5, packs_per_step=1)
            assert sorted(uids(data.train_dataloader())) == sorted([ids[0], ids[2]])
        listed = Path(name, "quarantine.jsonl").read_bytes().split(b"\n")
        assert [json.loads(line)["uid"] for line in listed if line] == [ids[1]]


def test_lines_of_others_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    others = 'not json\n{"dataset": ["a"]}\n3\n{"id": 1}'
    path.write_text(others)  # the last line has no line feed
    for _ in range(2):
        ledger(path).add([left_out(0)])
    assert path.read_text().startswith(f"{others}\n")
    assert len(path.read_text().splitlines()) == 5


def test_ranks_share_the_list_and_read_only_what_is_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = quarantine_module.parse_line
    monkeypatch.setattr(
        quarantine_module, "parse_line", lambda line: parsed.append(line) or parse(line)
    )
    path = tmp_path / "list.jsonl"
    ranks = [ledger(path), ledger(path)]
    for number in range(40):
        for rank in ranks:
            rank.add([left_out(number)])
    assert len(read_jsonl(path)) == 40
    assert len(list(filter(None, parsed))) == 40  # each line once, by the rank that did not write
    path.unlink()
    ranks[0].add([left_out(0)])  # a list that was removed is started again
    assert len(read_jsonl(path)) == 1


def test_the_share_of_damaged_rows_counts_those_of_all_ranks(tmp_path: Path) -> None:
    ranks = [Quarantine(tmp_path / "list.jsonl", 0.03, 100, {"set": "d"}) for _ in range(2)]
    ranks[0].add([left_out(0), left_out(1), left_out(2, stage="too_long")])
    ranks[1].add([left_out(3)])
    with pytest.raises(DataError, match="4 bad of 100 rows"):
        ranks[0].add([left_out(4)])


def test_shards_that_were_replaced_by_others_of_the_same_shape(tmp_path: Path) -> None:
    """The ids of their rows differ, which the lengths need not do."""
    rows = [interleaved_row(n) for n in range(6)]
    folder = write_shards(tmp_path / "rows", rows)
    options = {"max_bad_fraction": 1.0, "quarantine_file": str(tmp_path / "left_out.jsonl")}
    data = module(config(folder), **options)
    write_shards(folder, [row | {"id": f"new-{row['id']}"} for row in rows])
    samples = [sample for batch in data.train_dataloader() for sample in batch.samples]
    assert all(sample.is_hole for sample in samples)
    left_out = read_jsonl(tmp_path / "left_out.jsonl")
    assert len(left_out) == 6
    for row in left_out:
        assert f"found the row new-{row['uid']}; wanted the row {row['uid']}, " in row["error"]


def test_a_folder_is_no_quarantine_file(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "rows", [{**interleaved_row(0), "answer": ""}, *good_rows()])
    with pytest.raises(OutputError, match="found a folder"):
        module(config(folder), quarantine_file=str(tmp_path))
