"""Training from failing servers: it recovers, or stops with the object's name; no row is lost."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.data.loading.config import WorkerConfig
from mathcanvas_lightning.errors import StorageError
from mathcanvas_lightning.storage import files, ranges
from mathcanvas_lightning.storage.config import StorageConfig
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from tests.data.hashes import digest, uids
from tests.data.make_rows import (
    config,
    interleaved_row,
    interleaved_shards,
    module,
    vlm_file,
    write_shards,
)
from tests.servers import Fault, FaultyProxy, S3Server, faulty_proxy, file_server, s3_server

NUM_ROWS = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("data") / "set", NUM_ROWS)


@pytest.fixture(scope="module")
def wanted(folder: Path) -> list[str]:
    return [digest(batch) for batch in module(config(folder)).train_dataloader()]


@pytest.fixture(scope="module")
def bucket(folder: Path) -> Iterator[S3Server]:
    with s3_server("shards") as server:
        server.put_folder("shards", folder)
        yield server


@pytest.fixture
def proxy(bucket: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(bucket.endpoint) as found:
        yield found


@pytest.fixture(autouse=True)
def index_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def remote(tmp_path: Path, options: dict[str, Any], *, timeout_s: float = 60.0, **more: Any) -> Any:
    storage = StorageConfig(
        cache_dir=str(tmp_path / "cache"),
        max_retries=3,
        backoff_s=0.01,
        timeout_s=timeout_s,
        storage_options=options,
    )
    defaults = {"quarantine_file": str(tmp_path / "quarantine.jsonl"), "max_bad_fraction": 1.0}
    return module(config("s3://shards", name="set"), storage=storage, **{**defaults, **more})


@pytest.mark.slow
def test_packs_equal_those_of_local_shards(
    bucket: S3Server, wanted: list[str], tmp_path: Path
) -> None:
    data = remote(tmp_path, bucket.options(), workers=WorkerConfig(num_workers=2))
    assert [digest(batch) for batch in data.train_dataloader()] == wanted


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=500, times=3),
        Fault(status=503, times=3),
        Fault(reset=True, times=2),
        Fault(stall_after=10, times=1),
        Fault(cut_after=100, times=3),
        Fault(corrupt_at=0.5, times=2),
    ],
    ids=["500", "503", "reset", "stall", "cut", "corrupt"],
)
@pytest.mark.parametrize("during", ["index", "training"])
def test_recovers(
    fault: Fault,
    during: str,
    bucket: S3Server,
    proxy: FaultyProxy,
    wanted: list[str],
    tmp_path: Path,
) -> None:
    if during == "index":
        proxy.fault = fault
    timeout_s = 60.0 if fault.stall_after is None else 2.5
    data = remote(tmp_path, bucket.options(proxy.url), timeout_s=timeout_s)
    if during == "training":
        for path in (tmp_path / "cache").rglob("*"):
            if path.is_file():
                path.unlink()
        proxy.fault = fault
    assert [digest(batch) for batch in data.train_dataloader()] == wanted
    assert proxy.num_faults > 0
    assert not (tmp_path / "quarantine.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("fault", [Fault(status=503), Fault(cut_after=100)], ids=["503", "cut"])
def test_fails_with_the_name_of_the_object(
    fault: Fault, workers: int, bucket: S3Server, proxy: FaultyProxy, tmp_path: Path
) -> None:
    data = remote(tmp_path, bucket.options(proxy.url), workers=WorkerConfig(num_workers=workers))
    for path in (tmp_path / "cache").rglob("*"):
        if path.is_file():
            path.unlink()
    proxy.fault = fault
    with pytest.raises(StorageError, match=r"s3://shards/part_\d\.parquet"):
        list(data.train_dataloader())
    assert not (tmp_path / "quarantine.jsonl").exists()  # a failing server is not a bad row


@pytest.mark.slow
@pytest.mark.parametrize("ranges", [True, False])
def test_conversations_over_http(ranges: bool, tmp_path: Path) -> None:
    vlm_file(tmp_path / "talks", 6)
    with file_server(tmp_path / "talks", ranges=ranges) as url, faulty_proxy(url) as proxy:
        proxy.fault = Fault(status=503, times=2)
        storage = StorageConfig(cache_dir=str(tmp_path / "cache"), backoff_s=0.01)
        data = module(config(f"{proxy.url}/talks.jsonl", "vlm"), storage=storage)
        assert sorted(uids(data.train_dataloader())) == [f"talk{n}" for n in range(6)]
        assert proxy.num_faults == 2


@pytest.mark.slow
def test_a_large_file_of_lines_is_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "BLOCK_BYTES", 4096)
    monkeypatch.setattr(files, "BLOCK_BYTES", 4096)
    path = vlm_file(tmp_path / "talks", 100)
    fetched: list[tuple[int, int]] = []
    read = RemoteFiles.read_range

    def count(self: Any, url: str, start: int, end: int, status: Any) -> bytes:
        fetched.append((start, end))
        return read(self, url, start, end, status)

    monkeypatch.setattr(RemoteFiles, "read_range", count)
    with file_server(tmp_path / "talks") as url:
        storage = StorageConfig(cache_dir=str(tmp_path / "cache"), backoff_s=0.01)
        data = module(config(f"{url}/talks.jsonl", "vlm"), storage=storage)
        assert len(uids(data.train_dataloader())) == 100
    assert len(set(fetched)) == len(fetched)
    assert sum(end - start for start, end in fetched) == path.stat().st_size


@pytest.mark.parametrize("ranges", [True, False])
def test_one_shard_over_http(ranges: bool, folder: Path, tmp_path: Path) -> None:
    with file_server(folder, ranges=ranges) as url:
        storage = StorageConfig(cache_dir=str(tmp_path / "cache"), backoff_s=0.01)
        data = module(config(f"{url}/part_0.parquet"), storage=storage)
        assert sorted(uids(data.train_dataloader())) == sorted(
            f"row{n}" for n in range(0, NUM_ROWS, 2)
        )


def test_signatures_stay_out_of_ids_and_files(tmp_path: Path) -> None:
    rows = [interleaved_row(n) for n in range(4)]
    for row in rows:
        del row["id"]
    rows[1]["question_images"][0]["bytes"] = b"none"
    write_shards(tmp_path / "served", rows, num_files=1)
    with file_server(tmp_path / "served") as url:
        storage = StorageConfig(cache_dir=str(tmp_path / "cache"), backoff_s=0.01)
        options = {"quarantine_file": str(tmp_path / "quarantine.jsonl"), "max_bad_fraction": 1.0}
        for signature in ("secret", "other"):
            path = f"{url}/part_0.parquet?X-Amz-Signature={signature}"
            data = module(config(path), storage=storage, **options)
            found = sorted(uids(data.train_dataloader()))
            assert found == [f"part_0.parquet:0:{n}" for n in (0, 2, 3)]
    assert "part_0.parquet" in (tmp_path / "quarantine.jsonl").read_text()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len([path for path in files if path.parent.parent.name == "index"]) == 2  # and a lock
    for path in files:
        assert "Signature" not in path.name
        assert b"X-Amz-Signature" not in path.read_bytes()
