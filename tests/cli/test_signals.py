"""Signals to a fit: Ctrl-C ends it with status 130 and a hint, SIGTERM saves first."""

import os
import signal
from pathlib import Path

import pytest

from tests.cli.small_run import write_settings
from tests.conftest import ROOT
from tests.data.make_rows import interleaved_shards
from tests.warm import WarmPython


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "hint"),
    [
        (signal.SIGINT, 130, "interrupted; finished work is kept: run the same command again"),
        (signal.SIGTERM, 0, "stopped by a signal after step"),
    ],
)
def test_signal_while_training(
    number: signal.Signals, status: int, hint: str, tmp_path: Path, warm: WarmPython
) -> None:
    shards = interleaved_shards(tmp_path / "shards", 12)
    config = write_settings(tmp_path / "small.yaml", shards, max_steps=100_000)
    words = ["-m", "mathcanvas_lightning", "fit", "--config", config, "--name", tmp_path / "run"]
    process = warm.start(words, cwd=ROOT)
    log = tmp_path / "run" / "log.txt"
    process.wait_until(lambda: log.is_file() and b" step 2 of" in log.read_bytes())
    os.kill(process.pid, number)
    done = process.wait(300)
    assert done.returncode == status, done.stderr
    assert done.stderr.count(hint) == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") >= 3
