"""Shards on local disks, S3 and HTTP servers, with all that goes wrong on the way."""

import contextlib
import errno
import logging
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mathcanvas_lightning.common.paths import is_remote
from mathcanvas_lightning.errors import ConfigError, DataError, StorageError
from mathcanvas_lightning.storage import parquet
from mathcanvas_lightning.storage.config import Entry, StorageConfig
from mathcanvas_lightning.storage.files import Storage
from mathcanvas_lightning.storage.local_files import LocalFiles
from mathcanvas_lightning.storage.parquet import fetch_row_group, read_footer, read_row_group
from mathcanvas_lightning.storage.remote_files import RemoteFiles
from mathcanvas_lightning.storage.retry import with_retries
from tests.servers import Fault, FaultyProxy, S3Server, faulty_proxy, file_server, s3_server

NUM_ROWS = 60
GROUP_ROWS = 20
QUICK = StorageConfig(max_retries=2, backoff_s=0.01, timeout_s=60.0)
BOUND_S = 50.0
"""Less than a silent server is silent."""


def make_table(seed: int = 0, image_bytes: int = 4000) -> pa.Table:
    rng = np.random.default_rng(seed)
    images = [
        [{"bytes": rng.bytes(image_bytes), "path": None} for _ in range(row % 3)]
        for row in range(NUM_ROWS)
    ]
    return pa.table(
        {
            "id": [f"{seed}-{row}" for row in range(NUM_ROWS)],
            "images": images,
            "answer": ["x" * 50] * NUM_ROWS,
            "level": list(range(NUM_ROWS)),
        }
    )


def write_shard(path: Path, seed: int = 0, **options: Any) -> pa.Table:
    table = make_table(seed, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(
        table, path, row_group_size=GROUP_ROWS, write_page_checksum=True, compression="none"
    )
    return table


def group(table: pa.Table, number: int, columns: list[str] | None = None) -> pa.Table:
    part = table.slice(number * GROUP_ROWS, GROUP_ROWS)
    return part if columns is None else part.select(columns)


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)


# Local files


@pytest.fixture
def shard(tmp_path: Path) -> tuple[Path, pa.Table]:
    path = tmp_path / "shard.parquet"
    return path, write_shard(path)


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_local_row_groups(shard: tuple[Path, pa.Table], prefix: str) -> None:
    path, table = shard
    storage = Storage(QUICK)
    place = f"{prefix}{path}"
    assert not is_remote(place)
    assert storage.metadata(place).num_row_groups == 3
    assert storage.status(place).size_bytes == path.stat().st_size
    assert storage.read_bytes(place) == path.read_bytes()
    for number in range(3):
        assert storage.read_row_group(place, number, None).equals(group(table, number))
    some = storage.read_row_group(place, 1, ["images", "none", "id"])
    assert some.equals(group(table, 1, ["images", "id"]))
    assert storage.read_row_group(place, 1, ["none"]).num_rows == GROUP_ROWS
    for number in (-1, 3):
        with pytest.raises(DataError, match=r"shard\.parquet: found 3 row groups"):
            storage.read_row_group(place, number, None)


def test_row_groups_that_are_too_large_for_one_array(
    shard: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow refuses to read over 2 GiB of a nested column at once."""

    def refuse(*_: Any, **__: Any) -> None:
        raise pa.ArrowNotImplementedError("Nested data conversions not implemented")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", refuse)
    monkeypatch.setattr(parquet, "PART_ROWS", 2)
    path, table = shard
    read = Storage(QUICK).read_row_group(str(path), 1, ["images", "id"])
    assert read.column("id").num_chunks > 1
    assert read.combine_chunks().equals(group(table, 1, ["images", "id"]).combine_chunks())


def test_a_column_that_occurs_twice(tmp_path: Path) -> None:
    path = tmp_path / "shard.parquet"
    pq.write_table(pa.table([["A"], ["wrong"]], names=["answer", "answer"]), path)
    storage = Storage(QUICK)
    for read in (
        storage.metadata,
        lambda place: storage.read_row_group(place, 0, ["answer"]),
        lambda place: list(storage.iter_batches(place, 2)),
    ):
        with pytest.raises(DataError, match=r"shard\.parquet: found the column 'answer' twice"):
            read(str(path))


def test_an_encrypted_file_is_named(shard: tuple[Path, pa.Table]) -> None:
    path, _ = shard
    path.write_bytes(path.read_bytes()[:-4] + b"PARE")
    with pytest.raises(DataError, match="an encrypted file: decrypt it first"):
        Storage(QUICK).metadata(str(path))


def test_local_damage_names_the_file(shard: tuple[Path, pa.Table]) -> None:
    path, table = shard
    storage = Storage(QUICK)
    flip(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"shard\.parquet, row group 1: found damage.*CRC"):
        storage.read_row_group(str(path), 1, None)
    assert storage.read_row_group(str(path), 0, None).equals(group(table, 0))
    path.write_bytes(path.read_bytes()[:-100])  # while it is open
    with pytest.raises(DataError, match=r"shard\.parquet, row group 0: found damage"):
        storage.read_row_group(str(path), 0, None)
    with pytest.raises(DataError, match=r"shard\.parquet: found damage"):
        storage.metadata(str(path))
    path.write_bytes(b"")
    with pytest.raises(DataError, match=r"shard\.parquet: found damage"):
        storage.metadata(str(path))


def test_local_file_that_is_missing(tmp_path: Path) -> None:
    storage = Storage(QUICK)
    reads: list[Callable[[str], Any]] = [
        storage.status,
        storage.metadata,
        storage.read_bytes,
        lambda path: storage.read_row_group(path, 0, None),
        storage.list_files,
    ]
    for read in reads:
        with pytest.raises(DataError, match=r"none\.parquet.*found nothing"):
            read(str(tmp_path / "none.parquet"))
    for read in reads[:4]:
        with pytest.raises(DataError, match="found a folder"):
            read(str(tmp_path))


def test_local_file_that_is_replaced(shard: tuple[Path, pa.Table]) -> None:
    path, table = shard
    storage = Storage(QUICK)
    before = storage.status(str(path))
    assert storage.read_row_group(str(path), 0, None).equals(group(table, 0))
    other = write_shard(path.with_name("other"), seed=1)
    os.utime(path.with_name("other"), (1, 1))  # some systems count in hundredths of a second
    path.with_name("other").replace(path)
    assert storage.read_row_group(str(path), 0, None).equals(group(other, 0))
    assert storage.status(str(path)).version != before.version


def test_many_local_files_are_not_all_kept_open(tmp_path: Path) -> None:
    storage = Storage(QUICK)
    tables = {str(tmp_path / f"{i}.parquet"): i for i in range(20)}
    written = {path: write_shard(Path(path), seed, image_bytes=10) for path, seed in tables.items()}
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        for path, table in written.items():
            assert storage.read_row_group(path, 2, ["id"]).equals(group(table, 2, ["id"]))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 8


def test_small_files_have_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(b"12345")
    storage = Storage(QUICK)
    assert storage.read_bytes(str(path), max_bytes=5) == b"12345"
    with pytest.raises(DataError, match=r"picture\.png: found more than 4 bytes"):
        storage.read_bytes(str(path), max_bytes=4)


NAMES = ["a/p-2.parquet", "a/p-10.parquet", "b/p-1.parquet", "p.parquet"]
LEFT_OUT = [".hidden.parquet", "a/.cache/x.parquet", "a/info.json"]


def put_names(folder: Path) -> None:
    for name in [*NAMES, *LEFT_OUT]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")


def in_order(root: str) -> list[str]:
    return [f"{root}/{name}" for name in [NAMES[3], *NAMES[:3]]]


def test_listing(tmp_path: Path) -> None:
    put_names(tmp_path)
    storage = Storage(QUICK)
    assert storage.list_files(str(tmp_path)) == in_order(str(tmp_path))
    assert storage.list_files(f"file://{tmp_path}") == in_order(str(tmp_path))
    assert storage.list_files(str(tmp_path / "a" / "info.json")) == [str(tmp_path / "a/info.json")]
    assert storage.list_files(str(tmp_path), suffix=".json") == [str(tmp_path / "a/info.json")]
    with pytest.raises(DataError, match=r"no \.jpg file"):
        storage.list_files(str(tmp_path), suffix=".jpg")


def test_listing_follows_links(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    put_names(folder)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "p-1.parquet").write_bytes(b"xy")
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    (folder / "q.parquet").symlink_to(tmp_path / "elsewhere" / "p-1.parquet")
    (folder / "a" / "up").symlink_to(folder)
    (tmp_path / "elsewhere" / "round").symlink_to(folder / "a")
    (tmp_path / "root").symlink_to(folder)
    (folder / "itself").symlink_to(folder / "itself")
    for root in (folder, tmp_path / "root"):
        found = Storage(QUICK).list_statuses(str(root))
        names = [*(f"link/{name}" for name in ("p-1.parquet",)), "q.parquet", *NAMES]
        inside = {str(Path(path).relative_to(root)) for path in found}
        assert inside == {*names, *(f"link/round/{Path(n).name}" for n in NAMES[:2])}
        assert found[str(root / "link" / "p-1.parquet")].size_bytes == 2
    (folder / "gone.parquet").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"gone\.parquet: found nothing"):
        Storage(QUICK).list_statuses(str(folder))
    (folder / "gone.parquet").unlink()
    (folder / "loop.parquet").symlink_to(folder / "loop.parquet")
    with pytest.raises(DataError, match=r"loop\.parquet: found something that can't be read"):
        Storage(QUICK).list_statuses(str(folder))


def test_writing_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = Storage(QUICK)
    with storage.writing("~/a/b.txt") as path:
        path.write_text("x")
        assert not (tmp_path / "a" / "b.txt").exists()
    with pytest.raises(ValueError, match="stop"), storage.writing("~/a/b.txt") as path:
        path.write_text("y")
        raise ValueError("stop")
    assert storage.read_bytes("~/a/b.txt") == b"x"
    with storage.fetched(f"file://{tmp_path}/a/b.txt") as path:
        assert path == tmp_path / "a" / "b.txt"
    assert [entry.path for entry in storage.list_folder("~/a")] == [f"{tmp_path}/a/b.txt"]
    for _ in range(2):
        storage.remove("~/a/b.txt")
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("failures", [1, 9])
def test_a_hiccup_of_the_disk_is_no_damage(
    failures: int, shard: tuple[Path, pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is retried, then an error of the storage: no row is left out for it."""
    path, table = shard
    storage = Storage(StorageConfig(max_retries=3, backoff_s=0.0))
    left = [failures]
    read = LocalFiles.find_status

    def fail(self: LocalFiles, name: str) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.ESTALE, "Stale file handle")
        return read(self, name)

    monkeypatch.setattr(LocalFiles, "find_status", fail)
    if failures == 1:
        assert storage.metadata(str(path)).num_rows == table.num_rows
    else:
        with pytest.raises(StorageError, match=f"{path.name}.*Stale file handle"):
            storage.metadata(str(path))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), GeneratorExit()])
def test_an_interrupt_is_not_retried(error: BaseException) -> None:
    calls = []

    def interrupted() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        with_retries(StorageConfig(backoff_s=0.0), "a.parquet", interrupted)
    assert len(calls) == 1


def test_settings_are_checked() -> None:
    with pytest.raises(ConfigError, match="timeout_s: found 0; wanted a positive number"):
        StorageConfig(timeout_s=0)
    with pytest.raises(ConfigError, match="max_retries: found -1"):
        StorageConfig(max_retries=-1)


def test_storage_needs_no_torch() -> None:
    code = (
        "import sys; import mathcanvas_lightning.storage.files; "
        "assert not {'torch', 'lightning', 's3fs', 'aiohttp'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)


# Servers


class Remote:
    """A server behind a proxy, and a shard on it."""

    def __init__(self, kind: str, proxy: FaultyProxy, root: str, options: dict[str, Any]) -> None:
        self.kind = kind
        self.proxy = proxy
        self.root = root
        self.url = f"{root}/shard.parquet"
        self.options = options
        self.folder = Path()
        self.s3: S3Server | None = None

    def put(self, name: str, data: bytes) -> None:
        if self.s3 is not None:
            self.s3.put(f"shards/{name}", data)
        else:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_bytes(data)

    def num_requests(self, method: str = "") -> int:
        return sum(method in request.method for request in self.proxy.requests)


KINDS = ["s3", "http", "rangeless"]


@pytest.fixture(scope="module")
def remotes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Remote]]:
    folder = tmp_path_factory.mktemp("web")
    with (
        s3_server("shards") as s3,
        faulty_proxy(s3.endpoint) as s3_proxy,
        file_server(folder) as web,
        faulty_proxy(web) as web_proxy,
        file_server(folder, ranges=False) as plain,
        faulty_proxy(plain) as plain_proxy,
    ):
        found = {
            "s3": Remote("s3", s3_proxy, "s3://shards", s3.options(s3_proxy.url)),
            "http": Remote("http", web_proxy, web_proxy.url, {}),
            "rangeless": Remote("rangeless", plain_proxy, plain_proxy.url, {}),
        }
        found["s3"].s3 = s3
        found["http"].folder = found["rangeless"].folder = folder
        yield found


@pytest.fixture(scope="module")
def table(remotes: dict[str, Remote], tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    path = tmp_path_factory.mktemp("shards") / "shard.parquet"
    written = write_shard(path)
    assert path.stat().st_size > 2 * 65536
    for remote in remotes.values():
        remote.put("shard.parquet", path.read_bytes())
    return written


@pytest.fixture(params=KINDS)
def remote(request: pytest.FixtureRequest, remotes: dict[str, Remote]) -> Iterator[Remote]:
    found = remotes[request.param]
    found.proxy.clear()
    yield found
    found.proxy.clear()


@pytest.fixture
def s3(remotes: dict[str, Remote]) -> Iterator[Remote]:
    remotes["s3"].proxy.clear()
    yield remotes["s3"]
    remotes["s3"].proxy.clear()


@pytest.fixture
def storage_of(tmp_path: Path) -> Callable[..., Storage]:
    def make(remote: Remote, **settings: Any) -> Storage:
        config = replace(QUICK, cache_dir=str(tmp_path / "cache"), storage_options=remote.options)
        return Storage(replace(config, **settings))

    return make


StorageOf = Callable[..., Storage]


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    ours = [r for r in caplog.records if r.name.startswith("mathcanvas_lightning")]
    return [r.getMessage() for r in ours if r.levelno == logging.WARNING]


def cache_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_remote_row_groups(remote: Remote, table: pa.Table, storage_of: StorageOf) -> None:
    storage = storage_of(remote)
    assert is_remote(remote.url)
    assert storage.metadata(remote.url).num_row_groups == 3
    assert storage.metadata(remote.url).num_rows == NUM_ROWS
    for columns in (None, ["images", "none", "id"]):
        expected = columns and ["images", "id"]
        for number in (2, 0, 1):
            found = storage.read_row_group(remote.url, number, columns)
            assert found.equals(group(table, number, expected))
            found.validate(full=True)
    assert storage.read_row_group(remote.url, 1, ["none"]).num_rows == GROUP_ROWS
    with pytest.raises(DataError, match=r"shard\.parquet: found 3 row groups"):
        storage.read_row_group(remote.url, 3, None)


def test_second_read_asks_nothing(
    remote: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    storage = storage_of(remote)
    first = storage.read_row_group(remote.url, 1, ["id", "images"])
    num_requests = remote.num_requests()
    again = storage.read_row_group(remote.url, 1, ["id", "images"])
    assert remote.num_requests() == num_requests
    assert again.equals(first)
    # Another process asks for the version alone.
    other = storage_of(remote)
    assert other.read_row_group(remote.url, 1, ["id", "images"]).equals(first)
    assert remote.num_requests() == num_requests + 1
    assert cache_bytes(tmp_path / "cache") > first.nbytes


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_only_the_wanted_ranges_are_fetched(
    kind: str, remotes: dict[str, Remote], table: pa.Table, storage_of: StorageOf
) -> None:
    remote = remotes[kind]
    remote.proxy.clear()
    storage = storage_of(remote)
    metadata = storage.metadata(remote.url)
    assert remote.num_requests() == 2  # size, footer
    remote.proxy.requests.clear()
    storage.read_row_group(remote.url, 1, None)
    storage.read_row_group(remote.url, 2, ["level"])
    asked = []
    for request in remote.proxy.requests:
        assert request.range
        first, last = request.range.removeprefix("bytes=").split("-")
        asked.append(int(last) + 1 - int(first))
    chunks = metadata.row_group(1), metadata.row_group(2)
    whole = sum(chunks[0].column(i).total_compressed_size for i in range(chunks[0].num_columns))
    assert asked == [whole, chunks[1].column(chunks[1].num_columns - 1).total_compressed_size]


def test_ranges_are_read_on_the_calling_thread(tmp_path: Path) -> None:
    """A thread of Arrow's that holds a Python file as the process ends would abort it."""
    table = write_shard(tmp_path / "shard.parquet")
    data = (tmp_path / "shard.parquet").read_bytes()
    readers: list[int] = []

    def read_range(start: int, end: int) -> bytes:
        readers.append(threading.get_ident())
        return data[start:end]

    metadata = read_footer(read_range, len(data))
    for names in (None, ["id", "images"]):
        file = fetch_row_group(read_range, metadata, len(data), 1, names)
        assert read_row_group(file, metadata, 1, names).equals(group(table, 1, names))
    assert readers == [threading.get_ident()] * 3


@pytest.mark.parametrize("length", [1, 100_000])
def test_footer_of_any_length(length: int, remote: Remote, storage_of: StorageOf) -> None:
    table = pa.table({"x": list(range(20))}).replace_schema_metadata({"long": "x" * length})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    remote.put(f"footer-{length}.parquet", sink.getvalue().to_pybytes())
    storage = storage_of(remote)
    assert storage.read_row_group(f"{remote.root}/footer-{length}.parquet", 0, None).equals(table)


def test_compressed_nested_and_empty_columns(remote: Remote, storage_of: StorageOf) -> None:
    table = pa.table(
        {
            "deep": [[{"a": {"b": [1, None], "c": "x"}}], None, []],
            "category": pa.array(["u", None, "u"]).dictionary_encode(),
            "nothing": pa.nulls(3),
            "a.b": [1.5, 2.5, None],
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", data_page_version="2.0")
    remote.put("deep.parquet", sink.getvalue().to_pybytes())
    storage = storage_of(remote)
    url = f"{remote.root}/deep.parquet"
    for columns in (None, ["a.b", "deep"], ["nothing"], ["category", "deep.list.element.a.c"]):
        expected = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read_row_group(0, columns)
        for _ in range(2):
            assert storage.read_row_group(url, 0, columns).equals(expected)


SILENT_S = 1.5
"""Time limit where a server falls silent: other requests take far less, also on a busy machine."""
FAULTS = {
    "500": Fault(status=500),
    "503": Fault(status=503),
    "429": Fault(status=429),
    "reset": Fault(reset=True),
    "silent": Fault(stall_after=-1),
    "stalled": Fault(stall_after=1000, match="GET"),
    "cut": Fault(cut_after=1000, match="GET"),
    "corrupt": Fault(corrupt_at=0.5, match="GET"),
    "corrupt end": Fault(corrupt_at=1.0, match="GET"),
}


def limit_s(name: str) -> float:
    """Time limit of a request during a fault."""
    return QUICK.timeout_s if FAULTS[name].stall_after is None else SILENT_S


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_pass(
    name: str,
    remote: Remote,
    table: pa.Table,
    storage_of: StorageOf,
    caplog: pytest.LogCaptureFixture,
) -> None:
    storage = storage_of(remote, timeout_s=limit_s(name))
    remote.proxy.fault = replace(FAULTS[name], times=2)
    with caplog.at_level(logging.WARNING):
        found = storage.read_row_group(remote.url, 1, None)
    assert found.equals(group(table, 1))
    assert remote.proxy.num_faults == 2
    warnings = warnings_of(caplog)
    if remote.kind == "s3" and name not in ("corrupt", "reset"):
        assert len(warnings) == 2
    assert all(remote.url in warning and "of 3 failed" in warning for warning in warnings)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_faults_that_stay(
    name: str, remote: Remote, table: pa.Table, storage_of: StorageOf
) -> None:
    storage = storage_of(remote, max_retries=1, timeout_s=limit_s(name))
    remote.proxy.fault = FAULTS[name]
    start = time.monotonic()
    expected = DataError if "corrupt" in name else StorageError
    with pytest.raises(expected, match=r"/shard\.parquet.*(2 tries|tried 2 times)") as caught:
        storage.read_row_group(remote.url, 1, None)
    assert time.monotonic() - start < BOUND_S
    assert remote.url in str(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).place == caught.value.place
    # Nothing of it is kept.
    remote.proxy.clear()
    assert storage.read_row_group(remote.url, 1, None).equals(group(table, 1))


@pytest.mark.slow
def test_each_try_is_one_request(
    remote: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    for name in ("503", "silent", "cut"):
        remote.proxy.clear()
        settings = {"timeout_s": limit_s(name), "cache_dir": str(tmp_path / name)}
        storage = storage_of(remote, max_retries=1, **settings)
        storage.status(remote.url)
        if remote.kind != "rangeless":
            storage.metadata(remote.url)
        remote.proxy.clear()
        remote.proxy.fault = FAULTS[name]
        with pytest.raises(StorageError):
            storage.read_row_group(remote.url, 1, None)
        probes = remote.kind == "rangeless" and name == "cut"  # a look at the whole file's head
        assert remote.num_requests() == 2 + probes


def test_remote_file_that_is_missing(
    remote: Remote, storage_of: StorageOf, caplog: pytest.LogCaptureFixture
) -> None:
    storage = storage_of(remote)
    url = f"{remote.root}/none.parquet"
    reads: list[Callable[[str], Any]] = [
        storage.status,
        storage.metadata,
        storage.read_bytes,
        lambda url: storage.read_bytes(url, max_bytes=10),
        lambda url: storage.read_row_group(url, 0, None),
        storage.list_files,
    ]
    for read in reads:
        with pytest.raises(DataError, match=r"none\.parquet.*found nothing"):
            read(url)
    assert not warnings_of(caplog)


def test_denied_access_is_not_tried_again(
    remote: Remote, table: pa.Table, storage_of: StorageOf
) -> None:
    storage = storage_of(remote)
    remote.proxy.fault = Fault(status=403)
    with pytest.raises(StorageError, match=r"shard\.parquet: found access denied"):
        storage.status(remote.url)
    assert remote.num_requests() <= 2


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: b"", lambda data: data[:3]])
def test_remote_file_that_is_damaged(
    spoil: Callable[[bytes], bytes],
    remote: Remote,
    table: pa.Table,
    storage_of: StorageOf,
    tmp_path: Path,
) -> None:
    path = tmp_path / "shard.parquet"
    write_shard(path)
    remote.put("bad.parquet", spoil(path.read_bytes()))
    storage = storage_of(remote)
    with pytest.raises(DataError, match=r"bad\.parquet, row group 0: found damage"):
        storage.read_row_group(f"{remote.root}/bad.parquet", 0, None)
    with pytest.raises(DataError, match=r"bad\.parquet: found damage"):
        storage.metadata(f"{remote.root}/bad.parquet")


def test_remote_pages_that_are_damaged(
    remote: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    path = tmp_path / "shard.parquet"
    write_shard(path)
    flip(path, path.stat().st_size // 2)
    remote.put("flipped.parquet", path.read_bytes())
    storage = storage_of(remote)
    url = f"{remote.root}/flipped.parquet"
    with pytest.raises(DataError, match=r"flipped\.parquet, row group 1: found damage.*CRC"):
        storage.read_row_group(url, 1, None)
    assert storage.read_row_group(url, 0, None).equals(group(table, 0))


def test_remote_file_that_changes(remote: Remote, storage_of: StorageOf, tmp_path: Path) -> None:
    storage = storage_of(remote)
    url = f"{remote.root}/changing.parquet"
    tables = []
    for seed in (1, 2):
        tables.append(write_shard(tmp_path / f"{seed}.parquet", seed))
        data = (tmp_path / f"{seed}.parquet").read_bytes()
        remote.put("changing.parquet", data)
        if remote.folder != Path():  # HTTP dates have whole seconds
            os.utime(remote.folder / "changing.parquet", (seed, seed))
        if seed == 1:
            before = storage.status(url)
            assert storage.read_row_group(url, 0, None).equals(group(tables[0], 0))
    assert storage.read_row_group(url, 0, None).equals(group(tables[0], 0))  # kept
    assert storage.status(url) != before
    assert storage.read_row_group(url, 0, None).equals(group(tables[1], 0))


def test_remote_file_that_changes_between_footer_and_pages(
    remotes: dict[str, Remote], storage_of: StorageOf, tmp_path: Path
) -> None:
    for kind in ("s3", "http"):
        remote = remotes[kind]
        storage = storage_of(remote)
        url = f"{remote.root}/replaced.parquet"
        write_shard(tmp_path / "1.parquet", 1)
        table = write_shard(tmp_path / "2.parquet", 2, image_bytes=3500)
        remote.put("replaced.parquet", (tmp_path / "1.parquet").read_bytes())
        storage.metadata(url)
        remote.put("replaced.parquet", (tmp_path / "2.parquet").read_bytes())
        assert storage.read_row_group(url, 2, None).equals(group(table, 2))


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_remote_file_that_changes_without_changing_its_layout(
    kind: str,
    remotes: dict[str, Remote],
    storage_of: StorageOf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    remote = remotes[kind]
    remote.proxy.clear()
    storage = storage_of(remote)
    url = f"{remote.root}/alike.parquet"
    tables = [write_shard(tmp_path / f"{seed}.parquet", seed) for seed in (3, 4)]
    remote.put("alike.parquet", (tmp_path / "3.parquet").read_bytes())
    assert storage.read_row_group(url, 0, None).equals(group(tables[0], 0))
    remote.put("alike.parquet", (tmp_path / "4.parquet").read_bytes())
    assert (tmp_path / "3.parquet").stat().st_size == (tmp_path / "4.parquet").stat().st_size
    with caplog.at_level(logging.WARNING):
        assert storage.read_row_group(url, 1, None).equals(group(tables[1], 1))
    assert len(warnings_of(caplog)) == 1
    assert storage.read_row_group(url, 0, None).equals(group(tables[1], 0))


def test_listing_with_statuses(remote: Remote, storage_of: StorageOf) -> None:
    folder = f"statuses-{remote.kind}"
    for number in range(20):
        remote.put(f"{folder}/{number}.parquet", b"x" * number)
    storage = storage_of(remote)
    remote.proxy.clear()
    found = storage.list_statuses(f"{remote.root}/{folder}")
    assert [status.size_bytes for status in found.values()] == list(range(20))
    # Web servers list names only; their files are asked at the same time.
    assert remote.num_requests("HEAD") == (1 if remote.kind == "s3" else 20)
    assert found == {url: storage.status(url) for url in found}


def test_writing_remote_files(s3: Remote, storage_of: StorageOf) -> None:
    storage = storage_of(s3)
    url = f"{s3.root}/written/a#b?.txt"
    s3.proxy.fault = Fault(status=503, match="PUT", times=2)
    with storage.writing(url) as path:
        path.write_bytes(b"x" * 100)
    assert s3.proxy.num_faults == 2
    s3.proxy.fault = Fault(cut_after=10, match="GET", times=1)
    with storage.fetched(url) as path:
        assert (path.name, path.read_bytes()) == ("a#b?.txt", b"x" * 100)
    s3.proxy.fault = Fault(status=503, match="DELETE", times=2)
    storage.remove(url)
    with pytest.raises(DataError, match="found nothing"):
        storage.read_bytes(url)
    storage.remove(url)
    s3.proxy.fault = Fault(status=503, match="PUT")
    with pytest.raises(StorageError, match=r"a#b\?\.txt"), storage.writing(url) as path:
        path.write_bytes(b"x")


def test_signatures_stay_secret(
    remotes: dict[str, Remote],
    table: pa.Table,
    storage_of: StorageOf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    remote = remotes["http"]
    remote.proxy.clear()
    storage = storage_of(remote, max_retries=1)
    url = f"{remote.url}?X-Amz-Signature=secret"
    assert storage.list_files(url) == [url]
    with storage.fetched(url) as path:
        assert path.name == "shard.parquet"
    for fault in (Fault(status=503), Fault(status=403), Fault(status=404)):
        remote.proxy.fault = fault
        for read in (storage.status, storage.read_bytes, storage_of(remote).metadata):
            with pytest.raises((DataError, StorageError), match="shard") as caught:
                read(url)
            assert "secret" not in f"{caught.value}{caplog.text}"
    remote.proxy.clear()
    assert storage.read_row_group(url, 1, None).equals(group(table, 1))
    # Another signature, the same entry of the cache.
    remote.proxy.clear()
    other = storage_of(remote).read_row_group(f"{remote.url}?X-Amz-Signature=other", 1, None)
    assert other.equals(group(table, 1))
    assert remote.num_requests("GET") == 0


def test_small_remote_files(remote: Remote, storage_of: StorageOf) -> None:
    remote.put("pictures/a.png", b"12345")
    remote.put("pictures/empty.png", b"")
    storage = storage_of(remote)
    url = f"{remote.root}/pictures/a.png"
    for limit in (None, 5, 100):
        remote.proxy.clear()
        assert storage.read_bytes(url, max_bytes=limit) == b"12345"
        assert remote.num_requests() == 1
        assert storage.read_bytes(f"{remote.root}/pictures/empty.png", max_bytes=limit) == b""
    with pytest.raises(DataError, match=r"a\.png: found more than 4 bytes"):
        storage.read_bytes(url, max_bytes=4)
    remote.proxy.fault = Fault(cut_after=2, times=2)
    assert storage.read_bytes(url) == b"12345"
    remote.proxy.fault = Fault(cut_after=2, times=2)
    assert storage.read_bytes(url, max_bytes=7) == b"12345"
    remote.proxy.fault = Fault(status=500)
    with pytest.raises(StorageError, match=r"a\.png"):
        storage.read_bytes(url)


@pytest.mark.slow
def test_remote_listing(remote: Remote, storage_of: StorageOf, tmp_path: Path) -> None:
    folder = f"names-{remote.kind}"
    for name in [*NAMES, *LEFT_OUT]:
        remote.put(f"{folder}/{name}", b"x")
    storage = storage_of(remote, timeout_s=SILENT_S)
    root = f"{remote.root}/{folder}"
    assert storage.list_files(root) == in_order(root)
    assert storage.list_files(f"{root}/") == in_order(root)
    assert storage.list_files(f"{root}/p.parquet") == [f"{root}/p.parquet"]
    assert storage.list_files(root, suffix=".json") == [f"{root}/a/info.json"]
    remote.put(f"{folder}/b/p-3.parquet", b"x")  # listings are not kept
    assert storage.list_files(root) == [*in_order(root), f"{root}/b/p-3.parquet"]
    for name in ("503", "silent"):
        remote.proxy.fault = replace(FAULTS[name], times=1)
        assert len(storage.list_files(root)) == 5
    # One folder below can't be listed: that is no reason to go without it.
    where = f"{folder}%2Fa" if remote.kind == "s3" else f"{folder}/a"
    for name in ("503", "reset"):
        remote.proxy.fault = replace(FAULTS[name], match=where)
        with pytest.raises(StorageError, match=f"{folder}/a"):
            storage.list_files(root)
    remote.proxy.fault = None
    with pytest.raises(DataError, match="nowhere: found nothing; wanted a folder of shards"):
        storage.list_files(f"{remote.root}/nowhere")


def test_other_filesystems_of_fsspec(tmp_path: Path) -> None:
    table = write_shard(tmp_path / "shard.parquet")
    filesystem = fsspec.filesystem("memory")
    filesystem.pipe_file("/storage/a-1.parquet", (tmp_path / "shard.parquet").read_bytes())
    storage = Storage(replace(QUICK, cache_dir=str(tmp_path / "cache")))
    (url,) = storage.list_files("memory://storage")
    assert url.endswith("storage/a-1.parquet")
    assert storage.read_row_group(url, 1, None).equals(group(table, 1))
    assert storage.is_folder("memory://storage")
    with pytest.raises(DataError, match="memory://nowhere: found nothing"):
        storage.is_folder("memory://nowhere")
    for wrong in ("nonsense://x/y", "s3://x/y"):
        config = replace(QUICK, storage_options={"config_kwargs": 3, "nonsense": 4})
        with pytest.raises((StorageError, DataError), match=wrong):
            Storage(config).status(wrong)


def test_versions_of_many_files_are_remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After a listing, no file is asked again, and each is read in the version that was listed."""
    write_shard(tmp_path / "shard.parquet")
    data = (tmp_path / "shard.parquet").read_bytes()
    fsspec.filesystem("memory").pipe_file("/many/0.parquet", data)
    storage = Storage(replace(QUICK, cache_dir=str(tmp_path / "cache")))
    status = storage.status("memory://many/0.parquet")
    entries = [
        Entry(path=f"memory://many/{number}.parquet", is_folder=False, status=status)
        for number in range(5000)
    ]
    monkeypatch.setattr(RemoteFiles, "list_folder", lambda *_: entries)
    found = storage.list_statuses("memory://many")
    monkeypatch.setattr(RemoteFiles, "find_status", None)
    assert storage.metadata(next(iter(found))).num_rows == NUM_ROWS


def test_a_changed_file_of_the_hugging_face_hub_has_another_version() -> None:
    from mathcanvas_lightning.storage.remote_files import status_of

    info = {"name": "datasets/a/b/x.parquet", "size": 9, "blob_id": "1", "last_commit": None}
    assert status_of(info) != status_of(info | {"blob_id": "2"})


def test_user_options_win() -> None:
    from mathcanvas_lightning.storage.remote_files import filesystem_options

    options = {
        "config_kwargs": {"read_timeout": 7, "s3": {}},
        "use_listings_cache": True,
        "key": "x",
    }
    found = filesystem_options("s3", replace(QUICK, storage_options=options))
    assert found["config_kwargs"]["read_timeout"] == 7
    assert found["config_kwargs"]["connect_timeout"] == QUICK.timeout_s
    assert found["use_listings_cache"] is True
    assert found["key"] == "x"


# The cache


def test_cache_keeps_its_size(s3: Remote, table: pa.Table, storage_of: StorageOf) -> None:
    folder = Path(storage_of(s3).config.cache_dir or "")
    one = group(table, 1).nbytes
    cap = int(2.6 * one)
    storage = storage_of(s3, max_cache_bytes=cap)
    wanted = [(n, c) for c in (None, ["images"], ["id", "images"]) for n in range(3)]
    for number, columns in wanted:
        found = storage.read_row_group(s3.url, number, columns)
        assert found.equals(group(table, number, columns))
        assert cache_bytes(folder) <= cap
    # What was used last is there, what was used first is gone.
    num_requests = s3.num_requests()
    storage.read_row_group(s3.url, *wanted[-1])
    assert s3.num_requests() == num_requests
    storage.read_row_group(s3.url, *wanted[0])
    assert s3.num_requests() > num_requests


def make_older(folder: Path) -> None:
    """Makes all files a second older; some systems count in hundredths of a second."""
    for path in folder.iterdir():
        used_ns = path.stat().st_mtime_ns - 10**9
        os.utime(path, ns=(used_ns, used_ns))


def test_cache_drops_what_was_used_least_recently(
    s3: Remote, table: pa.Table, storage_of: StorageOf
) -> None:
    storage = storage_of(s3, max_cache_bytes=int(3.5 * group(table, 1).nbytes))
    for number in (0, 1, 2, 0):
        storage.read_row_group(s3.url, number, None)
        make_older(Path(storage.config.cache_dir or ""))
    storage.read_row_group(s3.url, 0, ["images"])  # room is needed: 1 goes
    num_requests = s3.num_requests()
    storage.read_row_group(s3.url, 0, None)
    assert s3.num_requests() == num_requests
    storage.read_row_group(s3.url, 1, None)
    assert s3.num_requests() == num_requests + 1


@pytest.mark.parametrize("cap", [0, 10_000])
def test_what_is_larger_than_the_cache_is_used(
    cap: int, remote: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    storage = storage_of(remote, max_cache_bytes=cap)
    for number in (0, 1, 2, 0):
        assert storage.read_row_group(remote.url, number, None).equals(group(table, number))
    assert cache_bytes(tmp_path) <= cap
    if remote.kind == "rangeless":  # size, footer, the file
        assert remote.num_requests() == 3


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def damage_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    "damage", [damage_truncate, damage_middle, lambda p: p.write_bytes(b""), Path.unlink]
)
def test_damaged_entries_are_fetched_again(
    damage: Callable[[Path], Any],
    remote: Remote,
    table: pa.Table,
    storage_of: StorageOf,
    tmp_path: Path,
) -> None:
    storage_of(remote).read_row_group(remote.url, 1, None)
    entries = list((tmp_path / "cache").glob("*.parquet"))
    assert len(entries) == (1 if remote.kind == "rangeless" else 2)  # else footer and row group
    for entry in entries:
        damage(entry)
    storage = storage_of(remote)
    assert storage.read_row_group(remote.url, 1, None).equals(group(table, 1))
    num_requests = remote.num_requests()
    assert storage.read_row_group(remote.url, 1, None).equals(group(table, 1))
    assert remote.num_requests() == num_requests


def test_tables_outlive_their_entries(
    s3: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    storage = storage_of(s3)
    storage.read_row_group(s3.url, 1, None)
    mapped = storage.read_row_group(s3.url, 1, None)
    for path in (tmp_path / "cache").glob("*.parquet"):
        path.unlink()
    assert mapped.equals(group(table, 1))


def test_leftovers_are_removed_and_other_files_spared(
    s3: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    old = folder / ".tmp-entry"  # of a process that was killed while it wrote
    spared = [folder / "mine.parquet", folder / ".tmp-mine.parquet"]
    for path in (old, *spared):
        path.write_bytes(b"x" * 1000)
        os.utime(path, (0, 0))
    storage_of(s3, max_cache_bytes=int(1.5 * group(table, 0).nbytes)).read_row_group(
        s3.url, 0, None
    )
    assert not old.exists()
    assert all(path.exists() for path in spared)


def test_cache_that_cannot_be_made(
    remote: Remote,
    table: pa.Table,
    storage_of: StorageOf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is reported once; data come from the server."""
    (tmp_path / "file").write_bytes(b"")
    storage = storage_of(remote, cache_dir=str(tmp_path / "file" / "cache"))
    for number in (0, 1):
        assert storage.read_row_group(remote.url, number, None).equals(group(table, number))
    (warning,) = warnings_of(caplog)
    assert warning.startswith(f"{storage.config.cache_dir}: nothing can be cached here")


def test_default_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Storage(QUICK).config.cache_folder == tmp_path / "mathcanvas_lightning" / "shards"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = tmp_path / ".cache" / "mathcanvas_lightning" / "shards"
    assert Storage(QUICK).config.cache_folder == expected


# Several processes


def read_all(storage: Storage, url: str, rounds: int = 1) -> list[pa.Table]:
    return [
        storage.read_row_group(url, number, columns)
        for _ in range(rounds)
        for columns in (None, ["images"])
        for number in range(3)
    ]


def read_in_child(storage: Storage, url: str, results: Any) -> None:
    try:
        results.put([table.combine_chunks().to_pylist() for table in read_all(storage, url, 2)])
    except BaseException as error:
        results.put(repr(error))


def run_children(method: str, storage: Storage, url: str, count: int) -> list[Any]:
    context = multiprocessing.get_context(method)
    results = context.Queue()
    children = [
        context.Process(target=read_in_child, args=(storage, url, results)) for _ in range(count)
    ]
    for child in children:
        child.start()
    found = [results.get(timeout=240) for _ in children]
    for child in children:
        child.join(timeout=300)
        assert child.exitcode == 0
    return found


def expected_rows(table: pa.Table, rounds: int = 2) -> list[Any]:
    return [
        group(table, number, columns).to_pylist()
        for _ in range(rounds)
        for columns in (None, ["images"])
        for number in range(3)
    ]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_after_the_parent_has_read(
    remote: Remote, table: pa.Table, storage_of: StorageOf
) -> None:
    storage = storage_of(remote, max_cache_bytes=0)
    storage.read_row_group(remote.url, 0, None)
    for found in run_children("fork", storage, remote.url, 2):
        assert found == expected_rows(table)
    # The parent's connections are as they were.
    read_all(storage, remote.url)
    assert storage.read_row_group(remote.url, 2, None).equals(group(table, 2))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_fork_with_local_files_open(shard: tuple[Path, pa.Table]) -> None:
    path, table = shard
    storage = Storage(QUICK)
    storage.read_row_group(str(path), 0, None)
    assert run_children("fork", storage, str(path), 1) == [expected_rows(table)]


@pytest.mark.slow
def test_processes_share_the_cache(
    remote: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    cap = 5 * table.nbytes
    storage = storage_of(remote, max_cache_bytes=cap)
    for found in run_children("spawn", storage, remote.url, 2):
        assert found == expected_rows(table)
    assert cache_bytes(tmp_path / "cache") <= cap
    assert not list((tmp_path / "cache").glob(".tmp-*"))
    if remote.kind == "rangeless":
        whole = [r for r in remote.proxy.requests if r.method == "GET" and r.range is None]
        assert len(whole) == 1
    remote.proxy.clear()
    read_all(storage, remote.url)
    assert remote.num_requests("GET") == 0


@pytest.mark.slow
def test_processes_keep_to_the_size_together(
    s3: Remote, table: pa.Table, storage_of: StorageOf, tmp_path: Path
) -> None:
    cap = int(1.3 * table.nbytes)
    storage = storage_of(s3, max_cache_bytes=cap)
    most = 0
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run_children, "spawn", storage, s3.url, 2)
        while not job.done():
            with contextlib.suppress(FileNotFoundError):  # gone between listing and asking
                most = max(most, cache_bytes(tmp_path / "cache"))
        assert job.result() == [expected_rows(table)] * 2
    assert 0 < most <= cap


def test_threads_share_a_storage(remote: Remote, table: pa.Table, storage_of: StorageOf) -> None:
    storage = storage_of(remote, max_cache_bytes=int(1.5 * group(table, 0).nbytes))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(read_all, storage, remote.url, 2) for _ in range(4)]
        for job in jobs:
            rows = [found.to_pylist() for found in job.result(timeout=240)]
            assert rows == expected_rows(table)


def test_pickling(remote: Remote, table: pa.Table, storage_of: StorageOf) -> None:
    storage = storage_of(remote)
    storage.read_row_group(remote.url, 0, None)
    data = pickle.dumps(storage)
    assert len(data) < 2000
    assert pickle.loads(data).read_row_group(remote.url, 0, None).equals(group(table, 0))
