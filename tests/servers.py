"""Servers for tests: files over HTTP, S3, and a proxy that makes things go wrong on the way."""

import contextlib
import functools
import hashlib
import http.client
import http.server
import socket
import struct
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

AUTHORIZATION = (
    "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=unchecked"
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong with answers; of several things, the first one that is set."""

    status: int | None = None
    """Answer with this status instead."""
    reset: bool = False
    """Break the connection instead of answering."""
    stall_after: int | None = None
    """Fall silent after so many bytes of the body; -1 before the status line."""
    cut_after: int | None = None
    """End the connection after so many bytes of the body, under the full Content-Length."""
    corrupt_at: float | None = None
    """Change one byte of the body: 0.0 is the first, 1.0 the last."""
    times: int | None = None
    """How many answers; None for all."""
    match: str = ""
    """Only where the method and path, as in "GET /folder/file", contain this."""

    def spares(self, method: str, body: bytes) -> bool:
        """Whether an answer has nothing that could go wrong in this way."""
        if self.status is not None or self.reset or self.stall_after == -1:
            return False
        return method == "HEAD" or not body


@dataclass(frozen=True)
class Request:
    """One that reached the proxy."""

    method: str
    path: str
    range: str | None


@dataclass
class FaultyProxy:
    """Passes requests on to a server and its answers back, but for a fault."""

    upstream: str
    requests: list[Request] = field(default_factory=list)
    url: str = ""
    _fault: Fault | None = None
    _num_faults: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ended: threading.Event = field(default_factory=threading.Event)

    @property
    def fault(self) -> Fault | None:
        """What goes wrong from now on."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        with self._lock:
            self._fault = fault
            self._num_faults = 0

    @property
    def num_faults(self) -> int:
        """How many answers the present fault has struck."""
        return self._num_faults

    def clear(self) -> None:
        """No fault, no requests."""
        self.fault = None
        self.requests.clear()

    def strike(self, method: str, path: str, body: bytes) -> Fault | None:
        """The fault, if it is for this answer."""
        with self._lock:
            fault = self._fault
            if (
                fault is None
                or self._num_faults == fault.times
                or fault.match not in f"{method} {path}"
                or fault.spares(method, body)
            ):
                return None
            self._num_faults += 1
            return fault

    def wait_for_end(self) -> None:
        """Falls silent until the test is over."""
        self._ended.wait(60)

    def close(self) -> None:
        """Wakes up those who wait."""
        self._ended.set()


class _QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a stalled answer may last longer than the test

    def handle_error(self, *args: Any) -> None:
        """Clients that hang up are what is tested."""


class _ProxyHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *args: Any, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(*args)

    def handle_any(self) -> None:
        self.proxy.requests.append(Request(self.command, self.path, self.headers.get("Range")))
        sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, body = self._ask(sent)
        fault = self.proxy.strike(self.command, self.path, body)
        if fault is None:
            self._answer(status, headers, body)
        elif fault.status is not None:
            self._answer(fault.status, {"Content-Length": "0"}, b"")
        elif fault.reset:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        elif fault.stall_after is not None:
            if fault.stall_after >= 0:
                self._answer(status, headers, body[: fault.stall_after])
            self.proxy.wait_for_end()
            self.close_connection = True
        elif fault.cut_after is not None:
            self._answer(status, headers, body[: min(fault.cut_after, len(body) - 1)])
            self.close_connection = True
        elif fault.corrupt_at is not None:
            place = int(fault.corrupt_at * (len(body) - 1))
            self._answer(
                status, headers, body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :]
            )

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any  # noqa: N815

    def _ask(self, sent: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(urlsplit(self.proxy.upstream).netloc, timeout=300)
        with contextlib.closing(connection):
            headers = {
                name: value
                for name, value in self.headers.items()
                if name.lower() not in ("host", "connection", "expect")
            }
            connection.request(self.command, self.path, body=sent or None, headers=headers)
            answer = connection.getresponse()
            body = answer.read()
        left_out = ("connection", "transfer-encoding", "date", "server")
        kept = {name: value for name, value in answer.getheaders() if name.lower() not in left_out}
        if self.command != "HEAD":
            kept.pop("content-length", None)
            kept["Content-Length"] = str(len(body))
        return answer.status, kept, body

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Keeps quiet."""


class _FileHandler(http.server.SimpleHTTPRequestHandler):
    """Python's own file server, which knows no ranges."""

    def log_message(self, *args: Any) -> None:
        """Keeps quiet."""


class _RangeHandler(_FileHandler):
    """Gives single ranges and an ETag for files."""

    def do_GET(self) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            super().do_GET()
            return
        data = path.read_bytes()
        start, end, status = 0, len(data), 200
        if wanted := self.headers.get("Range"):
            first, last = wanted.removeprefix("bytes=").split("-")
            start, end, status = int(first), min(int(last) + 1, len(data)), 206
        self.send_response(416 if status == 206 and start >= len(data) else status)
        self.send_header("ETag", hashlib.md5(data).hexdigest())
        self.send_header("Content-Length", str(max(end - start, 0)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:end])

    do_HEAD = do_GET  # noqa: N815


@contextlib.contextmanager
def _serving(handler: Any) -> Iterator[str]:
    server = _QuietServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def file_server(folder: Path, *, ranges: bool = True) -> Iterator[str]:
    """Serves a folder over HTTP.

    Args:
        folder: What to serve.
        ranges: Whether it answers range requests, and tells an ETag.

    Yields:
        Its URL.
    """
    handler = _RangeHandler if ranges else _FileHandler
    with _serving(functools.partial(handler, directory=str(folder))) as url:
        yield url


@contextlib.contextmanager
def faulty_proxy(upstream: str) -> Iterator[FaultyProxy]:
    """A proxy before a server.

    Args:
        upstream: URL of the server.

    Yields:
        The proxy; `url` takes the place of the server's.
    """
    proxy = FaultyProxy(upstream)
    with _serving(functools.partial(_ProxyHandler, proxy=proxy)) as url:
        proxy.url = url
        try:
            yield proxy
        finally:
            proxy.close()


@dataclass(frozen=True)
class S3Server:
    """A real server of the S3 protocol, for this process and its children."""

    endpoint: str

    def options(self, endpoint: str | None = None) -> dict[str, Any]:
        """Options of fsspec for it, or for a proxy before it."""
        return {
            "key": "test",
            "secret": "test",
            "endpoint_url": endpoint or self.endpoint,
            "client_kwargs": {"region_name": "us-east-1"},
        }

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """The same as environment variables."""
        return {
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint or self.endpoint,
        }

    def put(self, path: str, data: bytes = b"") -> None:
        """Makes a bucket ("bucket"), or an object ("bucket/key")."""
        url = f"{self.endpoint}/{path}"
        headers = {"Content-Type": "application/octet-stream", "Authorization": AUTHORIZATION}
        request = urllib.request.Request(url, data=data, method="PUT", headers=headers)
        with urllib.request.urlopen(request, timeout=300):
            pass

    def put_folder(self, bucket: str, folder: Path) -> None:
        """Makes objects of all files of a folder."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{bucket}/{path.relative_to(folder).as_posix()}", path.read_bytes())


@contextlib.contextmanager
def s3_server(*buckets: str) -> Iterator[S3Server]:
    """Starts an S3 server.

    Args:
        buckets: Names of buckets to make.

    Yields:
        The server.
    """
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        s3 = S3Server(f"http://{host}:{port}")
        reset = urllib.request.Request(f"{s3.endpoint}/moto-api/reset", method="POST")
        urllib.request.urlopen(reset).close()  # servers of one process share what they hold
        for bucket in buckets:
            s3.put(bucket)
        yield s3
    finally:
        server.stop()
