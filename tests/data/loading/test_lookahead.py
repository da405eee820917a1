"""Row groups are read once by a worker, not once a pack."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mathcanvas_lightning.batch import LossTotals
from mathcanvas_lightning.data.loading.lookahead import with_wanted_rows
from mathcanvas_lightning.data.loading.pack_dataset import CACHE_BYTES, PackTask, SampleRef
from mathcanvas_lightning.data.plan.epoch import Plan
from mathcanvas_lightning.data.rows.row_cache import RowCache
from mathcanvas_lightning.storage.files import Storage
from tests.data.make_rows import config, interleaved_shards, module, planned, vlm_file


def task(rows: Sequence[tuple[int, int]]) -> PackTask:
    """A pack of rows: (row group, row in the group)."""
    refs = [
        SampleRef(0, "shard", group, row, f"{group}:{row}", counter=0, visit=0, length=1)
        for group, row in rows
    ]
    return PackTask(0, 0, tuple(refs), LossTotals())


@dataclass
class FakeRows:
    rows: Collection[int]
    num_bytes: int

    def row(self, number: int, place: str) -> dict[str, Any]:
        assert number in self.rows, place
        return {}


def read_all(
    tasks: Iterator[PackTask], num_workers: int, row_bytes: int, max_bytes: int
) -> list[int]:
    """The row groups that workers read; the packs are dealt out in turn."""
    caches = [RowCache(max_bytes) for _ in range(num_workers)]
    reads: list[int] = []
    for number, pack in enumerate(with_wanted_rows(tasks, num_workers)):
        for ref in pack.samples:

            def read(rows: Collection[int], group: int = ref.row_group) -> FakeRows:
                reads.append(group)
                return FakeRows(rows, row_bytes * len(rows))

            cache = caches[number % num_workers]
            found = cache.read(ref.group, ref.row, pack.wanted[ref.group], read)
            found.row(ref.row, "here")
    return reads


@pytest.mark.parametrize("rows_per_group", [32, 600])
def test_reads_of_a_row_group_in_an_epoch(rows_per_group: int) -> None:
    """About once by each of 8 workers, though neighbouring packs use rows of all groups."""
    random = np.random.default_rng(0)
    lengths = np.clip(random.normal(7000, 2100, 5_000), 500, 25_000).astype(int)
    plan = Plan(
        [planned(lengths.tolist(), rows_per_group=rows_per_group)], seed=0, max_num_tokens=51_200
    )
    epoch = plan.epoch(0)
    packs = (epoch.rows[list(epoch.samples(pack))].tolist() for pack in range(epoch.num_packs))
    tasks = (task([divmod(row, rows_per_group) for row in rows]) for rows in packs)
    reads = read_all(tasks, 8, 2**18, CACHE_BYTES // 8)
    assert len(reads) / -(-len(lengths) // rows_per_group) < 9


@settings(deadline=None)
@given(
    packs=st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9)), max_size=6)),
    num_workers=st.integers(1, 4),
    max_rows=st.integers(0, 20),
)
def test_every_row_is_found_for_any_order_and_memory(
    packs: list[list[tuple[int, int]]], num_workers: int, max_rows: int
) -> None:
    reads = read_all(map(task, packs), num_workers, 1, max_rows)
    assert {group for pack in packs for group, _ in pack} == set(reads)


def test_an_epoch_reads_each_group_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[tuple[str, int]] = []
    read = Storage.read_row_group

    def count(storage: Storage, path: str, group: int, columns: Any) -> Any:
        reads.append((path, group))
        return read(storage, path, group, columns)

    data = module(config(interleaved_shards(tmp_path / "set", 40)))
    monkeypatch.setattr(Storage, "read_row_group", count)
    for _ in range(2):
        reads.clear()
        list(data.train_dataloader())
        assert len(reads) == len(set(reads)) == 10


def test_lines_are_kept_by_their_number(tmp_path: Path) -> None:
    data = module(config(vlm_file(tmp_path / "talks", 70), "vlm"))
    source = data.train_data.datasets[0].source
    [path] = data.train_data.datasets[0].index.files
    kept = source.read(path, 0, [3, 60])
    assert kept.row(60, "here")["id"] == "talk60"
    assert kept.num_bytes < source.read(path, 0).num_bytes / 10
