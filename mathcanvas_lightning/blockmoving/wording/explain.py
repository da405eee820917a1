"""The chain of thought of a puzzle, in words: what moves where, and what results."""

from collections.abc import Sequence

from mathcanvas_lightning.blockmoving.drawing import NAMES
from mathcanvas_lightning.blockmoving.puzzle import Puzzle
from mathcanvas_lightning.blockmoving.rules import (
    Cell,
    Move,
    Stack,
    Step,
    show_cell,
    simulate,
)


def describe_moves(moves: Sequence[Move]) -> str:
    """An option as the question shows it, such as `(0,1,0) +x, then (2,2,1) -z`."""
    return ", then ".join(str(move) for move in moves)


def explain(puzzle: Puzzle, pictures: Sequence[str], *, answer: str, composite: str) -> str:
    """Writes the solution step by step.

    Args:
        puzzle: The task.
        pictures: The image tag or mark that follows the words of each step.
        answer: The letter to end with; a wrong one for a sample that is wrong.
        composite: The question's image tag.

    Returns:
        The chain of thought.
    """
    parts = [
        composite,
        f"I read the initial stack as {describe_stack(puzzle.initial)}. The final stack is "
        f"{describe_stack(puzzle.final)}. I follow option {puzzle.answer}: "
        f"{describe_moves([step.move for step in puzzle.steps])}.",
    ]
    for number, (step, picture) in enumerate(zip(puzzle.steps, pictures, strict=True), start=1):
        parts += [f"Step {number}: {describe_step(step)}", picture]
    parts.append(
        "This is the final stack of the picture. "
        + " ".join(_difference(puzzle, letter) for letter in puzzle.options)
        + f" So the answer is {answer}."
    )
    return "\n\n".join(part.replace("  ", " ") for part in parts)


def describe_stack(stack: Stack) -> str:
    """Every block with its cell, such as `red (0,0,0), blue (0,1,0)`."""
    return ", ".join(f"{NAMES[block]} {show_cell(cell)}" for cell, block in stack)


def describe_step(step: Step) -> str:
    """Which block moves, which one it is swapped with, which ones fall, and where they are then."""
    name, move = NAMES[step.block], step.move
    start = f"the {name} block at {show_cell(move.cell)} moves {move.direction}"
    if step.swapped is not None:
        other = NAMES[step.swapped]
        return (
            f"{start} to {show_cell(move.target)}, where the {other} block is, so the two swap: "
            f"{name} is now at {show_cell(move.target)} and {other} at {show_cell(move.cell)}."
        )
    falls = [_fall(block, ends, step.block) for block, ends in step.fell.items()]
    ground = "The ground" if move.target[2] == 0 else "A block"
    rest = " ".join(falls) or f"{ground} carries it there, and nothing falls."
    return f"{start} to {show_cell(move.target)}, which is empty. {rest}"


def _fall(block: int, ends: tuple[Cell, Cell], moved: int) -> str:
    why = "Nothing carries it there, so it" if block == moved else f"The {NAMES[block]} block above"
    return f"{why} falls from {show_cell(ends[0])} to {show_cell(ends[1])}."


def _difference(puzzle: Puzzle, letter: str) -> str:
    if letter == puzzle.answer:
        return ""
    end = simulate(puzzle.initial, puzzle.options[letter])[-1].after.cells()
    wanted = puzzle.final.cells()
    block = next(block for block in wanted if end[block] != wanted[block])
    return (
        f"Option {letter} would leave {NAMES[block]} at {show_cell(end[block])} instead of "
        f"{show_cell(wanted[block])}."
    )
