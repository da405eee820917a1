"""Puzzles that ask where moves lead: legal, without a state in words, and not to be guessed."""

import json
import re
from collections import Counter, defaultdict
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mathcanvas_lightning import generate_blockmoving
from mathcanvas_lightning.blockmoving.checking import FORESIGHT_CHECKS, chances, check_answer
from mathcanvas_lightning.blockmoving.drawing import NAMES, all_visible, draw_state
from mathcanvas_lightning.blockmoving.levels import LEVELS, Level
from mathcanvas_lightning.blockmoving.parts import (
    different_puzzles,
    part_of_colours,
    random_puzzles,
)
from mathcanvas_lightning.blockmoving.puzzle import Puzzle
from mathcanvas_lightning.blockmoving.rules import simulate
from mathcanvas_lightning.blockmoving.wording.foresight import draw_foresight
from mathcanvas_lightning.blockmoving.wording.short import COMPASS, show_move
from mathcanvas_lightning.errors import ConfigError

ABOVE: dict[str, Any] = {"level": 4, "question": "stack", "view": "above"}
FOUR: dict[str, Any] = {**ABOVE, "min_blocks": 4, "max_blocks": 4}
LEVEL = replace(LEVELS[4], question="stack", views=("above",), min_blocks=4, max_blocks=4)
WORD = re.compile(r"([A-Z][a-z]+)([A-Z][a-z]+)")


@given(st.integers(0, 2**32), st.integers(2, 8), st.integers(1, 6), st.booleans(), st.booleans())
@settings(deadline=None)
def test_the_answer_is_where_the_named_moves_lead(
    seed: int, num_blocks: int, num_moves: int, swaps: bool, vertical: bool
) -> None:
    level = Level(
        min_blocks=2, max_blocks=num_blocks, num_moves=num_moves, swaps=swaps, vertical=vertical
    )
    puzzle = draw_foresight(np.random.default_rng(seed), level)
    if puzzle is None:
        return
    assert len(puzzle.steps) == num_moves
    assert puzzle.options == {}
    stacks = [puzzle.initial, *(step.after for step in puzzle.steps)]
    assert len(set(stacks)) == len(stacks)
    assert (
        simulate(puzzle.initial, tuple(step.move for step in puzzle.steps))[-1] == puzzle.steps[-1]
    )
    cubes = re.findall(r"(\w+) (\d)(\d)(\d)", puzzle.answer)
    assert {NAMES.index(name): (int(x), int(y), int(z)) for name, x, y, z in cubes} == (
        puzzle.final.cells()
    )


def test_the_words_of_a_move_determine_it() -> None:
    for puzzle in _drawn(LEVEL, 20):
        stack = puzzle.initial
        for step in puzzle.steps:
            name, way = WORD.fullmatch(show_move(step)).groups()
            assert stack.cells()[NAMES.index(name.lower())] == step.move.cell
            assert COMPASS[step.move.direction] == way
            stack = step.after


def test_from_above_no_cube_hides_another() -> None:
    for puzzle in _drawn(LEVEL, 20):
        for stack in (puzzle.initial, *(step.after for step in puzzle.steps)):
            assert all(z == 0 for (_, _, z), _ in stack)
            assert all_visible(stack, ("above",))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """The same puzzles with drawings and without."""
    folders = {
        drawings: tmp_path_factory.mktemp(f"foresight{drawings}") for drawings in (True, False)
    }
    for drawings, folder in folders.items():
        generate_blockmoving(
            str(folder), num_tasks=6, num_moves=3, drawings=drawings, num_workers=0, **FOUR
        )
    return folders


def _records(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "enhanced_cot_cleaned.json").read_text())
    return found


def test_words_state_no_stack_but_the_answer(written: dict[bool, Path]) -> None:
    drawn, plain = _records(written[True]), _records(written[False])
    tag = re.compile(r"\s*<image>(.*?)</image>\s*")
    for with_drawings, without in zip(drawn, plain, strict=True):
        text = with_drawings["cot_text"]
        pictures = tag.findall(text)
        assert len(pictures) == 4
        assert tag.findall(without["cot_text"]) == pictures[:1]
        words = tag.sub(" ", text)
        assert words.split() == tag.sub(" ", without["cot_text"]).split()
        chain, _, answer = words.partition("The answer is ")
        assert answer == f"{with_drawings['gt']}."
        assert not re.search(r"\d\d", chain)


def test_the_question_shows_the_first_stack_only(written: dict[bool, Path]) -> None:
    level = replace(LEVEL, num_moves=3)
    for number, puzzle in enumerate(different_puzzles(level, "all", 0, 6)):
        with Image.open(written[True] / f"task_{number}" / "composite.png") as picture:
            shown = np.asarray(picture)
        expected = draw_state(puzzle.initial, view_px=48, views=("above",))
        assert (shown == np.asarray(expected)).all()


def test_the_reference_passes_and_other_answers_fail(written: dict[bool, Path]) -> None:
    for record in _records(written[True])[:2]:
        task = json.loads((written[True] / f"task_{record['task_id']}" / "data.json").read_text())
        _, *parts = re.split(r"<image>(.*?)</image>", record["cot_text"])
        texts = parts[1::2]
        drawings = [Image.open(written[True] / path).convert("RGB") for path in parts[2::2]]
        assert check_answer(task, texts, drawings).checks == dict.fromkeys(FORESIGHT_CHECKS, True)
        assert set(chances(task)) == {"answer", *FORESIGHT_CHECKS}
        wrong = check_answer(task, texts, [drawings[1], drawings[0], drawings[2]]).checks
        assert wrong == {
            "moves": True,
            "drawings": False,
            "last_drawing": True,
            "everything": False,
        }
        assert check_answer(task, texts[1:], []).checks == dict.fromkeys(FORESIGHT_CHECKS, False)


def test_parts_share_no_picture() -> None:
    level = replace(LEVEL, num_moves=4)
    stacks: dict[str, set[Any]] = {}
    for part in ("train", "validation", "test"):
        rng = np.random.default_rng(0)
        puzzles = list(islice(random_puzzles(rng, level, part), 10))
        stacks[part] = {s for p in puzzles for s in (p.initial, *(step.after for step in p.steps))}
        assert {part_of_colours(stack) for stack in stacks[part]} == {part}
    assert not stacks["train"] & stacks["test"]


def _drawn(level: Level, count: int) -> list[Puzzle]:
    return list(islice(random_puzzles(np.random.default_rng(3), level, "all"), count))


@pytest.mark.parametrize(
    "num_moves", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4))]
)
def test_text_alone_does_not_tell_the_answer(num_moves: int) -> None:
    """The best guess of each cube from the directions in which it is moved."""
    puzzles = _drawn(replace(LEVEL, num_moves=num_moves), 700)
    seen: dict[Any, Counter[Any]] = defaultdict(Counter)
    for puzzle in puzzles[:500]:
        for block, cell in puzzle.final.cells().items():
            seen[_ways(puzzle, block)][cell] += 1
    guess = {ways: cells.most_common(1)[0][0] for ways, cells in seen.items()}
    right = sum(
        all(guess.get(_ways(p, block)) == cell for block, cell in p.final.cells().items())
        for p in puzzles[500:]
    )
    assert right <= 0.02 * 200


def _ways(puzzle: Puzzle, block: int) -> tuple[str, ...]:
    return tuple(step.move.direction for step in puzzle.steps if step.block == block)


def test_helping_rows_use_the_same_words(tmp_path: Path) -> None:
    generate_blockmoving(
        str(tmp_path), num_tasks=1, num_moves=3, extra="move=4,describe=4", num_workers=0, **FOUR
    )
    for row in pq.read_table(tmp_path / "move").to_pylist():
        words = [instructions[0] for instructions in row["instruction_list"]]
        assert [re.fullmatch(r"Step (\d): \w+\.", text)[1] for text in words] == ["1", "2", "3"]
        assert len(row["image_list"]) == 4
    assert (tmp_path / "describe" / "000003.png").is_file()


def test_wrong_samples_end_with_another_stack(tmp_path: Path) -> None:
    generate_blockmoving(str(tmp_path), num_tasks=6, wrong_fraction=1.0, num_workers=0, **FOUR)
    for record in _records(tmp_path):
        assert record["pred"] != record["gt"]
        assert record["cot_text"].endswith(f"The answer is {record['pred']}.")


@pytest.mark.parametrize(
    "wrong",
    [
        {"question": "moves?"},
        {"view": "below"},
        {"min_blocks": 10, "max_blocks": 10},
    ],
)
def test_bad_settings(wrong: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--"):
        generate_blockmoving(str(tmp_path), num_tasks=1, num_workers=0, **{**ABOVE, **wrong})
