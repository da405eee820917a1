"""The process group is left before the interpreter is finalized."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT

SCRIPT = """
import atexit, os
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from mathcanvas_lightning.common.distributed import leave_process_group_at_exit

def show():
    names = [open(f"/proc/self/task/{t}/comm").read() for t in os.listdir("/proc/self/task")]
    print(distributed.is_initialized(), sum("gloo" in name for name in names))

atexit.register(show)  # runs after what is registered later
leave_process_group_at_exit()
leave_process_group_at_exit()

def work():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1, 1), mesh_dim_names=("replicate", "shard"))
    cycle = [mesh]
    cycle.append(cycle)
    show()

work()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_thread_of_gloo_outlives_the_exit_handlers() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    before, after = (line.split() for line in done.stdout.splitlines())
    assert before[0] == "True"
    assert int(before[1]) > 0
    assert after == ["False", "0"]
