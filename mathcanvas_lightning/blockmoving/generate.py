"""Writes a BlockMoving data set in the source format of the converter."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mathcanvas_lightning.blockmoving.drawing import (
    COLOURS,
    VIEWS,
    View,
    draw_composite,
    draw_state,
)
from mathcanvas_lightning.blockmoving.extras import parse_extras, write_extras
from mathcanvas_lightning.blockmoving.levels import Level, Question, Wording, find_level
from mathcanvas_lightning.blockmoving.parts import PARTS, Part, different_puzzles
from mathcanvas_lightning.blockmoving.puzzle import Puzzle
from mathcanvas_lightning.blockmoving.rules import Stack
from mathcanvas_lightning.blockmoving.wording.explain import describe_moves, explain
from mathcanvas_lightning.blockmoving.wording.foresight import explain_foresight
from mathcanvas_lightning.blockmoving.wording.short import (
    explain_short,
    show_move,
    show_option,
    show_stack,
)
from mathcanvas_lightning.common.parallel import chunked, count_workers, ordered_map, serial_time
from mathcanvas_lightning.common.paths import local_path
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.conversion.output.folder import OutputFolder
from mathcanvas_lightning.conversion.sources import RENDER_MARK
from mathcanvas_lightning.errors import check_settings

SOURCE_FILE = "enhanced_cot_cleaned.json"
"""Each task has composite.png (initial stack above, final stack below), a picture of each step,
and data.json with the options and the stacks."""
CHUNK_TASKS = 4
WRONG_FRACTION, UNRENDERED_FRACTION = 0.1, 0.05
"""Defaults without a level: data that models wrote has such samples, which conversion rejects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMovingReport:
    """Counts of what was generated."""

    source_file: str
    """Path of the JSON file."""
    num_tasks: int
    num_images: int
    num_wrong: int
    """Samples that end with a wrong answer."""
    num_unrendered: int
    """Samples with a mark in place of a picture."""
    extras: dict[str, int]
    """Rows of each further data set, by name."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    folder: str
    level: Level
    part: Part
    seed: int
    wrong_fraction: float
    unrendered_fraction: float
    drawings: bool


def generate_blockmoving(
    output: str,
    *,
    num_tasks: int = 100,
    seed: int = 0,
    level: int | None = None,
    part: Part = "all",
    extra: str | None = None,
    size: int | None = None,
    min_blocks: int | None = None,
    max_blocks: int | None = None,
    num_moves: int | None = None,
    num_views: int | None = None,
    view: View | None = None,
    view_px: int | None = None,
    wording: Wording | None = None,
    question: Question | None = None,
    drawings: bool = True,
    wrong_fraction: float | None = None,
    unrendered_fraction: float | None = None,
    num_workers: int | None = None,
    progress: bool = True,
) -> BlockMovingReport:
    """Generates a BlockMoving data set: simulated puzzles with pictures and chains of thought.

    Args:
        output: Folder to write to.
        num_tasks: Number of tasks.
        seed: Seed of all random numbers; task k is the same in a set of any size.
        level: Difficulty, 1 (two cubes, one move) to 5; the default is 5 with some faulty samples.
        part: all, train, validation or test; the last three share no picture.
        extra: Further data sets, such as describe=600,draw=600,move=200,reason=200.
        size: Columns along each side of the board, and the maximum height; default: the level's.
        min_blocks: Minimum number of cubes; default: the level's.
        max_blocks: Maximum number of cubes; default: the level's.
        num_moves: Moves of a solution; default: the level's.
        num_views: 1 (from a corner) or 3 views in each picture; default: the level's.
        view: corner or above: the only view of each picture; default: the level's.
        view_px: Side of one view, in pixels; default: the level's.
        wording: Chain of thought, short or long; default: the level's.
        question: moves: which option turns one stack into another; stack: where do moves lead.
        drawings: Show the picture of each step in the chain of thought.
        wrong_fraction: Share of samples with a wrong answer; default: 0.1 without a level, or 0.
        unrendered_fraction: Share with [render_result] for a picture; default: 0.05 or 0.
        num_workers: Processes; 0 uses this one; default: one for each usable core.
        progress: Show a progress bar on a terminal.

    Raises:
        ConfigError: If the numbers do not fit together, or there are too few different puzzles.
    """
    looks = {"size": size, "view_px": view_px, "wording": wording, "question": question}
    blocks = {"min_blocks": min_blocks, "max_blocks": max_blocks, "num_moves": num_moves}
    views = (view,) if view else num_views and VIEWS[:num_views]
    chosen = find_level(level).with_settings(views=views, **looks, **blocks)
    faults = _faults(level, wrong_fraction, unrendered_fraction)
    settings = _Settings(
        folder=output, level=chosen, part=part, seed=seed, drawings=drawings, **faults
    )
    _check(settings, num_tasks, num_views)
    return _generate(settings, num_tasks, parse_extras(extra), num_workers, progress)


def _faults(level: int | None, wrong: float | None, unrendered: float | None) -> dict[str, float]:
    """Returns the shares of faulty samples; a level has none by default."""
    defaults = (WRONG_FRACTION, UNRENDERED_FRACTION) if level is None else (0.0, 0.0)
    return {
        "wrong_fraction": defaults[0] if wrong is None else wrong,
        "unrendered_fraction": defaults[1] if unrendered is None else unrendered,
    }


def _generate(
    settings: _Settings,
    num_tasks: int,
    extras: dict[str, int],
    num_workers: int | None,
    progress: bool,
) -> BlockMovingReport:
    started = time.monotonic()
    folder = local_path(settings.folder)
    num_wrong, num_unrendered = _write_tasks(settings, num_tasks, num_workers, progress)
    write_extras(folder, settings.level, settings.part, settings.seed, extras, progress=progress)
    return BlockMovingReport(
        source_file=os.fspath(folder / SOURCE_FILE),
        num_tasks=num_tasks,
        num_images=num_tasks * (settings.level.num_moves * settings.drawings + 1),
        num_wrong=num_wrong,
        num_unrendered=num_unrendered,
        extras=extras,
        seconds=time.monotonic() - started,
    )


def _write_tasks(
    settings: _Settings, num_tasks: int, num_workers: int | None, progress: bool
) -> tuple[int, int]:
    """Writes all tasks; returns how many are wrong, and how many lack a picture."""
    puzzles = different_puzzles(settings.level, settings.part, settings.seed, num_tasks)
    records = ordered_map(
        partial(_make_tasks, settings),
        chunked(enumerate(puzzles), CHUNK_TASKS),
        num_workers=count_workers(num_workers, num_tasks, CHUNK_TASKS),
        serial_s=serial_time(num_workers),
    )
    num_wrong = num_unrendered = 0
    with (
        contextlib.closing(records),
        OutputFolder(settings.folder).writing(SOURCE_FILE) as path,
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
    return num_wrong, num_unrendered


def _make_tasks(settings: _Settings, tasks: Sequence[tuple[int, Puzzle]]) -> list[dict[str, Any]]:
    return [_make_task(settings, number, puzzle) for number, puzzle in tasks]


def _make_task(settings: _Settings, task: int, puzzle: Puzzle) -> dict[str, Any]:
    """Draws and writes one task; returns its record."""
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, task], counter=2**64))
    level, name = settings.level, f"task_{task}"
    folder = local_path(settings.folder) / name
    folder.mkdir(parents=True, exist_ok=True)
    _draw_question(puzzle, level).save(folder / "composite.png")
    pictures = _draw_steps(puzzle, level, folder) if settings.drawings else [""] * level.num_moves
    if rng.random() < settings.unrendered_fraction and settings.drawings:
        pictures[int(rng.integers(len(pictures)))] = RENDER_MARK
    pred = puzzle.answer
    if rng.random() < settings.wrong_fraction:
        pred = str(rng.choice([other for other in _answers(puzzle) if other != puzzle.answer]))
    task_file = json.dumps(_task_file(puzzle, level), indent=1)
    (folder / "data.json").write_text(task_file, encoding="utf-8")
    text = _writer(level)(
        puzzle, pictures, answer=pred, composite=f"<image>{name}/composite.png</image>"
    )
    return {"task_id": task, "gt": puzzle.answer, "pred": pred, "cot_text": text}


def _draw_question(puzzle: Puzzle, level: Level) -> Image.Image:
    looks: Any = {"view_px": level.view_px, "views": level.views}
    if level.question == "stack":
        return draw_state(puzzle.initial, **looks)
    return draw_composite(puzzle.initial, puzzle.final, **looks)


def _answers(puzzle: Puzzle) -> list[str]:
    """Returns possible answers: the letters of the options, or the stacks before the last."""
    stacks = [puzzle.initial, *(step.after for step in puzzle.steps[:-1])]
    return list(puzzle.options) or [show_stack(stack) for stack in stacks]


def _writer(level: Level) -> Callable[..., str]:
    if level.question == "stack":
        return explain_foresight
    return explain if level.wording == "long" else explain_short


def _draw_steps(puzzle: Puzzle, level: Level, folder: Path) -> list[str]:
    """Draws the stack after each move; returns the image tags."""
    tags = []
    for number, step in enumerate(puzzle.steps, start=1):
        picture = draw_state(step.after, view_px=level.view_px, views=level.views)
        picture.save(folder / f"step_{number}.png")
        tags.append(f"<image>{folder.name}/step_{number}.png</image>")
    return tags


def _task_file(puzzle: Puzzle, level: Level) -> dict[str, Any]:
    options = {
        letter: describe_moves(moves)
        if level.wording == "long"
        else show_option(puzzle.initial, moves)
        for letter, moves in puzzle.options.items()
    }
    return {
        "options": options,
        "answer": puzzle.answer,
        "size": puzzle.initial.size,
        "initial": _blocks(puzzle.initial),
        "final": _blocks(puzzle.final),
        "steps": [_blocks(step.after) for step in puzzle.steps],
        "question": level.question,
        "moves": " ".join(show_move(step) for step in puzzle.steps),
        "views": list(level.views),
        "view_px": level.view_px,
        "num_colours": level.num_colours,
    }


def _blocks(stack: Stack) -> list[dict[str, Any]]:
    names = list(COLOURS)
    return [{"cell": list(cell), "colour": names[block]} for cell, block in stack]


def _check(settings: _Settings, num_tasks: int, num_views: int | None) -> None:
    settings.level.check()
    fractions = (settings.wrong_fraction, settings.unrendered_fraction)
    check_settings(
        ("--num_tasks", num_tasks, num_tasks >= 1, "1 or more"),
        ("--seed", settings.seed, settings.seed >= 0, "0 or more"),
        ("--part", settings.part, settings.part in PARTS, ", ".join(PARTS)),
        ("--num_views", num_views, num_views in (None, 1, 3), "1 or 3"),
        ("--wrong_fraction", fractions[0], 0 <= fractions[0] <= 1, "0 to 1"),
        ("--unrendered_fraction", fractions[1], 0 <= fractions[1] <= 1, "0 to 1"),
        remedy="Leave it out for the default.",
    )
