"""Progress without a terminal: lines in the log."""

import logging
import re
import threading

import pytest

from mathcanvas_lightning.common import progress
from mathcanvas_lightning.common.progress import progress_bar, progress_text


def test_lines_while_nothing_finishes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line is due by time, also if the first item takes longer."""
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.01)
    lines: list[str] = []
    first, second = threading.Event(), threading.Event()

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())
            first.set()
            if lines[-1].startswith("Converting: 3 of 12"):
                second.set()

    log = logging.getLogger(progress.__name__)
    handler, level = Collect(), log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with progress_bar("Converting", 12) as advance:
            assert first.wait(200)
            advance(3, "1 rejected")
            assert second.wait(200)
        count = len(lines)
        with progress_bar("Converting", 12, show=False) as advance:
            advance(1, "")
        assert len(lines) == count
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
    assert re.fullmatch(r"Converting: 0 of 12, 0:\d\d so far", lines[0])
    assert lines[-1].endswith("left, 1 rejected")


@pytest.mark.parametrize(
    ("count", "total", "seconds", "remark", "text"),
    [
        (1200, 3600, 30.0, "3 rejected", "A: 1,200 of 3,600, 40/s, 1:00 left, 3 rejected"),
        (1, 4, 3000.0, "", "A: 1 of 4, 0.000333/s, 2:30:00 left"),
        (5000, None, 10.0, "", "A: 5,000, 500/s, 0:10 so far"),
        (0, 7, 90.4, "", "A: 0 of 7, 1:30 so far"),
    ],
)
def test_text(count: int, total: int | None, seconds: float, remark: str, text: str) -> None:
    assert progress_text("A", count, total, seconds, remark) == text
