"""Worker processes start without the locks of other threads."""

import subprocess
import sys
from pathlib import Path

import pytest

from mathcanvas_lightning.common.parallel import chunks_in_flight
from tests.conftest import ROOT


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
    print(multiprocessing.get_start_method(), results.get(timeout=60))
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
    done = subprocess.run(
        [sys.executable, str(program), chosen],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.stdout.strip() == expected, done.stderr
