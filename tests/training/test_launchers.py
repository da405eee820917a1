"""A run that torchrun or SLURM starts, as the guide and tools/slurm.sbatch say."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mathcanvas_lightning.training.checkpoint.verify import read_about
from mathcanvas_lightning.training.run.metrics import read_metrics
from tests.cli.small_run import write_settings
from tests.conftest import ROOT
from tests.data.make_rows import interleaved_shards
from tests.ranks import again_after_a_crash
from tests.warm import WarmPython

TIMEOUT_S = 300
STRATEGY = "mathcanvas_lightning.training.strategy.ShardedStrategy"


@pytest.mark.slow
def test_torchrun_starts_two_processes(
    tmp_path: Path, warm: WarmPython, warm_command: Path
) -> None:
    """The line of the guide with one machine, two processes, gloo."""
    shards = interleaved_shards(tmp_path / "set", 12)
    strategy = {"class_path": STRATEGY, "init_args": {"replicas": 1}}
    settings = write_settings(tmp_path / "small.yaml", shards, devices=2, strategy=strategy)
    words = [
        *("-m", "torch.distributed.run", "--nnodes", "1", "--nproc-per-node", "2"),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"),
        *("-m", "mathcanvas_lightning", "fit", "--config", str(settings), "--name", "runs/two"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def run() -> list[subprocess.CompletedProcess[str]]:
        started = warm.start(words, cwd=tmp_path, env=environment, python=warm_command)
        return [started.wait(TIMEOUT_S)]

    (done,) = again_after_a_crash(run, tmp_path / "runs")
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "runs" / "two"
    assert [step for step, _ in read_metrics(run)["train/ce"]] == [0, 1]
    saved = read_about(run / "checkpoints" / "step2.ckpt")
    assert saved["mathcanvas"]["settings"]["trainer.ranks"] == 2


def test_slurm_starts_a_task_for_each_gpu(tmp_path: Path) -> None:
    """The batch script passes its options on, with the number of machines."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    dump = "import json, sys; json.dump(sys.argv[1:], open('words.json', 'w'))"
    srun.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{dump}" "$@"\n')
    srun.chmod(0o755)
    environment = {"PATH": f"{srun.parent}:{os.environ['PATH']}", "SLURM_JOB_NUM_NODES": "4"}
    script = ROOT / "tools" / "slurm.sbatch"
    words = ["--config", "my data.yaml", "--name", "my-run"]
    subprocess.run(["bash", str(script), *words], cwd=tmp_path, env=environment, check=True)
    started = json.loads((tmp_path / "words.json").read_text())
    assert started == ["mathcanvas", "fit", *words, "--trainer.num_nodes", "4"]
    asked = dict(
        line.removeprefix("#SBATCH --").split("=")
        for line in script.read_text().splitlines()
        if line.startswith("#SBATCH --")
    )
    assert asked["ntasks-per-node"] == asked["gpus-per-node"] == "8"
    assert asked["signal"] == "TERM@300"
