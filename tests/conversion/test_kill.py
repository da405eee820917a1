"""A conversion that is killed and resumed gives the same files as an uninterrupted one."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mathcanvas_lightning import convert_cot, generate_blockmoving
from tests.conftest import ROOT, folder_bytes
from tests.kills import NUM_KILLS, kill_and_resume, kill_in_the_middle

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


def command(source: Path, output: Path) -> list[str]:
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    tool = str(ROOT / "tools" / "convert_cot_to_parquet.py")
    words += ["--input", str(source), "--output", str(output), "--num_workers=2"]
    return [sys.executable, tool, *words]


def run_to_the_end(source: Path, output: Path) -> None:
    done = subprocess.run(command(source, output), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("num_shards", [0, 4])
def test_resume_after_kill(
    num_shards: int, data: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    source, straight = data
    output = tmp_path / "out"

    def is_far() -> bool:
        if num_shards == 0:
            return any(output.rglob(".tmp-*.parquet"))
        return len(list(output.rglob("[!.]*.parquet"))) >= num_shards

    kill_in_the_middle(
        command(source, output),
        output,
        is_far=is_far,
        is_finished=lambda: (output / "conversion.json").exists(),
        stdout=subprocess.DEVNULL,
    )
    interrupted = folder_bytes(output)
    for name, content in interrupted.items():
        if not Path(name).name.startswith("."):
            assert content == straight[name]
    run_to_the_end(source, output)
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
    process = subprocess.Popen(command(source, tmp_path), stderr=subprocess.PIPE, text=True)
    while not any(tmp_path.rglob(".tmp-*")):  # before the first shard is done
        assert process.poll() is None, "the conversion ended too early"
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if "Converting: " not in line]  # one in 30 s
    assert len(lines) == 1, errors
    assert lines[0].startswith("interrupted")
    run_to_the_end(source, tmp_path)
    assert folder_bytes(tmp_path) == straight
