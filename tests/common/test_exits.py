"""Signals end a block with the right exception; the process group is left before finalization."""

import gc
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from mathcanvas_lightning.common.exits import exit_on_signals, interrupts_pass
from tests.conftest import ROOT

EXITS = {signal.SIGINT: KeyboardInterrupt, signal.SIGTERM: SystemExit, signal.SIGHUP: SystemExit}


class Destructor:
    """Gets a signal while it is freed, so that Python only prints the exception."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", EXITS)
def test_a_signal_in_a_destructor_is_not_lost(
    number: int, capsys: pytest.CaptureFixture[str]
) -> None:
    hook = sys.unraisablehook
    with (
        pytest.raises(EXITS[number]) as end,
        interrupts_pass(),
        exit_on_signals(signal.SIGTERM, signal.SIGHUP),
    ):
        Destructor(number)
        gc.collect()
        threading.Event().wait(200)
    assert sys.unraisablehook is hook
    assert getattr(end.value, "code", number + 128) == number + 128
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("number", EXITS)
def test_an_error_that_a_signal_causes_is_the_signal(number: int) -> None:
    lock = threading.Lock()
    with (
        pytest.raises(EXITS[number]) as end,
        interrupts_pass(),
        exit_on_signals(signal.SIGTERM, signal.SIGHUP),
        lock,
    ):
        lock.release()  # as a thread does that waits for another one
        signal.raise_signal(number)
    assert getattr(end.value, "code", number + 128) == number + 128


def test_two_signals_are_the_first_one() -> None:
    group = BaseExceptionGroup("the second one came during cleanup", [SystemExit(143)])
    group = BaseExceptionGroup("as a file lock raises it", [ValueError(), group, SystemExit(129)])
    with pytest.raises(SystemExit, match="143"), interrupts_pass():
        raise group


def test_an_error_after_an_earlier_interrupt_stays() -> None:
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="wrong"), interrupts_pass():
            raise ValueError("wrong") from None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_ignored_signal_stays_ignored(number: int) -> None:
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with exit_on_signals(*EXITS):
            signal.raise_signal(number)
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


class Interrupted:
    """A launcher that is interrupted."""

    def launch(self, *_: Any, **__: Any) -> None:
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore")
def test_an_interrupt_leaves_lightning_as_it_began() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    trainer.strategy._launcher = Interrupted()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), interrupts_pass():
        trainer.predict(BoringModel())
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


THREADS = """
import atexit, contextlib, os, time
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from mathcanvas_lightning.common.exits import leave_process_group_at_exit

def count():
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            names.append(open(f"/proc/self/task/{task}/comm").read())
    return sum("gloo" in name for name in names)

def show():
    print(distributed.is_initialized(), count())

def show_last():
    end = time.monotonic() + 100
    while count() and time.monotonic() < end:  # the system lists a thread until just after its end
        time.sleep(0.01)
    show()

atexit.register(show_last)  # runs after what is registered later
leave_process_group_at_exit()
leave_process_group_at_exit()

def work():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    cycle = [mesh]
    cycle.append(cycle)
    while not count():  # a new thread takes its name when it first runs
        time.sleep(0.01)
    show()

work()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_of_gloo_outlives_the_exit_handlers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = (line.split() for line in done.stdout.splitlines())
    assert before[0] == "True"
    assert int(before[1]) > 0
    assert after == ["False", "0"]


PENDING = """
import sys
import torch
from torch import distributed
from mathcanvas_lightning.common.exits import leave_process_group_at_exit

leave_process_group_at_exit()
rank = int(sys.argv[2])
distributed.init_process_group("gloo", init_method=sys.argv[1], rank=rank, world_size=2)
for _ in range(50):
    distributed.all_reduce(torch.ones(1000), async_op=True)
"""


@pytest.mark.slow
def test_ranks_wait_for_pending_collectives(tmp_path: Path) -> None:
    address = f"file://{tmp_path / 'store'}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PENDING, address, str(rank)],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        for process in processes:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors[-2000:]
    finally:
        for process in processes:
            process.kill()
