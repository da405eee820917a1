"""Worker processes start without the locks of other threads, and map in order."""

import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.common.parallel import (
    chunks_in_flight,
    ordered_map,
    protect_server,
    result_of,
    signals_blocked,
    signals_postponed,
    waiting_threads,
)
from mathcanvas_lightning.errors import WorkerError
from tests.common.worker_tasks import blocked_signals, die, megabytes, square, take_long
from tests.conftest import ROOT, run_python

TIMEOUT_S = 60


@pytest.mark.parametrize(("workers", "chunks"), [(1, 4), (8, 32), (16, 48), (64, 96)])
def test_results_in_memory_are_bounded(workers: int, chunks: int) -> None:
    assert chunks_in_flight(workers) == chunks


PROGRAM = """
import multiprocessing, sys, threading
from mathcanvas_lightning.common.parallel import start_from_a_server

lock = threading.Lock()

def work(results):
    results.put(lock.acquire(timeout=0.1))

if __name__ == "__main__":
    if sys.argv[1] != "none":
        multiprocessing.set_start_method(sys.argv[1])
    start_from_a_server(["json"])
    start_from_a_server(["no_such_module"])  # the first call counts
    lock.acquire()  # a thread holds it when the worker starts
    results = multiprocessing.Queue()
    process = multiprocessing.Process(target=work, args=(results,))
    process.start()
    print(multiprocessing.get_start_method(), results.get(timeout=200))
    process.join()
"""


@pytest.mark.parametrize(
    ("chosen", "expected"), [("none", "forkserver True"), ("fork", "fork False")]
)
def test_workers_start_from_a_server_unless_chosen(
    tmp_path: Path, chosen: str, expected: str
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = run_python(program, chosen, env={"PYTHONPATH": str(ROOT)}, timeout=300)
    assert done.stdout.strip() == expected, done.stderr


def test_ordered_map() -> None:
    chunks = [[i, i + 1] for i in range(0, 60, 2)]
    expected = [i * i for i in range(60)]
    assert list(ordered_map(square, chunks, num_workers=0)) == expected
    assert list(ordered_map(square, chunks, num_workers=2)) == expected
    with pytest.raises(WorkerError, match="ended before its work was finished"):
        list(ordered_map(die, chunks, num_workers=1))


def test_workers_get_no_signal_from_their_start() -> None:
    # A terminal sends Ctrl-C to all its processes; a new one imports torch for seconds.
    (blocked,) = ordered_map(blocked_signals, [[0]], num_workers=1)
    assert blocked == {signal.SIGINT, signal.SIGHUP, signal.SIGTERM}
    assert blocked_signals([0]) == [set()]


def test_a_blocked_interrupt_comes_after_the_block() -> None:
    reached = False
    with pytest.raises(KeyboardInterrupt), signals_blocked():
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        reached = True
    assert reached
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.usefixtures("other_thread")
@pytest.mark.parametrize("block", [signals_postponed, signals_blocked])
def test_an_interrupt_that_another_thread_gets_comes_after_the_block(
    block: Callable[[], AbstractContextManager[None]],
) -> None:
    handler, reached = signal.getsignal(signal.SIGINT), False
    with pytest.raises(KeyboardInterrupt), block():
        os.kill(os.getpid(), signal.SIGINT)
        reached = True
    assert reached
    assert signal.getsignal(signal.SIGINT) is handler


def test_an_ignored_signal_stays_ignored_in_the_block() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_blocked():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # new processes inherit it
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, previous)


@pytest.mark.usefixtures("other_thread")
def test_an_interrupt_between_two_steps_of_a_worker_start(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    start, finished = multiprocessing.util.spawnv_passfds, []

    def start_and_interrupt(*arguments: Any) -> int:
        process_id: int = start(*arguments)
        if signal.SIGTERM in blocked_signals([0])[0]:  # a worker, not the resource tracker
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # the exception would come here: the worker has not got its work
            finished.append(process_id)
        return process_id

    monkeypatch.setattr(multiprocessing.util, "spawnv_passfds", start_and_interrupt)
    before = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(square, [[0], [1]], num_workers=1))
    assert finished
    assert set(multiprocessing.active_children()) <= before
    assert capfd.readouterr().err == ""


def test_an_interrupt_does_not_wait_for_workers() -> None:
    before = set(multiprocessing.active_children())
    interrupt = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):  # wherever it comes
        interrupt.start()
        list(ordered_map(take_long, [[0], [1]], num_workers=1))
    assert set(multiprocessing.active_children()) <= before


def test_an_interrupt_while_the_pool_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    register, unregister = resource_tracker.register, resource_tracker.unregister
    kept: set[str] = set()

    def register_and_interrupt(name: str, kind: str) -> None:
        register(name, kind)
        kept.add(name)
        signal.raise_signal(signal.SIGINT)

    def remember_and_unregister(name: str, kind: str) -> None:
        kept.discard(name)
        unregister(name, kind)

    monkeypatch.setattr(resource_tracker, "register", register_and_interrupt)
    monkeypatch.setattr(resource_tracker, "unregister", remember_and_unregister)
    with pytest.raises(KeyboardInterrupt):
        list(ordered_map(square, [[0]], num_workers=1))
    gc.collect()
    assert kept == set()  # of a semaphore that is left, the tracker writes at its end


def test_an_interrupt_while_a_worker_sends_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    receive, before = Connection._recv, set(multiprocessing.active_children())  # type: ignore[attr-defined]
    sending = threading.Event()

    def receive_late(self: Connection, size: int) -> Any:
        if size > 2**20:  # the pipe is full: the worker waits
            sending.set()
            while set(multiprocessing.active_children()) - before:
                time.sleep(0.01)
        return receive(self, size)

    monkeypatch.setattr(Connection, "_recv", receive_late)
    results = ordered_map(megabytes, [[0], [9]], num_workers=1)
    next(results)
    assert sending.wait(TIMEOUT_S)
    interrupted = threading.Thread(target=results.close, daemon=True)
    interrupted.start()
    interrupted.join(TIMEOUT_S)
    assert not interrupted.is_alive()


@pytest.mark.parametrize(("method", "num_started"), [("forkserver", 1), ("spawn", 0)])
def test_the_server_of_workers_gets_no_interrupt(
    method: str, num_started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[set[int]] = []
    monkeypatch.setattr(forkserver, "ensure_running", lambda: started.extend(blocked_signals([0])))
    protect_server(method)
    assert started == num_started * [{signal.SIGINT, signal.SIGHUP}]
    assert blocked_signals([0]) == [set()]


class InterruptedCondition(threading.Condition):
    """The main thread gets Ctrl-C when it has acquired the lock."""

    def __enter__(self) -> bool:
        acquired = super().__enter__()
        if threading.current_thread() is threading.main_thread():
            signal.raise_signal(signal.SIGINT)
        return acquired


def test_an_interrupt_leaves_no_locked_future() -> None:
    future: Future[int] = Future()
    future._condition = InterruptedCondition()
    with pytest.raises(KeyboardInterrupt):
        result_of(future)
    other = threading.Thread(target=future.set_result, args=(1,), daemon=True)
    other.start()
    other.join(TIMEOUT_S)
    assert not other.is_alive()


def test_an_error_does_not_wait_for_servers() -> None:
    answer = threading.Event()
    with pytest.raises(KeyboardInterrupt), waiting_threads(1, "test") as threads:
        threads.submit(answer.wait, 60)
        raise KeyboardInterrupt
    assert not answer.is_set()
    answer.set()
