"""The box at the end of a predict run."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from mathcanvas_lightning.generation.run import monitor
from mathcanvas_lightning.generation.run.monitor import GenerationSummary, GenerationTotals
from mathcanvas_lightning.records.record import RecordInput
from tests.conftest import TRAINER_WARNINGS
from tests.generation.fakes import Failing, LastFirst
from tests.generation.runs import predict, records, write_lines

pytestmark = pytest.mark.filterwarnings(*TRAINER_WARNINGS)


@pytest.fixture
def source(tmp_path: Path) -> RecordInput:
    return RecordInput(path=str(write_lines(tmp_path / "questions.jsonl", records(20))))


def shown(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_box_counts_this_run(
    source: RecordInput, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fault = tmp_path / "fault"
    fault.touch()
    first = predict(Failing("19", str(fault)), [source], GenerationSummary()).inputs[0]
    text = shown(capsys)
    assert "This run ╭" in text
    tokens = f"tokens {first.completion_tokens:,} tokens/s"
    for part in ("answers 19 failures 1", tokens, "problems/s", "peak memory"):
        assert part in text
    assert re.search(r"waits start 0:\d\d, records 0:\d\d", text)
    fault.unlink()
    second = predict(Failing("19", str(fault)), [source], GenerationSummary()).inputs[0]
    new = second.completion_tokens - first.completion_tokens
    assert f"answers 1 failures 0 tokens {new} " in shown(capsys)
    predict(Failing("19", str(fault)), [source], GenerationSummary())
    assert "This run" not in shown(capsys)


def test_speeds_leave_out_the_start() -> None:
    totals = GenerationTotals(
        num_answers=30, tokens=600, seconds=75.0, start_s=60.0, peak_gib=1.5, children_gib=2.0
    )
    rows = dict(totals.rows())
    assert rows["time"] == "1:15"
    assert (rows["tokens/s"], rows["problems/s"]) == ("40.0", "2.00")
    assert rows["peak memory"] == "1.50 GiB, child processes 2.00 GiB"
    assert rows["waits"] == "start 1:00, records 0:00"


def test_the_start_of_the_backend_is_measured(
    source: RecordInput, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    class Slow(LastFirst):
        def start(self, **options: Any) -> None:
            now[0] += 7.0 * (not self.starts)
            super().start(**options)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    summary = GenerationSummary()
    predict(Slow(), [source], summary)
    assert summary.totals.start_s == summary.totals.seconds == 7.0


def test_memory_of_child_processes() -> None:
    import subprocess
    import sys

    code = "x = bytearray(2**28); print('ready', flush=True); input()"
    before = monitor.children_gib()
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    assert monitor.children_gib() - before >= 2**26 / 2**30  # other children may end meanwhile
    child.communicate(b"\n")
