"""Remote input and output: an HTTP server, and a real server of the S3 protocol."""

import functools
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from mathcanvas_lightning import convert_cot
from mathcanvas_lightning.errors import InputError, OutputError
from tests.conftest import folder_bytes, read_jsonl

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
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    filesystem = fsspec.filesystem("s3", skip_instance_cache=True)
    filesystem.mkdir("shards")
    yield "s3://shards"
    fsspec.clear_instance_cache() if hasattr(fsspec, "clear_instance_cache") else None
    server.stop()


def straight(puzzles: Path, output: Path, **options: Any) -> dict[str, bytes]:
    convert_cot(str(puzzles / SOURCE), str(output), num_workers=0, **options)
    return folder_bytes(output)


def test_http_input(web: str, puzzles: Path, tmp_path: Path) -> None:
    report = convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), num_workers=2)
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


@pytest.mark.parametrize("workers", [0, 2])
def test_failing_server_stops_the_conversion(
    workers: int, web: str, puzzles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Handler, "broken", "task_40/")
    options = {"samples_per_file": 10, "num_workers": workers}
    with pytest.raises(InputError, match=r"task_40/.*storage failure"):
        convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), **options)
    assert list((tmp_path / "web").glob("*.parquet"))
    assert not (tmp_path / "web" / "rejects.jsonl").exists()
    monkeypatch.undo()
    report = convert_cot(f"{web}/{SOURCE}", str(tmp_path / "web"), **options)
    assert report.num_resumed > 0
    local = straight(puzzles, tmp_path / "local", samples_per_file=10)
    assert folder_bytes(tmp_path / "web") == local


def test_missing_http_input(web: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.json"):
        convert_cot(f"{web}/none.json", str(tmp_path / "web"))


def test_s3_in_and_out(bucket: str, puzzles: Path, tmp_path: Path) -> None:
    filesystem = fsspec.filesystem("s3")
    filesystem.put(str(puzzles), f"{bucket}/data", recursive=True)
    source = f"{bucket}/data/{SOURCE}"
    options = {"samples_per_file": 10, "split": "train=0.8,test=0.2"}
    convert_cot(source, f"{bucket}/out", num_workers=2, **options)
    filesystem.get(f"{bucket}/out", str(tmp_path / "out"), recursive=True)
    local = straight(puzzles, tmp_path / "local", **options)
    assert folder_bytes(tmp_path / "out") == local
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
    monkeypatch.setattr("mathcanvas_lightning.conversion.output.folder.ATOMIC_STORES", frozenset())
    convert_cot(str(puzzles / SOURCE), "memory://out", num_workers=0)
    filesystem = fsspec.filesystem("memory")
    local = straight(puzzles, tmp_path)
    assert {name: filesystem.cat_file(f"/out/{name}") for name in local} == local
    assert len(filesystem.ls("/out")) == len(local)
