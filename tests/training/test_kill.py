"""Runs that are killed or stopped by a signal, and restarted by the same command."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.training.checkpoint.resume import find_checkpoint
from tests.data.make_rows import interleaved_shards
from tests.training.launch import TIMEOUT_S, Rank, Run, difference, finish, launch, start

pytestmark = pytest.mark.slow

STEPS = 6
KINDS = {
    "one file": (1, None, False),
    "sharded": (2, 1, False),
    "in the background": (2, 1, True),
}
"""Ranks, replicas, whether checkpoints are written in the background."""
Make = Callable[..., Run]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return interleaved_shards(tmp_path_factory.mktemp("kill") / "rows", 60)


@pytest.fixture(scope="module", params=KINDS)
def make(request: pytest.FixtureRequest, rows: Path) -> Make:
    """Makes runs of one kind; does the uninterrupted one, once for each number of ranks."""
    ranks, replicas, async_save = KINDS[request.param]

    def run(name: str, **journal: Any) -> Run:
        straight = name == "straight"
        return Run(
            folder=rows.parent / (f"straight {ranks}" if straight else f"{request.param} {name}"),
            shards=[rows],
            ranks=ranks,
            replicas=replicas,
            async_save=async_save and not straight,
            steps=STEPS,
            save_every=2,
            journal=journal,
        )

    if not run("straight").folder.is_dir():
        launch(ranks, run("straight"))
    return run


def interrupt(
    run: Run, attempt: int, number: signal.Signals, wanted: set[str] | None = None
) -> list[Rank]:
    """Starts a run, waits until it pauses, and sends a signal to all its processes.

    Checkpoints that are written in the background appear meanwhile; `wanted` waits for them.
    """
    processes = start(run.ranks, [run])
    run.wait_for_pause(attempt, processes)
    deadline = time.monotonic() + TIMEOUT_S
    while wanted is not None and names(run) != wanted and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in processes:
        os.killpg(process.pid, number)
    return processes


def names(run: Run) -> set[str]:
    saved = run.folder / "saved"
    return {path.name for path in saved.iterdir()} if saved.is_dir() else set()


def check_same(run: Run, straight: Run) -> None:
    assert run.batches() == straight.batches()
    assert run.losses() == pytest.approx(straight.losses(), abs=1e-7)
    assert difference(run.weights(), straight.weights()) == 0


def test_killed_again_and_again_and_stopped(make: Make) -> None:
    """Killed in the first save, in a step, in a later save: earlier checkpoints stay complete.

    Then SIGTERM stops the run: it saves after the step and resumes from there.
    """
    run = make("killed", pauses=["save 2", "step 3", "save 4", "step 4"])
    found: Sequence[tuple[set[str], str | None]] = [
        ({".tmp-step2.ckpt"}, None),
        ({"step2.ckpt", "last.ckpt"}, "step2.ckpt"),
        ({"step2.ckpt", "last.ckpt", ".tmp-step4.ckpt"}, "step2.ckpt"),
    ]
    for attempt, (wanted, last) in enumerate(found):
        finish(interrupt(run, attempt, signal.SIGKILL, wanted), status=-signal.SIGKILL)
        assert names(run) == wanted
        path = find_checkpoint(run.folder)
        assert (path and Path(path).name) == last
    processes = interrupt(run, 3, signal.SIGTERM)
    (run.folder / "journal" / "go").touch()
    finish(processes)
    assert names(run) == {"step2.ckpt", "step4.ckpt", "last.ckpt", "stopped.ckpt"}
    assert steps(run, attempt=3) == [2, 3, 4]
    assert find_checkpoint(run.folder) == str(run.folder / "saved" / "stopped.ckpt")
    launch(run.ranks, run)
    assert run.attempts() == 5
    assert steps(run, attempt=4) == [5]
    assert names(run) - {"stopped.ckpt"} == names(make("straight"))
    check_same(run, make("straight"))


def steps(run: Run, attempt: int) -> list[int]:
    return sorted({line["step"] for line in run.lines("batches", 0, attempt)})
