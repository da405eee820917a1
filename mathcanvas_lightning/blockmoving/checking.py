"""Checks the steps of an answer to a puzzle: stacks in words, moves, and drawings read back."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from PIL import Image

from mathcanvas_lightning.blockmoving.drawing import NAMES
from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.reading import count_stacks, read_drawing
from mathcanvas_lightning.blockmoving.rules import Stack

CHECKS = ("before", "after", "moves", "states", "drawings", "everything")
"""Both stacks of the question, the moves, and the stack after each move in words and drawn."""
FORESIGHT_CHECKS = ("moves", "drawings", "last_drawing", "everything")
"""Checks of puzzles that ask for the last stack: their words state no other stack."""
TASK_FIELDS = frozenset(
    {"answer", "final", "initial", "num_colours", "options", "size", "steps", "view_px", "views"}
)
"""Fields of a puzzle's `data.json` that the checks need."""

_BEFORE = re.compile(r"(?:Before:|initial stack as)([^.]*)\.")
_AFTER = re.compile(r"(?:After:|final stack is)([^.]*)\.")
_ONE_MOVE = re.compile(r"The move is (\w+)\.")
_MADE = re.compile(r"Step \d+: (\w+)\.")
_STEP = re.compile(r"Step \d+:(?: (\w+)\.)?([^.]*)\.")
_CUBE = re.compile(r"(\w+) \(?(\d),?(\d),?(\d)\)?")

Cubes = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerCheck:
    """Verdicts on the steps of an answer to a puzzle."""

    checks: Mapping[str, bool]
    """For each of `CHECKS` (or `FORESIGHT_CHECKS`), whether all of it is right."""
    drawings: tuple[bool, ...]
    """For each step of the solution, whether its drawing is there and shows the right stack."""
    first_error: str | None
    """What is wrong first: before, after, "move 1", "state 1", "drawing 1", "move 2", ...; None if
    all of it is right."""


def check_answer(
    task: Mapping[str, Any], texts: Sequence[str], drawings: Sequence[Image.Image]
) -> AnswerCheck:
    """Compares an answer with its puzzle, step by step.

    Args:
        task: The puzzle's `data.json`, with the short wording or with the question for the stack.
        texts: Texts of the answer, in order.
        drawings: Drawings of the answer, in order.

    Returns:
        The checks. A missing statement or drawing is wrong, and so is one drawing too many.
    """
    text = "\n".join(texts)
    steps = [_cubes_of(blocks) for blocks in task["steps"]]
    level = _level(task)
    shown = [_cubes_of_stack(read_drawing(drawing, level).stack) for drawing in drawings]
    stated = list(_STEP.finditer(text))
    pairs: dict[str, tuple[Sequence[Any], Sequence[Any]]]
    if _asks_for_the_stack(task):
        single = {}
        pairs = {"move": (_MADE.findall(text), task["moves"].split()), "drawing": (shown, steps)}
        more = {"last_drawing": shown[-1:] == steps[-1:]}
    else:
        single = {
            "before": _stated(_BEFORE, text) == _cubes_of(task["initial"]),
            "after": _stated(_AFTER, text) == _cubes_of(task["final"]),
        }
        pairs = {
            "move": (_moves(text, stated), task["options"][task["answer"]].split()),
            "state": ([_cubes(match[2]) for match in stated], steps),
            "drawing": (shown, steps),
        }
        more = {}
    checks = single | {f"{name}s": given == true for name, (given, true) in pairs.items()} | more
    chain = (*single.items(), *_steps(pairs))
    return AnswerCheck(
        checks={**checks, "everything": all(checks.values())},
        drawings=tuple(given == true for given, true in _aligned(shown, steps)),
        first_error=next((name for name, is_right in chain if not is_right), None),
    )


def _steps(
    pairs: Mapping[str, tuple[Sequence[Any], Sequence[Any]]],
) -> Iterator[tuple[str, bool]]:
    """Yields each part of a chain of thought, such as "drawing 2", and whether it is right."""
    for number in range(max(len(one) for pair in pairs.values() for one in pair)):
        for name, pair in pairs.items():
            given, true = (one[number] if number < len(one) else None for one in pair)
            yield f"{name} {number + 1}", given == true


def _aligned(shown: Sequence[Cubes], steps: Sequence[Cubes]) -> Iterator[tuple[Any, Cubes]]:
    return zip_longest(shown[: len(steps)], steps)


def stack_chance(task: Mapping[str, Any]) -> float:
    """Returns the probability that a random stack is the right one."""
    return 1 / count_stacks(_level(task))


def chances(task: Mapping[str, Any]) -> dict[str, float]:
    """Returns the probability that a random guess passes each check, and `answer`, the final one.

    Args:
        task: The puzzle's `data.json`. An option and a stack are guessed uniformly; moves that the
            question names are repeated.
    """
    stack = stack_chance(task)
    drawn = stack ** len(task["steps"])
    if _asks_for_the_stack(task):
        found = {"answer": stack, "moves": 1.0, "drawings": drawn}
        return {**found, "last_drawing": stack, "everything": drawn}
    option = 1 / len(task["options"])
    return {
        "answer": option,
        "before": stack,
        "after": stack,
        "moves": option,
        "states": drawn,
        "drawings": drawn,
        "everything": stack * drawn,
    }


def _asks_for_the_stack(task: Mapping[str, Any]) -> bool:
    return bool(task.get("question") == "stack")  # absent from files of earlier versions


def _moves(text: str, stated: Sequence[re.Match[str]]) -> list[str]:
    if (only := _ONE_MOVE.search(text)) is not None:
        return [only[1]]
    return [match[1] for match in stated if match[1] is not None]


def _stated(pattern: re.Pattern[str], text: str) -> Cubes | None:
    match = pattern.search(text)
    return None if match is None else _cubes(match[1])


def _cubes(text: str) -> Cubes:
    return frozenset((m[1].lower(), f"{m[2]}{m[3]}{m[4]}") for m in _CUBE.finditer(text))


def _cubes_of(blocks: Sequence[Mapping[str, Any]]) -> Cubes:
    return frozenset((block["colour"], "".join(map(str, block["cell"]))) for block in blocks)


def _cubes_of_stack(stack: Stack) -> Cubes:
    return frozenset((NAMES[block], "".join(map(str, cell))) for cell, block in stack)


def _level(task: Mapping[str, Any]) -> Level:
    num_blocks = len(task["initial"])
    return Level(
        size=task["size"],
        min_blocks=num_blocks,
        max_blocks=num_blocks,
        num_colours=task["num_colours"],
        views=tuple(task["views"]),
        view_px=task["view_px"],
    )
