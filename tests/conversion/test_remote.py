"""Remote input and output: an HTTP server, and a real server of the S3 protocol."""

import functools
import http.server
import json
import re
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mathcanvas_lightning import convert_cot, index_shards, inspect_shards, iter_examples
from mathcanvas_lightning.conversion.sources import RENDER_MARK
from mathcanvas_lightning.errors import InputError, OutputError
from mathcanvas_lightning.storage.config import StorageConfig
from tests.conftest import folder_bytes, png, read_jsonl
from tests.servers import Fault, FaultyProxy, faulty_proxy, file_server, s3_server

SOURCE = "enhanced_cot_cleaned.json"


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files; answers 503 if the path contains `broken`."""

    broken: str = ""

    def do_GET(self) -> None:
        if self.broken and self.broken in self.path:
            self.send_error(503)
        else:
            super().do_GET()

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


@pytest.fixture
def web(puzzles: Path) -> Iterator[str]:
    handler = functools.partial(Handler, directory=str(puzzles))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = functools.partial(StorageConfig, backoff_s=0.01)
    monkeypatch.setattr("mathcanvas_lightning.storage.files.StorageConfig", config)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultyProxy]]:
    with s3_server("shards") as server, faulty_proxy(server.endpoint) as proxy:
        for name, value in server.environment(proxy.url).items():
            monkeypatch.setenv(name, value)
        yield "s3://shards", proxy
        fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def few(puzzles: Path, tmp_path: Path) -> Path:
    """The first puzzles, as requests through a proxy take their time."""
    text = json.dumps(json.loads((puzzles / SOURCE).read_text())[:10])
    (tmp_path / "few").mkdir()
    (tmp_path / "few" / SOURCE).write_text(text)
    for name in set(re.findall(r"task_\d+(?=/)", text)):
        shutil.copytree(puzzles / name, tmp_path / "few" / name)
    return tmp_path / "few"


def straight(puzzles: Path, output: Path, **options: Any) -> dict[str, bytes]:
    convert_cot(str(puzzles / SOURCE), str(output), num_workers=0, **options)
    return folder_bytes(output)


def test_http_input(web: str, puzzles: Path, tmp_path: Path) -> None:
    report = convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), num_workers=0)
    assert report.problem is None
    assert folder_bytes(tmp_path / "web") == straight(puzzles, tmp_path / "local")


def test_missing_http_image_is_a_reject(web: str, puzzles: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(
        json.dumps(
            [
                {"task_id": i, "gt": "A", "pred": "A", "cot_text": f"<image>{path}</image> A."}
                for i, path in enumerate(["task_0/composite.png", "none.png", "../x.png"])
            ]
        )
    )
    convert_cot(str(tmp_path / "x.json"), str(tmp_path / "out"), image_dir=web, num_workers=0)
    rejects = read_jsonl(tmp_path / "out" / "rejects.jsonl")
    assert [(r["record"], r["reason"]) for r in rejects] == [
        (1, "image_missing"),
        (2, "path_outside_image_dir"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_failing_server_stops_the_conversion(
    workers: int, web: str, puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = json.loads((puzzles / SOURCE).read_text())[25:]
    kept = next(r for r in records if r["pred"] == r["gt"] and RENDER_MARK not in r["cot_text"])
    broken = f"task_{kept['task_id']}/"
    monkeypatch.setattr(Handler, "broken", broken)
    options = {"samples_per_file": 5, "num_workers": workers}
    with pytest.raises(InputError, match=rf"{broken}.*storage failure"):
        convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), **options)
    assert list((tmp_path / "web").glob("*.parquet"))
    assert not (tmp_path / "web" / "rejects.jsonl").exists()
    monkeypatch.undo()
    report = convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), **options)
    assert report.num_resumed > 0
    local = straight(puzzles, tmp_path / "local", samples_per_file=5)
    assert folder_bytes(tmp_path / "web") == local


def test_missing_http_input(web: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json"):
        convert_cot(f"{web}/none.json", str(tmp_path / "web"))


@pytest.mark.slow
def test_s3_in_and_out(bucket: tuple[str, FaultyProxy], few: Path, tmp_path: Path) -> None:
    bucket, proxy = bucket
    filesystem = fsspec.filesystem("s3", use_listings_cache=False)
    filesystem.put(str(few), f"{bucket}/data", recursive=True)
    source = f"{bucket}/data/{SOURCE}"
    options = {"samples_per_file": 4, "split": "train=0.8,test=0.2"}
    proxy.fault = Fault(status=503, match="PUT", times=3)
    convert_cot(source, f"{bucket}/out", num_workers=2, **options)
    assert proxy.num_faults == 3
    filesystem.get(f"{bucket}/out", str(tmp_path / "out"), recursive=True)
    local = straight(few, tmp_path / "local", **options)
    assert folder_bytes(tmp_path / "out") == local
    assert list(iter_examples(f"{bucket}/out")) == list(iter_examples(tmp_path / "local"))
    proxy.fault = Fault(status=503, match="GET", times=3)
    remote = inspect_shards(f"{bucket}/out", validate=True)
    wanted = inspect_shards(str(tmp_path / "local"), validate=True)
    assert replace(remote, path="") == replace(wanted, path="")
    assert remote.problems == []
    assert proxy.num_faults == 3
    again = convert_cot(source, f"{bucket}/out", num_workers=0, **options)
    assert again.num_resumed > 0
    with pytest.raises(OutputError, match="other settings"):
        convert_cot(source, f"{bucket}/out", num_workers=0, **options, seed=1)
    convert_cot(source, f"{bucket}/out", num_workers=0, overwrite=True)
    assert not filesystem.glob(f"{bucket}/out/train/*")
    assert len(filesystem.glob(f"{bucket}/out/*.parquet")) == 1


def test_stores_without_atomic_uploads_get_renamed_files(
    puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mathcanvas_lightning.storage.remote_files.ATOMIC_STORES", frozenset())
    convert_cot(str(puzzles / SOURCE), "memory://out", num_workers=0)
    filesystem = fsspec.filesystem("memory")
    local = straight(puzzles, tmp_path)
    assert {name: filesystem.cat_file(f"/out/{name}") for name in local} == local
    assert len(filesystem.ls("/out")) == len(local)


@pytest.mark.slow
def test_failures_that_pass_are_tried_again(few: Path, tmp_path: Path) -> None:
    with file_server(few) as web, faulty_proxy(web) as proxy:
        proxy.fault = Fault(status=503, times=4)
        convert_cot(f"{proxy.url}/{SOURCE}", str(tmp_path / "web"), num_workers=0)
        assert proxy.num_faults == 4
    assert folder_bytes(tmp_path / "web") == straight(few, tmp_path / "local")


def test_names_are_quoted_once(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    names = ["step#1.png", "a?b.png", "50%.png", "a%20b.png", "b c.png", "\u03c0+1.png"]
    for number, name in enumerate([*names, "step", "a", "a b.png"]):
        folder.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(8 + number))
    records = [
        {"task_id": i, "gt": "A", "pred": "A", "cot_text": f"<image>{name}</image> A."}
        for i, name in enumerate(names)
    ]
    (folder / "x.json").write_text(json.dumps(records))
    convert_cot(str(folder / "x.json"), str(tmp_path / "local"), num_workers=0)
    with file_server(folder) as url:
        convert_cot(f"{url}/x.json", str(tmp_path / "web"), num_workers=0)
    assert folder_bytes(tmp_path / "web") == folder_bytes(tmp_path / "local")
    examples = list(iter_examples(tmp_path / "web"))
    assert [next(iter(e.images)).data for e in examples] == [
        (folder / n).read_bytes() for n in names
    ]


@pytest.mark.slow
def test_signatures_stay_secret(
    web: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, puzzles: Path
) -> None:
    query = "?X-Amz-Credential=me%2Fs3&X-Amz-Signature=secret"
    convert_cot(f"{web}/{SOURCE}{query}", str(tmp_path / "web"), image_dir=web, num_workers=0)
    wanted = tmp_path / "plain"
    convert_cot(f"{web}/{SOURCE}", str(wanted), image_dir=web, num_workers=0)
    assert folder_bytes(tmp_path / "web") == folder_bytes(wanted)
    for broken, name in ((SOURCE, SOURCE), ("", "none.json")):
        monkeypatch.setattr(Handler, "broken", broken)
        with pytest.raises(InputError, match=name) as caught:
            convert_cot(f"{web}/{name}{query}", str(tmp_path / "web"))
        assert "Signature" not in str(caught.value)
        assert "Signature" not in repr(caught.value.__cause__)


def test_home_folder(puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local = straight(puzzles, tmp_path / "local")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").symlink_to(puzzles)
    convert_cot(f"~/in/{SOURCE}", "~/out", image_dir="~/in", num_workers=0)
    assert folder_bytes(tmp_path / "out").keys() == local.keys()
    inspect_shards("~/out", html="~/pages/rows.html")
    assert (tmp_path / "pages" / "rows.html").is_file()
    assert list(iter_examples("~/out")) == list(iter_examples(tmp_path / "local"))
    index_shards(["~/out"], index_dir="~/index", num_workers=0)
    assert list((tmp_path / "index").glob("*.parquet"))
    assert not (tmp_path / "~").exists()
