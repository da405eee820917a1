"""The process group is left before the interpreter is finalized."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

THREADS = """
import atexit, os, time
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from mathcanvas_lightning.common.distributed import leave_process_group_at_exit

def count():
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    return sum("gloo" in name for name in names)

def show():
    print(distributed.is_initialized(), count())

atexit.register(show)  # runs after what is registered later
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
from mathcanvas_lightning.common.distributed import leave_process_group_at_exit

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
