"""Further data sets of the same world: describe, draw, move, reason about words, compare words."""

import io
import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mathcanvas_lightning.blockmoving.drawing import draw_composite, draw_state
from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.parts import Part, random_puzzles
from mathcanvas_lightning.blockmoving.puzzle import Puzzle
from mathcanvas_lightning.blockmoving.rules import Stack
from mathcanvas_lightning.blockmoving.wording.foresight import show_step
from mathcanvas_lightning.blockmoving.wording.short import (
    read_and_reason,
    show_move,
    show_option,
    show_stack,
)
from mathcanvas_lightning.common.progress import progress_bar
from mathcanvas_lightning.errors import ConfigError

KINDS = ("describe", "draw", "move", "reason", "compare")
DESCRIBE_PROMPT = "Describe."
ROW_GROUP_ROWS = 256


def parse_extras(text: str | None) -> dict[str, int]:
    """Reads numbers of rows such as `describe=600,draw=600`.

    Args:
        text: Names and numbers; None for no further data set.

    Raises:
        ConfigError: If a name is unknown, or a number of rows is not valid.
    """
    counts = {}
    for word in filter(None, (text or "").split(",")):
        name, _, number = word.strip().partition("=")
        if name not in KINDS or not number.isdigit():
            raise ConfigError(
                "--extra",
                found=repr(word),
                wanted=f"NAME=ROWS with a name of {', '.join(KINDS)}",
                remedy="Write it like describe=600,draw=600.",
            )
        counts[name] = int(number)
    return counts


def write_extras(
    folder: Path, level: Level, part: Part, seed: int, counts: Mapping[str, int], *, progress: bool
) -> None:
    """Writes the further data sets.

    Args:
        folder: Gets a folder for each data set: describe/describe.jsonl, reason/reason.jsonl and
            compare/compare.jsonl; draw/draw_000.parquet and move/move_000.parquet.
        level: Difficulty.
        part: Part of the stacks that may be shown.
        seed: Seed of all random numbers.
        counts: Rows of each data set.
        progress: Show a progress bar on a terminal.
    """
    for name, count in counts.items():
        rng = np.random.Generator(np.random.Philox(key=[seed, KINDS.index(name)], counter=2**65))
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        with progress_bar(f"Generating {name}", count, show=progress) as advance:
            rows: list[dict[str, Any]] = []
            for row in islice(_ROWS[name](random_puzzles(rng, level, part), level, target), count):
                rows.append({"id": f"{name}_{len(rows)}", **row})
                advance(1, "")
        if name in ("describe", "reason", "compare"):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (target / f"{name}.jsonl").write_text(text, encoding="utf-8")
        else:
            pq.write_table(
                pa.Table.from_pylist(rows),
                target / f"{name}_000.parquet",
                row_group_size=ROW_GROUP_ROWS,
                write_page_checksum=True,
            )


def _describe(puzzles: Iterator[Puzzle], level: Level, folder: Path) -> Iterator[dict[str, Any]]:
    """Yields pictures and their cubes in words: of questions, and each third one of one stack."""
    for number, puzzle in enumerate(puzzles):
        size: Any = {"view_px": level.view_px, "views": level.views}
        if number % 3 and level.question == "moves":
            picture = draw_composite(puzzle.initial, puzzle.final, **size)
            text = f"Before: {show_stack(puzzle.initial)}. After: {show_stack(puzzle.final)}."
        else:
            picture = draw_state(puzzle.final, **size)
            text = f"{show_stack(puzzle.final)}."
        name = f"{number:06}.png"
        picture.save(folder / name)
        yield _conversation(f"{DESCRIBE_PROMPT}<image>", text, image=name)


def _draw(
    puzzles: Iterator[Puzzle],
    level: Level,
    folder: Path,  # noqa: ARG001
) -> Iterator[dict[str, Any]]:
    for puzzle in puzzles:
        yield {"image": _png(puzzle.final, level), "caption": f"{show_stack(puzzle.final)}."}


def _move(
    puzzles: Iterator[Puzzle],
    level: Level,
    folder: Path,  # noqa: ARG001
) -> Iterator[dict[str, Any]]:
    for puzzle in puzzles:
        stacks = [puzzle.initial, *(step.after for step in puzzle.steps)]
        yield {
            "image_list": [_png(stack, level) for stack in stacks],
            "instruction_list": [[text] for text in _instructions(puzzle, level)],
        }


def _instructions(puzzle: Puzzle, level: Level) -> list[str]:
    if level.question == "stack":
        return [show_step(number, step) for number, step in enumerate(puzzle.steps, start=1)]
    return [f"{show_move(step)}." for step in puzzle.steps]


def _reason(
    puzzles: Iterator[Puzzle],
    level: Level,  # noqa: ARG001
    folder: Path,  # noqa: ARG001
) -> Iterator[dict[str, Any]]:
    """Yields puzzles whose stacks are given in words."""
    for puzzle in puzzles:
        before, after, *reasons = read_and_reason(puzzle)
        answer = f"{' '.join(reasons)} The answer is {puzzle.answer}."
        yield _conversation(f"{before} {after} {_options(puzzle)}.", answer)


def _compare(
    puzzles: Iterator[Puzzle],
    level: Level,  # noqa: ARG001
    folder: Path,  # noqa: ARG001
) -> Iterator[dict[str, Any]]:
    """Yields moves, and for each one whether it is the given word."""
    for puzzle in puzzles:
        given = show_move(puzzle.steps[0])
        options = [show_option(puzzle.initial, moves) for moves in puzzle.options.values()]
        words = " ".join(options).split()
        verdicts = [f"{word} is {given} {'yes' if word == given else 'no'}" for word in words]
        question = f"Compare {given} with {', '.join(words)}."
        yield _conversation(question, f"Compared: {', '.join(verdicts)}.")


def _options(puzzle: Puzzle) -> str:
    return ", ".join(
        f"{letter} {show_option(puzzle.initial, moves)}" for letter, moves in puzzle.options.items()
    )


def _conversation(question: str, answer: str, **fields: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {**fields, "conversations": turns}


@lru_cache(maxsize=10_000)
def _png(stack: Stack, level: Level) -> bytes:
    picture = draw_state(stack, view_px=level.view_px, views=level.views)
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


_ROWS: Mapping[str, Callable[..., Iterator[dict[str, Any]]]] = {
    "describe": _describe,
    "draw": _draw,
    "move": _move,
    "reason": _reason,
    "compare": _compare,
}
