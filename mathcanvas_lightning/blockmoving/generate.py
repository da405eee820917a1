"""Writes a BlockMoving data set in the source format of the converter."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from mathcanvas_lightning.blockmoving.drawing import (
    COLOURS,
    all_visible,
    draw_composite,
    draw_state,
)
from mathcanvas_lightning.blockmoving.explain import describe_moves, explain
from mathcanvas_lightning.blockmoving.puzzle import Puzzle, draw_puzzle
from mathcanvas_lightning.blockmoving.rules import Stack
from mathcanvas_lightning.common.parallel import chunked, count_workers, ordered_map
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.sources import RENDER_MARK
from mathcanvas_lightning.errors import ConfigError

SOURCE_FILE = "enhanced_cot_cleaned.json"
CHUNK_TASKS = 4
MAX_DRAWS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMovingReport:
    """What was generated."""

    source_file: str
    """Path of the JSON file."""
    num_tasks: int
    num_images: int
    num_wrong: int
    """Samples that end with a wrong answer."""
    num_unrendered: int
    """Samples with a mark in place of a picture."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    folder: str
    seed: int
    size: int
    min_blocks: int
    max_blocks: int
    num_moves: int
    wrong_fraction: float
    unrendered_fraction: float
    view_px: int


def generate_blockmoving(
    output: str,
    *,
    num_tasks: int = 100,
    seed: int = 0,
    size: int = 3,
    min_blocks: int = 4,
    max_blocks: int = 8,
    num_moves: int = 3,
    wrong_fraction: float = 0.1,
    unrendered_fraction: float = 0.05,
    view_px: int = 192,
    num_workers: int | None = None,
    progress: bool = True,
) -> BlockMovingReport:
    """Generates a BlockMoving data set: simulated puzzles with pictures and chains of thought.

    Writes enhanced_cot_cleaned.json, and for each task composite.png (initial stack above, final
    stack below, three views each), a picture of each step, and data.json with the options.

    Args:
        output: Folder to write to.
        num_tasks: How many tasks.
        seed: Decides everything; task k is the same in a set of any size.
        size: Columns a side of the board, and the greatest height.
        min_blocks: Fewest blocks of a task.
        max_blocks: Most blocks of a task.
        num_moves: Moves of a solution.
        wrong_fraction: Fraction of samples with a wrong answer, as in data that models wrote.
        unrendered_fraction: Fraction of samples with [render_result] in place of a picture.
        view_px: Side of one view; a composite is 3 by 2 of them, a step's picture 3 by 1.
        num_workers: Processes; 0 works in this one; by default one for each usable core.
        progress: Show a progress bar on a terminal.

    Returns:
        Counts.

    Raises:
        ConfigError: If the numbers don't fit together.
    """
    started = time.monotonic()
    settings = _Settings(
        folder=output,
        seed=seed,
        size=size,
        min_blocks=min_blocks,
        max_blocks=max_blocks,
        num_moves=num_moves,
        wrong_fraction=wrong_fraction,
        unrendered_fraction=unrendered_fraction,
        view_px=view_px,
    )
    _check(settings, num_tasks)
    records = ordered_map(
        partial(_make_tasks, settings),
        chunked(range(num_tasks), CHUNK_TASKS),
        num_workers=count_workers(num_workers, num_tasks, CHUNK_TASKS),
    )
    num_wrong = num_unrendered = 0
    with (
        OutputFolder(output).writing(SOURCE_FILE) as path,
        path.open("w", encoding="utf-8") as file,
        progress_bar("Generating", num_tasks, show=progress) as advance,
    ):
        separator = "[\n"
        for record in records:
            file.write(separator + json.dumps(record, ensure_ascii=False))
            separator = ",\n"
            num_wrong += record["pred"] != record["gt"]
            num_unrendered += RENDER_MARK in record["cot_text"]
            advance(1, "")
        file.write("\n]\n")
    return BlockMovingReport(
        source_file=os.fspath(local_path(output) / SOURCE_FILE),
        num_tasks=num_tasks,
        num_images=num_tasks * (num_moves + 1),
        num_wrong=num_wrong,
        num_unrendered=num_unrendered,
        seconds=time.monotonic() - started,
    )


def _make_tasks(settings: _Settings, tasks: Sequence[int]) -> list[dict[str, Any]]:
    return [_make_task(settings, task) for task in tasks]


def _make_task(settings: _Settings, task: int) -> dict[str, Any]:
    """Draws and writes one task; returns its record."""
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, task]))
    puzzle = _draw_visible(rng, settings)
    name = f"task_{task}"
    folder = local_path(settings.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    composite = draw_composite(puzzle.initial, puzzle.final, view_px=settings.view_px)
    composite.save(folder / "composite.png")
    pictures = []
    for number, step in enumerate(puzzle.steps, start=1):
        draw_state(step.after, view_px=settings.view_px).save(folder / f"step_{number}.png")
        pictures.append(f"<image>{name}/step_{number}.png</image>")
    if rng.random() < settings.unrendered_fraction:
        pictures[int(rng.integers(len(pictures)))] = RENDER_MARK
    pred = puzzle.answer
    if rng.random() < settings.wrong_fraction:
        pred = str(rng.choice([letter for letter in puzzle.options if letter != puzzle.answer]))
    (folder / "data.json").write_text(json.dumps(_task_file(puzzle), indent=1), encoding="utf-8")
    text = explain(puzzle, pictures, answer=pred, composite=f"<image>{name}/composite.png</image>")
    return {"task_id": task, "gt": puzzle.answer, "pred": pred, "cot_text": text}


def _draw_visible(rng: np.random.Generator, settings: _Settings) -> Puzzle:
    for _ in range(MAX_DRAWS):
        num_blocks = int(rng.integers(settings.min_blocks, settings.max_blocks + 1))
        puzzle = draw_puzzle(
            rng, size=settings.size, num_blocks=num_blocks, num_moves=settings.num_moves
        )
        if puzzle is not None and all(
            map(all_visible, (puzzle.initial, *(step.after for step in puzzle.steps)))
        ):
            return puzzle
    raise ConfigError(
        "--num_moves, --max_blocks, --size",
        found=f"no puzzle with {settings.num_moves} moves, up to {settings.max_blocks} blocks "
        f"and size {settings.size} in {MAX_DRAWS} draws",
        wanted="settings that leave room to move",
        remedy="Take fewer moves, or fewer blocks, or a larger board.",
    )


def _task_file(puzzle: Puzzle) -> dict[str, Any]:
    return {
        "options": {letter: describe_moves(moves) for letter, moves in puzzle.options.items()},
        "answer": puzzle.answer,
        "size": puzzle.initial.size,
        "initial": _blocks(puzzle.initial),
        "final": _blocks(puzzle.final),
    }


def _blocks(stack: Stack) -> list[dict[str, Any]]:
    names = list(COLOURS)
    return [{"cell": list(cell), "colour": names[block]} for cell, block in stack]


def _check(settings: _Settings, num_tasks: int) -> None:
    room = settings.size * settings.size * (settings.size - 1)
    most = min(room, len(COLOURS))
    fractions = (settings.wrong_fraction, settings.unrendered_fraction)
    for option, found, good, wanted in (
        ("num_tasks", num_tasks, num_tasks >= 1, "1 or more"),
        ("seed", settings.seed, settings.seed >= 0, "0 or more"),
        ("size", settings.size, 2 <= settings.size <= 6, "2 to 6"),
        ("min_blocks", settings.min_blocks, settings.min_blocks >= 2, "2 or more"),
        (
            "max_blocks",
            settings.max_blocks,
            settings.min_blocks <= settings.max_blocks <= most,
            f"--min_blocks to {most} on a board of size {settings.size}",
        ),
        ("num_moves", settings.num_moves, 1 <= settings.num_moves <= 12, "1 to 12"),
        ("wrong_fraction", fractions[0], 0 <= fractions[0] <= 1, "0 to 1"),
        ("unrendered_fraction", fractions[1], 0 <= fractions[1] <= 1, "0 to 1"),
        ("view_px", settings.view_px, 48 <= settings.view_px <= 1024, "48 to 1024"),
    ):
        if not good:
            raise ConfigError(
                f"--{option}",
                found=str(found),
                wanted=wanted,
                remedy="Leave it out for the default.",
            )
