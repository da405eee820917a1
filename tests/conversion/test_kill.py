"""A conversion that is killed and resumed gives the same files as an uninterrupted one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from mathcanvas_lightning import convert_cot, generate_blockmoving
from tests.conftest import ROOT, folder_bytes
from tests.kills import NUM_KILLS, kill_and_resume

SOURCE = "enhanced_cot_cleaned.json"
OPTIONS = {"samples_per_file": 12, "split": "train=0.8,test=0.2"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Puzzles that take a while to convert, and the files of an uninterrupted conversion."""
    folder = tmp_path_factory.mktemp("kill")
    generate_blockmoving(str(folder / "data"), num_tasks=240, view_px=96, num_workers=2)
    source = folder / "data" / SOURCE
    convert_cot(str(source), str(folder / "straight"), num_workers=0, **OPTIONS)  # type: ignore[arg-type]
    return source, folder_bytes(folder / "straight")


def start(source: Path, output: Path) -> subprocess.Popen[bytes]:
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    tool = str(ROOT / "tools" / "convert_cot_to_parquet.py")
    command = [sys.executable, tool, "--input", str(source), "--output", str(output), *words]
    return subprocess.Popen([*command, "--num_workers=2"], stdout=subprocess.DEVNULL)


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [0, 4])
def test_resume_after_kill(
    num_shards: int, data: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    source, straight = data
    output = tmp_path / "out"
    process = start(source, output)
    if num_shards == 0:
        wait_until(lambda: list(output.rglob(".tmp-*.parquet")), process)
    else:
        wait_until(lambda: len(list(output.rglob("[!.]*.parquet"))) >= num_shards, process)
    family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children())]
    process.send_signal(signal.SIGKILL)
    process.wait()
    interrupted = folder_bytes(output)
    assert "conversion.json" not in interrupted
    for name, content in interrupted.items():
        if not Path(name).name.startswith("."):
            assert content == straight[name]
    wait_until(lambda: not any(map(alive, family)), None)
    assert start(source, output).wait() == 0
    assert folder_bytes(output) == straight


def convert(source: Path, output: Path) -> None:
    convert_cot(str(source), str(output), num_workers=0, progress=False, **OPTIONS)  # type: ignore[arg-type]


@pytest.mark.slow
def test_kills_at_random_times(data: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, straight = data
    files, kills = kill_and_resume(convert, (source,), tmp_path / "out")
    assert kills >= NUM_KILLS
    assert files == straight


@pytest.mark.slow
def test_interrupt_prints_one_line(data: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    source, straight = data
    tool = str(ROOT / "tools" / "convert_cot_to_parquet.py")
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    process = subprocess.Popen(
        [sys.executable, tool, "--input", str(source), "--output", str(tmp_path), *words],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: list(tmp_path.rglob(".tmp-*")), process)  # before the first shard is done
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    assert errors.startswith("interrupted")
    assert errors.count("\n") == 1
    assert start(source, tmp_path).wait() == 0
    assert folder_bytes(tmp_path) == straight


def wait_until(condition, process, timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process is None or process.poll() is None, "the conversion ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
