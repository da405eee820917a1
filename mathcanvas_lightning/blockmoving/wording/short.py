"""The chain of thought in as few tokens as possible.

Cells are three digits (x, y, z), moves one word (`CyanWest`), so that a verdict on an option
compares few tokens. The order makes each statement follow from those before it: both stacks, what
each cube did, the moves, a walk through the options that stops at the right one, the drawings.
"""

from collections.abc import Sequence

from mathcanvas_lightning.blockmoving.drawing import NAMES
from mathcanvas_lightning.blockmoving.puzzle import Puzzle
from mathcanvas_lightning.blockmoving.rules import Cell, Move, Stack, Step, simulate

COMPASS = {"+x": "East", "-x": "West", "+y": "North", "-y": "South", "+z": "Up", "-z": "Down"}


def show_stack(stack: Stack) -> str:
    """Lists cubes with their cells, such as `red 001, blue 120`, by colour."""
    cubes = sorted((block, cell) for cell, block in stack)
    return ", ".join(f"{NAMES[block]} {show_cell(cell)}" for block, cell in cubes)


def show_cell(cell: Cell) -> str:
    """Returns x, y and z as three digits."""
    return "".join(map(str, cell))


def show_move(step: Step) -> str:
    """Returns a move as one word: colour and direction."""
    return f"{NAMES[step.block].title()}{COMPASS[step.move.direction]}"


def show_option(initial: Stack, moves: Sequence[Move]) -> str:
    """Returns the moves of an option as words."""
    return " ".join(show_move(step) for step in simulate(initial, tuple(moves)))


def read_and_reason(puzzle: Puzzle) -> list[str]:
    """Returns the statements of the chain of thought before its first drawing."""
    before, after = show_stack(puzzle.initial), show_stack(puzzle.final)
    changes = ", ".join(_change(puzzle, block) for block in sorted(puzzle.initial.cells()))
    walk = _walk_moves if len(puzzle.steps) == 1 else _walk_outcomes
    return [f"Before: {before}.", f"After: {after}.", f"{changes}.", *walk(puzzle)]


def explain_short(puzzle: Puzzle, pictures: Sequence[str], *, answer: str, composite: str) -> str:
    """Writes the chain of thought of a puzzle.

    Args:
        puzzle: The task.
        pictures: The image tag or mark that follows the words of each step.
        answer: The letter to end with; a wrong one for a sample that is wrong.
        composite: The image tag of the question.

    Returns:
        The chain of thought.
    """
    parts = [composite, " ".join(read_and_reason(puzzle))]
    for number, (step, picture) in enumerate(zip(puzzle.steps, pictures, strict=True), start=1):
        word = "" if len(puzzle.steps) == 1 else f" {show_move(step)}."
        parts += [f"Step {number}:{word} {show_stack(step.after)}.", picture]
    parts.append(f"The answer is {answer}.")
    return "\n\n".join(part for part in parts if part)


def _change(puzzle: Puzzle, block: int) -> str:
    """Returns where a cube was and is, and for one move in which direction it went."""
    start, end = puzzle.initial.cells()[block], puzzle.final.cells()[block]
    text = f"{NAMES[block]} {show_cell(start)} to {show_cell(end)}"
    if len(puzzle.steps) > 1:
        return text
    moved = block == puzzle.steps[0].block
    way = COMPASS[puzzle.steps[0].move.direction].lower() if moved else "stays"
    return f"{text} {way}"


def _walk_moves(puzzle: Puzzle) -> list[str]:
    """Names the one move, then compares it with each option up to the right one.

    The move is repeated behind each option, so that a verdict compares words that stand together.
    """
    move = show_move(puzzle.steps[0])
    verdicts = []
    for letter, moves in puzzle.options.items():
        verdict = "yes" if letter == puzzle.answer else "no"
        verdicts.append(f"{letter} {show_option(puzzle.initial, moves)} is {move} {verdict}")
        if letter == puzzle.answer:
            break
    return [f"The move is {move}.", f"{', '.join(verdicts)}."]


def _walk_outcomes(puzzle: Puzzle) -> list[str]:
    """Works out where each option leads, up to the right one."""
    verdicts = []
    for letter, moves in puzzle.options.items():
        steps = simulate(puzzle.initial, moves)
        path = " then ".join(f"{show_move(step)}: {show_stack(step.after)}" for step in steps)
        verdicts.append(f"{letter} {path} {'yes' if letter == puzzle.answer else 'no'}.")
        if letter == puzzle.answer:
            break
    return verdicts
