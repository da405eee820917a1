"""Training, validation and test share no picture; puzzles differ; the seed decides them."""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from mathcanvas_lightning import generate_blockmoving
from mathcanvas_lightning.blockmoving.levels import LEVELS
from mathcanvas_lightning.blockmoving.parts import different_puzzles, part_of, random_puzzles
from mathcanvas_lightning.data.rows.readers import READERS
from mathcanvas_lightning.errors import ConfigError
from tests.conftest import read_jsonl


def _pictures(folder: Path) -> set[bytes]:
    return {path.read_bytes() for path in folder.rglob("*.png")}


@pytest.mark.slow
def test_parts_share_no_picture(tmp_path: Path) -> None:
    pictures = {}
    for seed, part in enumerate(("train", "validation", "test")):
        generate_blockmoving(
            str(tmp_path / part),
            num_tasks=80,
            seed=seed,
            level=1,
            part=part,
            extra="describe=60",
            num_workers=0,
        )
        pictures[part] = _pictures(tmp_path / part)
    assert not pictures["train"] & pictures["test"]
    assert not pictures["train"] & pictures["validation"]
    assert not pictures["validation"] & pictures["test"]


def test_every_drawn_stack_belongs_to_the_part() -> None:
    rng = np.random.default_rng(0)
    for puzzle in islice(random_puzzles(rng, LEVELS[2], "test"), 8):
        assert {part_of(step.after) for step in puzzle.steps} == {"test"}


def test_puzzles_differ_and_do_not_depend_on_the_number_of_tasks() -> None:
    short = list(different_puzzles(LEVELS[1], "test", 3, 40))
    long = list(different_puzzles(LEVELS[1], "test", 3, 60))
    assert long[:40] == short
    assert len({(puzzle.initial, puzzle.final) for puzzle in long}) == 60


@pytest.mark.slow
def test_too_many_tasks_for_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mathcanvas_lightning.blockmoving.parts.MAX_DRAWS", 60)
    with pytest.raises(ConfigError, match="no new puzzle after"):
        list(different_puzzles(LEVELS[1], "validation", 0, 5000))


def test_extras_are_rows_that_training_reads(tmp_path: Path) -> None:
    report = generate_blockmoving(
        str(tmp_path),
        num_tasks=1,
        level=3,
        extra="describe=6,draw=5,move=4,reason=3,compare=2",
        num_workers=0,
    )
    assert report.extras == {"describe": 6, "draw": 5, "move": 4, "reason": 3, "compare": 2}
    describe = read_jsonl(tmp_path / "describe" / "describe.jsonl")
    reason = read_jsonl(tmp_path / "reason" / "reason.jsonl")
    compare = read_jsonl(tmp_path / "compare" / "compare.jsonl")
    draw = pq.read_table(tmp_path / "draw").to_pylist()
    move = pq.read_table(tmp_path / "move").to_pylist()
    for name, row_format, rows in (
        ("describe", "vlm", describe),
        ("reason", "vlm", reason),
        ("compare", "vlm", compare),
        ("draw", "t2i", draw),
        ("move", "edit", move),
    ):
        assert len(rows) == report.extras[name]
        assert len({READERS[row_format](row, "here").uid for row in rows}) == len(rows)
    assert all((tmp_path / "describe" / row["image"]).is_file() for row in describe)
    assert all(len(row["image_list"]) == 3 for row in move)  # level 3 has two moves
    for row in compare:
        verdicts = re.findall(r"(\w+) is (\w+) (yes|no)", row["conversations"][1]["value"])
        assert len(verdicts) == 8  # two moves of four options
        assert all((word == given) == (verdict == "yes") for word, given, verdict in verdicts)


@pytest.mark.parametrize("extra", ["draws=5", "draw", "draw=x", "draw=-1"])
def test_bad_extras(extra: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--extra"):
        generate_blockmoving(str(tmp_path), num_tasks=1, extra=extra, num_workers=0)
