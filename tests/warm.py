"""Python processes that start warm: forks of a process that has imported what the commands import.

Importing torch and Lightning takes ten seconds of a processor, and the tests and the guides start
Python about a hundred times. A server imports once. For each script, or `-m mathcanvas_lightning`,
it forks a process that gets the client's words, folder, environment and standard streams.
"""

import atexit
import faulthandler
import gc
import json
import multiprocessing.process
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NoReturn

MAX_MESSAGE_BYTES = 200_000
PACKAGE = "mathcanvas_lightning"
LATER = (
    "diffusers.loaders.single_file_utils",
    "diffusers.models.autoencoders.autoencoder_kl",
    "pyarrow.dataset",
    "s3fs",
    "transformers.models.qwen2.tokenization_qwen2",
    "transformers.optimization",
)
"""What commands import only when they need it; a server imports it, too."""
TIMEOUT_S = 450
"""Time after which a process counts as hanging; less than a test has."""
WARM_CHILDREN = "MATHCANVAS_WARM_CHILDREN"
"""Variable for a process whose Python children start warm, too, as children of it."""


class WarmProcess:
    """A process that a server forked.

    Args:
        connection: Connection to the server.
        words: What follows `python` on its command line.
        output: Its standard output and standard error.
    """

    def __init__(
        self, connection: socket.socket, words: Sequence[str], output: Sequence[IO[str]]
    ) -> None:
        self._connection, self._words, self._output = connection, words, output
        self.pid = int(connection.recv(16))

    @property
    def printed(self) -> str:
        """What it has written to its standard output until now."""
        file = self._output[0].fileno()
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")

    def wait_until(self, condition: Callable[[], Any]) -> Any:
        """Waits until a condition is true while the process runs; returns its value.

        Raises:
            AssertionError: If the process ends, or takes too long; with its standard error.
        """
        deadline = time.monotonic() + TIMEOUT_S
        while not (found := condition()):
            has_ended = select.select([self._connection], [], [], 0.01)[0]
            if has_ended or time.monotonic() > deadline:
                done = self.wait(1)
                raise AssertionError(f"status {done.returncode}:\n{last_words(done.stderr)}")
        return found

    def wait(self, timeout_s: float = TIMEOUT_S) -> "subprocess.CompletedProcess[str]":
        """Waits for the end; returns output and exit status, a negative signal if one ended it.

        A process that takes longer is ended, and writes where it was to its standard error.
        """
        self._connection.settimeout(timeout_s)
        try:
            status = int(self._connection.recv(16))
        except TimeoutError:
            os.kill(self.pid, signal.SIGABRT)
            self._connection.settimeout(TIMEOUT_S)
            status = int(self._connection.recv(16))
        self._connection.close()
        texts = []
        for file in self._output:
            file.seek(0)
            texts.append(file.read())
            file.close()
        return subprocess.CompletedProcess(self._words, status, *texts)


@dataclass(frozen=True)
class WarmPython:
    """A server, for the process that started it and its children."""

    address: str
    """Path of the server's socket."""

    def start(
        self,
        words: Sequence[str | Path],
        *,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        python: Path | None = None,
    ) -> WarmProcess:
        """Starts `python WORDS`.

        Args:
            words: What follows `python`.
            cwd: Folder; by default that of this process.
            env: Environment variables; by default those of this process.
            python: Command with which it starts Python, see `write_warm_command`; by default the
                interpreter.
        """
        texts = [str(word) for word in words]
        variables = dict(os.environ if env is None else env)
        message = [
            texts,
            str(cwd or Path.cwd()),
            variables,
            None if python is None else str(python),
        ]
        output = [tempfile.TemporaryFile("w+") for _ in range(2)]  # noqa: SIM115 - `wait` does it
        with Path(os.devnull).open() as nothing:
            streams = [file.fileno() for file in (nothing, *output)]
            return WarmProcess(_ask(self.address, message, streams), texts, output)

    def run(
        self, words: Sequence[str | Path], **options: Any
    ) -> "subprocess.CompletedProcess[str]":
        """Runs `python WORDS` to its end; takes the options of `start`."""
        return self.start(words, **options).wait()


@contextmanager
def warm_python(
    python: str | Path, code: Path, env: Mapping[str, str] | None = None
) -> Iterator[WarmPython]:
    """Starts a server; all processes that it forked end with it.

    Args:
        python: The interpreter.
        code: Folder of a checkout.
        env: Environment variables of the server; by default those of this process.
    """
    folder = tempfile.mkdtemp()
    address = f"{folder}/socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen()
        server = subprocess.Popen(
            [python, "-P", code / "tests" / "warm.py", "serve", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=None if env is None else dict(env),
            start_new_session=True,
        )
    try:
        yield WarmPython(address)
    finally:
        assert server.stdin is not None
        server.stdin.close()
        server.wait(60)
        shutil.rmtree(folder)


def last_words(text: str) -> str:
    """The end of an output; of an aborted process, its stack, which starts with the last call."""
    start = text.find("Fatal Python error")
    return text[-4000:] if start < 0 else text[max(0, start - 1000) : start + 3000]


def write_warm_command(path: Path, python: Path, code: Path, warm: WarmPython) -> None:
    """Writes a command that runs like the interpreter, warm where the server can do it."""
    client = f'"{python}" -IS "{code}/tests/warm.py" ask "{warm.address}" "{python}" "{path}"'
    path.unlink(missing_ok=True)  # it may be a link to the interpreter
    path.write_text(f'#!/bin/sh\nexec {client} "$@"\n')
    path.chmod(0o755)


def _ask(address: str, message: object, streams: list[int]) -> socket.socket:
    """Lets the server fork a process; it answers with the process id, and at the end the status."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(address)
    socket.send_fds(connection, [json.dumps(message).encode()], streams)
    return connection


def _client(address: str, python: str, command: str, *words: str) -> int:
    """Passes this process on to the server, or to the interpreter."""
    given = words[1:] if words[:1] == ("-u",) else words
    is_module = given[:1] == ("-m",) and given[1].split(".")[0] == PACKAGE
    if not is_module and not (given and given[0].endswith(".py")):
        os.execv(python, [python, *words])
    message = [given, str(Path.cwd()), dict(os.environ), command]
    connection = _ask(address, message, [0, 1, 2])
    connection.recv(16)
    return int(connection.recv(16))


def _serve(descriptor: int) -> None:
    """Forks processes until the standard input ends."""
    from mathcanvas_lightning.cli.main import COMMANDS

    for name in ("cli.fit", "cli.predict", *(c.function.split(":")[0] for c in COMMANDS.values())):
        import_module(f"{PACKAGE}.{name}")
    for name in LATER:
        import_module(name)
    gc.collect()
    gc.freeze()  # or each fork would scan a million objects, and copy their memory for it
    listener = socket.socket(fileno=descriptor)
    while listener in select.select([listener, 0], [], [])[0]:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _fork(connection)
            return
        connection.close()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
    os.killpg(0, signal.SIGKILL)


def _fork(connection: socket.socket) -> None:
    """Forks the process for a client, and sends its exit status when it ends."""
    message, streams, _, _ = socket.recv_fds(connection, MAX_MESSAGE_BYTES, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        _become(*json.loads(message), streams)
        return
    for stream in streams:
        os.close(stream)
    connection.send(str(child).encode())
    _, status = os.waitpid(child, 0)
    connection.send(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _become(
    words: list[str], folder: str, env: dict[str, str], python: str | None, streams: list[int]
) -> None:
    """Runs as `python WORDS` would run."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    multiprocessing.process.ORIGINAL_DIR = folder  # where new processes look for the script
    os.environ.clear()
    os.environ.update(env)
    faulthandler.enable()
    sys.executable = python or sys.executable
    if os.environ.pop(WARM_CHILDREN, ""):
        sys.path.append(str(Path(__file__).parent.parent))
        import_module("tests.warm_children").adopt()
    run_and_end(_run, words)


def run_and_end(run: Callable[[list[str]], None], words: list[str]) -> NoReturn:
    """Ends this process after a function."""
    try:
        run(words)
    except SystemExit as end:
        if not isinstance(end.code, int | None):
            raise
        _end(end.code or 0)
    _end(0)


def _run(words: list[str]) -> None:
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    sys.argv = words
    sys.path.insert(0, str(Path(words[0]).resolve().parent))
    runpy.run_path(str(Path(words[0]).absolute()), run_name="__main__")


def _end(status: int) -> NoReturn:
    """Ends this process.

    Python would also free all objects, one by one, which takes a second. Ranks do it, as their
    threads could make it fail.
    """
    if "MASTER_PORT" in os.environ:
        gc.unfreeze()
        sys.exit(status)
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        _serve(int(sys.argv[2]))
    else:
        sys.exit(_client(*sys.argv[2:]))
