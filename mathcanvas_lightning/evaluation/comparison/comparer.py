"""Comparisons within a time limit, each in a process that may be lost."""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import astuple, dataclass
from queue import LifoQueue
from types import TracebackType

from mathcanvas_lightning.errors import ConfigError, WorkerError
from mathcanvas_lightning.evaluation.comparison.equivalence import Comparison, compare

MEMORY_BYTES = 2 * 2**30
"""Address space of a process: 10^10^10 would fill any memory before the time is up."""
READY = "ready\n"


@dataclass(frozen=True, slots=True)
class Pair:
    """What to compare."""

    given: str
    expected: str
    options: tuple[str, ...] = ()


class Comparer:
    """Compares answers in processes of its own, since algebra can't be interrupted otherwise.

    A process that runs out of time, or of memory, is lost and another takes its place. Any number
    of threads may use it. It is a context manager; `close` ends the processes.

    Args:
        num_processes: Comparisons at a time.
        time_limit_s: Of one comparison, in seconds.

    Raises:
        ConfigError: If either is not above 0.
    """

    def __init__(self, num_processes: int = 1, time_limit_s: float = 5.0) -> None:
        for name, value in (("num_processes", num_processes), ("time_limit_s", time_limit_s)):
            if value <= 0:
                raise ConfigError(
                    f"Comparer.{name}", found=str(value), wanted="above 0", remedy="Raise it."
                )
        self._num_processes = num_processes
        self._time_limit_s = time_limit_s
        self._known: dict[Pair, Comparison] = {}
        self._idle: LifoQueue[subprocess.Popen[str] | None] = LifoQueue()
        for _ in range(num_processes):
            self._idle.put(None)

    def compare(self, given: str, expected: str, options: Sequence[str] = ()) -> Comparison:
        """Compares an answer with the reference, as `equivalence.compare`.

        Args:
            given: An answer.
            expected: The reference.
            options: Texts of the choices, if the question has any.

        Returns:
            Whether they say the same; `time_limit` if it can't be told in time.

        Raises:
            WorkerError: If processes can't start.
        """
        pair = Pair(given, expected, tuple(options))
        if pair not in self._known:
            self._known[pair] = self._ask(pair)
        return self._known[pair]

    def compare_all(self, pairs: Iterable[Pair]) -> Iterator[Comparison]:
        """Compares pairs, several at a time.

        Args:
            pairs: All are read before the first comparison is given.

        Yields:
            A comparison for each, in their order.
        """
        with ThreadPoolExecutor(self._num_processes) as threads:
            try:
                yield from threads.map(
                    lambda pair: self.compare(pair.given, pair.expected, pair.options), pairs
                )
            finally:
                threads.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Ends all processes; a further comparison starts some again."""
        processes = [self._idle.get() for _ in range(self._num_processes)]
        for process in processes:
            if process is not None:
                _end(process)
            self._idle.put(None)

    def __enter__(self) -> "Comparer":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, pair: Pair) -> Comparison:
        process, answer = self._idle.get(), ""
        try:
            process = process or _start(self._time_limit_s)
            answer = _exchange(process, json.dumps(astuple(pair)) + "\n")
        finally:
            if process is not None and not answer.endswith("\n"):
                _end(process)  # it is lost, or still busy when all is interrupted
                process = None
            self._idle.put(process)
        return Comparison(*json.loads(answer)) if answer else Comparison(False, "time_limit")


def _start(time_limit_s: float) -> "subprocess.Popen[str]":
    """A process that answers a line of JSON with another."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", __name__, str(time_limit_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if _exchange(process, "") != READY:
        _end(process)
        raise WorkerError(
            "comparison process",
            found=f"it ended at its start, with status {process.returncode}",
            wanted="a process that waits for answers to compare",
            remedy=f"Run {sys.executable} -m {__name__} 5 to see why.",
        )
    return process


def _exchange(process: "subprocess.Popen[str]", line: str) -> str:
    """Sends a line and gives the answer; less than a line if the process has ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(line)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return ""


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(OSError):
                stream.close()


def _serve(time_limit_s: float) -> None:
    """Answers lines until standard input ends, or until one takes too long."""
    with suppress(ValueError, OSError):  # not every system has this limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable()
    answers = sys.stdout
    sys.stdout = sys.stderr  # for whatever a library prints
    answers.write(READY)
    answers.flush()
    for line in sys.stdin:
        given, expected, options = json.loads(line)
        # Nothing handles the alarm: it ends the process, even amid one long operation.
        signal.setitimer(signal.ITIMER_REAL, time_limit_s)
        found = compare(given, expected, options)
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(astuple(found)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve(float(sys.argv[1]))
