"""Damaged rows are an error by default; if allowed, they are listed and leave the same holes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mathcanvas_lightning.data.datamodule import MathCanvasDataModule
from mathcanvas_lightning.data.index.index import INDEX_FOLDER
from mathcanvas_lightning.data.loading.config import WorkerConfig
from mathcanvas_lightning.data.sequence.roles import NO_DROPOUT
from mathcanvas_lightning.errors import DataError
from tests.conftest import read_jsonl
from tests.data.hashes import by_step, uids
from tests.data.make_rows import config, interleaved_row, module, write_shards

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
