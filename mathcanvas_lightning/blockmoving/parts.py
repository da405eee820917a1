"""Divides all stacks into training, validation and test, so that no picture is shared."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Literal, get_args

import numpy as np

from mathcanvas_lightning.blockmoving.drawing import all_visible
from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.puzzle import Puzzle, draw_puzzle
from mathcanvas_lightning.blockmoving.rules import Stack
from mathcanvas_lightning.blockmoving.wording.foresight import draw_foresight
from mathcanvas_lightning.errors import ConfigError

Part = Literal["all", "train", "validation", "test"]
PARTS: tuple[Part, ...] = get_args(Part)
_VALIDATION_PERCENT, _TEST_PERCENT = 10, 15
MAX_DRAWS, MAX_STUCK = 4000, 100
"""Random draws for one puzzle: in all, and in a row without one that has four options."""


def part_of(stack: Stack) -> Part:
    """Returns the part that a stack belongs to, by a hash of its cubes.

    Every stack that is drawn after a move belongs to the part of its puzzle. The picture of a
    question ends with such a stack too, so two parts have no picture in common.
    """
    return _part_by_hash((stack.size, stack.columns))


def part_of_colours(stack: Stack) -> Part:
    """Returns the part of all stacks with the same colours.

    No move leaves it, so two parts have no picture in common, whatever the moves.
    """
    return _part_by_hash(tuple(sorted(stack.cells())))


def _part_by_hash(what: object) -> Part:
    digest = blake2b(repr(what).encode(), digest_size=8).digest()
    percent = int.from_bytes(digest, "little") % 100
    if percent < _TEST_PERCENT:
        return "test"
    return "validation" if percent < _TEST_PERCENT + _VALIDATION_PERCENT else "train"


def belongs_to(puzzle: Puzzle, level: Level, part: Part) -> bool:
    """Whether a puzzle may be in a part; "all" takes every one."""
    find = part_of if level.question == "moves" else part_of_colours
    return part == "all" or all(find(step.after) == part for step in puzzle.steps)


def random_puzzles(rng: np.random.Generator, level: Level, part: Part) -> Iterator[Puzzle]:
    """Draws puzzles of a part without end; a puzzle may occur several times.

    Args:
        rng: Random generator.
        level: Difficulty.
        part: Part of the stacks that the solution may lead through.

    Yields:
        Puzzles whose cubes can all be seen, in every stack of every option.

    Raises:
        ConfigError: If none is found.
    """
    draw = draw_puzzle if level.question == "moves" else draw_foresight
    num_draws = num_stuck = 0
    while num_draws < MAX_DRAWS and num_stuck < MAX_STUCK:
        num_draws += 1
        puzzle = draw(rng, level, is_clear=lambda s: all_visible(s, level.views))
        num_stuck = num_stuck + 1 if puzzle is None else 0
        if puzzle is not None and belongs_to(puzzle, level, part):
            num_draws = 0
            yield puzzle
    raise _too_few(level, 0)


def different_puzzles(level: Level, part: Part, seed: int, num_tasks: int) -> Iterator[Puzzle]:
    """Draws different puzzles, one after the other.

    Args:
        level: Difficulty.
        part: Part of the stacks that the solution may lead through.
        seed: Seed of all random numbers.
        num_tasks: Number of puzzles.

    Yields:
        The puzzle of each task.

    Raises:
        ConfigError: If no new puzzle is found.
    """
    used: set[tuple[Stack, Stack]] = set()
    for task in range(num_tasks):
        rng = np.random.Generator(np.random.Philox(key=[seed, task]))
        for _, puzzle in zip(range(MAX_DRAWS), random_puzzles(rng, level, part), strict=False):
            if (puzzle.initial, puzzle.final) not in used:
                used.add((puzzle.initial, puzzle.final))
                yield puzzle
                break
        else:
            raise _too_few(level, task)


def _too_few(level: Level, num_found: int) -> ConfigError:
    return ConfigError(
        "--num_tasks, --num_moves, --max_blocks, --size",
        found=f"no new puzzle after {num_found} with {level.num_moves} moves, up to "
        f"{level.max_blocks} blocks and size {level.size}",
        wanted="settings that allow as many different puzzles as tasks",
        remedy="Take fewer tasks or moves, or a larger board.",
    )
