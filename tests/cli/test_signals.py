"""Signals to a fit: Ctrl-C ends it with status 130 and a hint, SIGTERM saves first."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.small_run import write_settings
from tests.conftest import ROOT
from tests.data.make_rows import interleaved_shards


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "status", "hint"),
    [
        (signal.SIGINT, 130, "interrupted; finished work is kept: run the same command again"),
        (signal.SIGTERM, 0, "stopped by a signal after step"),
    ],
)
def test_signal_while_training(
    number: signal.Signals, status: int, hint: str, tmp_path: Path
) -> None:
    shards = interleaved_shards(tmp_path / "shards", 12)
    config = write_settings(tmp_path / "small.yaml", shards, max_steps=100_000)
    command = [sys.executable, "-m", "mathcanvas_lightning", "fit", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--name", str(tmp_path / "run")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stderr is not None
    shown = []
    with process:
        for line in process.stderr:
            shown.append(line)
            if line.startswith("step 2 of"):
                process.send_signal(number)
    assert process.returncode == status, shown
    assert "".join(shown).count(hint) == 1
    assert "Traceback" not in "".join(shown)
    assert (tmp_path / "run" / "metrics.csv").read_text().count("\n") >= 3
