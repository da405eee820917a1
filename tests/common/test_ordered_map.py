"""Worker processes start only where work is left for them."""

import os
from collections.abc import Iterator, Sequence
from types import SimpleNamespace

import pytest

from mathcanvas_lightning.common import parallel
from mathcanvas_lightning.common.parallel import ordered_map


def processes(numbers: Sequence[int]) -> list[tuple[int, int]]:
    return [(number, os.getpid()) for number in numbers]


@pytest.mark.parametrize(
    ("num_workers", "serial_s", "here"), [(0, 0.0, 5), (1, 0.0, 0), (1, 2.0, 2), (1, 9.0, 5)]
)
def test_workers_take_what_is_left_after_the_time_alone(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, serial_s: float, here: int
) -> None:
    now = SimpleNamespace(s=0.0)
    monkeypatch.setattr(parallel, "time", SimpleNamespace(monotonic=lambda: now.s))

    def chunks() -> Iterator[list[int]]:
        for number in range(5):
            now.s += 1
            yield [number]

    results = list(ordered_map(processes, chunks(), num_workers=num_workers, serial_s=serial_s))
    assert [number for number, _ in results] == list(range(5))
    assert [process == os.getpid() for _, process in results] == [n < here for n in range(5)]
