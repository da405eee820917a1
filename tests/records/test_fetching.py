"""Pictures at URLs: read ahead and in parallel, with time limits, from hosts that may be down."""

import contextlib
import http.server
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mathcanvas_lightning.errors import ConfigError, StorageError
from mathcanvas_lightning.generation.requests import GenerationRequest
from mathcanvas_lightning.generation.run.datamodule import RecordDataModule
from mathcanvas_lightning.records.fetching import PictureReader
from mathcanvas_lightning.records.hosts import (
    MAX_FAILURES,
    REST_S,
    FetchSettings,
    HostHealth,
)
from mathcanvas_lightning.records.pictures import PictureError
from mathcanvas_lightning.records.record import Record, RecordInput
from mathcanvas_lightning.records.survey import survey
from tests.conftest import png

PICTURE = png()
FAST = FetchSettings(timeout_s=1.0, max_retries=0)
PATIENT = FetchSettings(timeout_s=60, max_retries=0, num_parallel=2)


class PictureHost:
    """Sends a picture for each path: at once, or as the path says."""

    def __init__(self) -> None:
        self.tries: Counter[str] = Counter()
        self.num_open = 0
        self.max_open = 0
        self.url = ""
        self.etag = "first"
        self.lock = threading.Lock()
        self.both = threading.Barrier(2)
        self.ended = threading.Event()

    @contextlib.contextmanager
    def opened(self, path: str) -> Iterator[None]:
        with self.lock:
            self.tries[path] += 1
            self.num_open += 1
            self.max_open = max(self.max_open, self.num_open)
        try:
            yield
        finally:
            with self.lock:
                self.num_open -= 1


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "_Server"

    def do_GET(self) -> None:
        host = self.server.host
        with host.opened(self.path):
            if "stalls" in self.path:
                host.ended.wait(60)
            if "pair" in self.path:  # needs two requests at the same time
                with contextlib.suppress(threading.BrokenBarrierError):
                    host.both.wait(60)
            status = 404 if "missing" in self.path else 403 if "secret" in self.path else 206
            data = PICTURE if status == 206 else b""
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Range", f"bytes 0-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if "dribbles" in self.path:
                for number in range(len(data)):
                    self.wfile.write(data[number : number + 1])
                    if host.ended.wait(0.1):
                        return
            self.wfile.write(data)

    def do_HEAD(self) -> None:
        with self.server.host.opened(f"HEAD {self.path}"):
            self.send_response(404 if "missing" in self.path else 200)
            self.send_header("Content-Length", str(len(PICTURE)))
            self.send_header("ETag", self.server.host.etag)
            self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, host: PictureHost) -> None:
        self.host = host
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, *args: Any) -> None:
        """Ignores clients that hang up."""


@pytest.fixture
def host() -> Iterator[PictureHost]:
    host = PictureHost()
    server = _Server(host)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    host.url = f"http://127.0.0.1:{server.server_port}"
    yield host
    host.ended.set()
    server.shutdown()
    thread.join()
    server.server_close()


def record(name: str, *images: str) -> Record:
    return Record(uid=name, position=0, index=0, query="q", images=images, values={}, digest="")


def kinds(reader: PictureReader, *records: Record) -> dict[str, str]:
    """Uid -> kind of the error, or "read"."""
    return {
        one.uid: pictures.kind if isinstance(pictures, PictureError) else "read"
        for one, pictures in reader.read_ahead(records)
    }


def test_urls_are_read_in_parallel(host: PictureHost) -> None:
    records = [record(str(number), f"{host.url}/pair{number}.png") for number in range(8)]
    assert set(kinds(PictureReader(PATIENT), *records).values()) == {"read"}
    assert host.max_open == 2
    assert not host.both.broken


def test_a_stalled_url_delays_only_its_record(host: PictureHost, tmp_path: Path) -> None:
    (tmp_path / "local.png").write_bytes(PICTURE)
    records = [
        record("stalled", f"{host.url}/stalls.png"),
        record("local", str(tmp_path / "local.png")),
        *(record(str(number), f"{host.url}/{number}.png") for number in range(12)),
    ]
    ahead = PictureReader(PATIENT).read_ahead(records)
    found = {next(ahead)[0].uid for _ in range(len(records) - 1)}
    assert found == {one.uid for one in records} - {"stalled"}
    host.ended.set()
    assert [one.uid for one, _ in ahead] == ["stalled"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stalls.png", "dribbles.png"])
def test_the_time_limit_counts_to_the_last_byte(host: PictureHost, name: str) -> None:
    began = time.monotonic()
    assert kinds(PictureReader(FAST), record("1", f"{host.url}/{name}")) == {
        "1": "picture_unreadable"
    }
    assert time.monotonic() - began < 50  # the host stalls for 60 s
    assert host.tries[f"/{name}"] == 1


def test_a_host_that_is_down_is_remembered() -> None:
    reader = PictureReader(PATIENT)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # nothing listens there
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        for name in map(str, range(40)):
            pictures = reader.read(record(name, f"http://{address}/{name}.png"))
            assert isinstance(pictures, PictureError)
    assert f"no answer {MAX_FAILURES} times in a row" in str(pictures)


def test_missing_and_secret_pictures_are_no_sign_of_a_host_that_is_down(host: PictureHost) -> None:
    names = [f"{kind}{number}.png" for number in range(4) for kind in ("missing", "secret")]
    reader = PictureReader(PATIENT)
    found = kinds(reader, *(record(name, f"{host.url}/{name}") for name in names))
    assert set(found.values()) == {"picture_missing", "picture_unreadable"}
    assert kinds(reader, record("good", f"{host.url}/good.png")) == {"good": "read"}


def test_a_host_gets_another_chance() -> None:
    now = 1000.0
    health = HostHealth(clock=lambda: now)
    for _ in range(MAX_FAILURES):
        health.require("a")
        health.note("a", is_up=False)
    with pytest.raises(StorageError, match="no answer 3 times"):
        health.require("a")
    health.require("b")
    now += REST_S
    health.require("a")  # one request tries it
    with pytest.raises(StorageError):
        health.require("a")
    health.note("a", is_up=True)
    health.require("a")
    health.note("a", is_up=False)
    health.require("a")  # the count starts anew


def test_a_shared_picture_is_read_once(host: PictureHost) -> None:
    reader = PictureReader(PATIENT)
    for name in ("1", "2"):
        assert kinds(reader, record(name, f"{host.url}/shared.png")) == {name: "read"}
    assert host.tries == {"/shared.png": 1}


def test_a_run_reads_each_picture_once(host: PictureHost, tmp_path: Path) -> None:
    source = tmp_path / "questions.jsonl"
    lines = [
        {"sample_index": number, "query_cot": "q", "image": f"{host.url}/{number}.png"}
        for number in range(20)
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = RecordDataModule([RecordInput(path=str(source), fetching=PATIENT)])
    data.setup("predict")
    requests = list(data.requests())
    assert {len(one.pictures) for one in requests if isinstance(one, GenerationRequest)} == {1}
    assert len({one.uid for one in requests}) == 20
    assert set(host.tries.values()) == {1}


def test_changed_pictures_at_urls_are_noticed_without_reading_them(
    host: PictureHost, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "questions.jsonl"
    lines = [
        {"sample_index": name, "query_cot": "q", "image": f"{host.url}/{name}.png"}
        for name in ("good", "missing")
    ]
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    unchecked = [RecordInput(path=str(source), fetching=PATIENT)]
    checked = [replace(unchecked[0], fetching=replace(PATIENT, check_changes=True))]
    assert [key.stamp for key in survey(unchecked)] == [None, None]
    assert not host.tries
    (first, missing), (again, _) = survey(checked), survey(checked)
    assert first.stamp == again.stamp is not None
    assert missing.stamp is None
    assert "1 of 2 pictures at URLs" in caplog.text
    host.etag = "second"
    assert survey(checked)[0].stamp != first.stamp
    assert host.tries["/good.png"] == 0


def test_an_early_end_waits_for_nothing(host: PictureHost) -> None:
    records = [record(name, f"{host.url}/{name}.png") for name in ("good", "stalls1", "stalls2")]
    ahead = PictureReader(PATIENT).read_ahead(records)
    assert next(ahead)[0].uid == "good"
    began = time.monotonic()
    ahead.close()  # type: ignore[attr-defined]
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("name", ["timeout_s", "max_retries", "num_parallel"])
def test_settings_are_checked(name: str) -> None:
    with pytest.raises(ConfigError, match=f"fetching.{name}"):
        FetchSettings(**{name: -1})


def test_configured_from_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(RecordDataModule, "data")
    value = {"inputs": [{"path": "a.jsonl", "fetching": {"timeout_s": 3}}, {"path": "b.jsonl"}]}
    data = parser.instantiate(parser.parse_object({"data": value})).data
    first, second = (one.fetching for one in data.inputs)
    assert (first, second) == (FetchSettings(timeout_s=3), FetchSettings())
