"""A chat server that answers at once, or fails in the way that is planned for a question.

Needs the standard library alone; as a program it stands for a real server's command.
"""

import argparse
import contextlib
import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ServerFault:
    """How the server fails in one try."""

    status: int | None = None
    """Answer with this status instead of 200."""
    message: str = "as planned"
    """Message in the body of the error."""
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the answer."""
    body: bytes | None = None
    """Answer with this body."""
    hang: bool = False
    """Never answer."""
    drop: bool = False
    """End the connection without an answer."""
    cut: bool = False
    """End the connection in the middle of the body."""
    stall: bool = False
    """Send nothing more after the first events of a stream."""


Answer = dict[str, Any]


@dataclass
class ChatServer:
    """Answers a question "x" by "re: x"; as a stream, if the request wants one."""

    fault: ServerFault | None = None
    """Fault of all requests without a plan."""
    shape: Callable[[Answer], Answer] = lambda answer: answer
    """Changes each answer: to the form in which another server would send it."""
    refuse: Callable[[dict[str, Any]], str | None] = lambda body: None
    """The message with which the server refuses a body with status 400; None to accept it."""
    streams: bool = True
    """Whether it knows streams; if not, it ignores the field."""

    models: tuple[str, ...] = ("parrot",)
    delay_s: float = 0.0
    """Delay before each answer, in seconds."""
    gather: int = 0
    """Delay the first answers until so many requests are open at the same time."""
    pause_s: float = 0.0
    """Delay after each event of a stream, in seconds."""
    plans: dict[str, list[ServerFault]] = field(default_factory=dict)
    """Question -> faults of its first tries; later tries are answered."""
    models_fault: ServerFault | None = None
    """Fault of the list of models."""
    list_models: Callable[[list[str]], Any] = lambda names: {
        "object": "list",
        "data": [{"id": name, "object": "model"} for name in names],
    }
    """Writes the list of models."""
    tries: Counter[str] = field(default_factory=Counter)
    """Question -> number of tries."""
    times: dict[str, list[float]] = field(default_factory=dict)
    """Question -> times of its tries."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """All requests."""
    authorization: str | None = None
    """Headers of the last request."""
    num_open: int = 0
    max_open: int = 0
    """Maximum number of requests that were open at the same time."""
    url: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)
    gathered: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def opened(self, question: str, body: dict[str, Any]) -> Iterator[ServerFault | None]:
        """Counts a try and returns its planned fault."""
        with self.lock:
            self.bodies.append(body)
            self.tries[question] += 1
            self.times.setdefault(question, []).append(time.monotonic())
            self.num_open += 1
            self.max_open = max(self.max_open, self.num_open)
            if self.num_open >= self.gather:
                self.gathered.set()
            plan = self.plans.get(question, [])
            fault = plan.pop(0) if plan else self.fault
            if fault is None and (message := self.refuse(body)) is not None:
                fault = ServerFault(status=400, message=message)
        try:
            yield fault
        finally:
            with self.lock:
                self.num_open -= 1


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a hanging answer may last longer than the test
    request_queue_size = 256

    def __init__(self, port: int, chat: ChatServer) -> None:
        self.chat = chat
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, *args: Any) -> None:
        """Ignores clients that hang up: tests do this on purpose."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        chat = self.server.chat
        if self.path == "/health":
            self.send(200, b"")
        elif chat.models_fault is not None:
            self.fail(chat.models_fault, b"")
        else:
            self.send(200, json.dumps(chat.list_models(list(chat.models))).encode())

    def do_POST(self) -> None:
        chat = self.server.chat
        chat.authorization = self.headers.get("Authorization")
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = body["messages"][-1]["content"]
        question = content if isinstance(content, str) else content[-1]["text"]
        answer = chat.shape(completion(*[f"re: {question}"] * body.get("n", 1)))
        with chat.opened(question, body) as fault:
            chat.gathered.wait(60)
            time.sleep(chat.delay_s)
            if chat.streams and body.get("stream") and (fault is None or fault.cut or fault.stall):
                self.stream(events(answer), fault)
            elif fault is None:
                self.send(200, json.dumps(answer).encode())
            else:
                self.fail(fault, json.dumps(answer).encode())

    def stream(self, parts: list[Any], fault: ServerFault | None) -> None:
        """Sends events; if planned, ends or stalls after the first two."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for part in parts if fault is None else parts[:2]:
            data = f"data: {part if isinstance(part, str) else json.dumps(part)}\n\n".encode()
            self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
            time.sleep(self.server.chat.pause_s)
        if fault is None:
            self.wfile.write(b"0\r\n\r\n")
            return
        if fault.stall:
            self.server.chat.ended.wait(60)
        self.close_connection = True

    def fail(self, fault: ServerFault, answer: bytes) -> None:
        """Fails as planned."""
        if fault.hang:
            self.server.chat.ended.wait(60)
        if fault.hang or fault.drop:
            self.close_connection = True
        elif fault.cut:
            self.send(200, answer[: len(answer) // 2], length=len(answer))
            self.close_connection = True
        else:
            error = json.dumps({"error": {"message": fault.message}}).encode()
            self.send(fault.status or 200, fault.body or error, headers=fault.headers)

    def send(
        self,
        status: int,
        body: bytes,
        *,
        length: int | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """Sends an answer, which may be shorter than its Content-Length."""
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Logs nothing."""


def completion(*texts: str | None, reason: str | None = "stop") -> dict[str, Any]:
    """A chat completion as servers send it, the last choice first."""
    choices = [
        {"index": index, "message": {"content": text}, "finish_reason": reason}
        for index, text in enumerate(texts)
    ]
    usage = {"prompt_tokens": 3, "completion_tokens": 2 * len(texts)}
    return {"choices": choices[::-1], "usage": usage}


def events(answer: Answer) -> list[Any]:
    """The events of a streamed completion: each text in two pieces, then the finish reasons."""
    parts: list[Any] = []
    for choice in answer["choices"]:
        named = {"index": choice["index"]} if "index" in choice else {}
        for number in range(2):
            delta = {
                name: value[number * (len(value) // 2) :][
                    : len(value) if number else len(value) // 2
                ]
                for name, value in choice["message"].items()
                if isinstance(value, str)
            }
            if number and isinstance(choice["message"].get("content"), list):
                delta["content"] = choice["message"]["content"]
            parts.append({"choices": [{**named, "delta": delta, "finish_reason": None}]})
        parts.append(
            {"choices": [{**named, "delta": {}, "finish_reason": choice.get("finish_reason")}]}
        )
    return [*parts, {"choices": [], "usage": answer.get("usage")}, "[DONE]"]


@contextlib.contextmanager
def chat_server(chat: ChatServer, *, port: int = 0) -> Iterator[ChatServer]:
    """Runs a chat server in a thread.

    Yields:
        The server, with its URL.
    """
    server = _Server(port, chat)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    chat.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield chat
    finally:
        chat.ended.set()
        server.shutdown()
        thread.join()
        server.server_close()


def main() -> None:
    """Command of a server: writes to its log, and its process ids to a file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pids", type=Path)
    parser.add_argument("--exit-code", type=int)
    parser.add_argument("--exit-when", type=Path)
    parser.add_argument("--never-ready", action="store_true")
    parser.add_argument("--ignore-term", action="store_true")
    options = parser.parse_args()
    sys.stdout.write("loading the model\n")
    sys.stdout.flush()
    if options.exit_code is not None:
        sys.exit(options.exit_code)
    if options.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the child inherits this
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    if options.pids:
        options.pids.write_text(f"{os.getpid()} {child.pid}")
    if options.never_ready:
        time.sleep(600)
    with chat_server(ChatServer(), port=options.port):
        while options.exit_when is None or not options.exit_when.exists():
            time.sleep(0.02)
    sys.stdout.write("out of memory\n")
    sys.stdout.flush()
    os._exit(7)


if __name__ == "__main__":
    main()
