"""Puzzles that ask where moves lead: the question shows one stack, the answer names the last one.

The words of the chain of thought name moves and never a stack, so that only drawings can keep the
stacks in between. In: a level. Out: puzzles, and their chain of thought.
"""

from collections.abc import Sequence

import numpy as np

from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.puzzle import Accept, Puzzle, draw_stack, draw_walk
from mathcanvas_lightning.blockmoving.rules import Step
from mathcanvas_lightning.blockmoving.wording.short import show_move, show_stack


def draw_foresight(
    rng: np.random.Generator, level: Level, *, is_clear: Accept = lambda _: True
) -> Puzzle | None:
    """Draws a stack and legal moves at random.

    Args:
        rng: Random generator.
        level: Board, cubes and moves.
        is_clear: Condition on every stack, such as that all cubes can be seen.

    Returns:
        A puzzle without options in which no stack comes twice. None if the moves got stuck or a
        stack is not clear.
    """
    initial = draw_stack(rng, level)
    walk = draw_walk(rng, initial, level) if is_clear(initial) else ()
    if not walk or not all(is_clear(step.after) for step in walk):
        return None
    return Puzzle(initial=initial, steps=walk, options={}, answer=show_stack(walk[-1].after))


def show_step(number: int, step: Step) -> str:
    """Returns the words before the drawing of a step, counted from 1."""
    return f"Step {number}: {show_move(step)}."


def ask(steps: Sequence[Step]) -> str:
    """Returns the question beside the picture of the first stack, with the words of each step."""
    words = [show_step(number, step) for number, step in enumerate(steps, start=1)]
    return f"{' '.join(words)} Which stack?"


def explain_foresight(
    puzzle: Puzzle, pictures: Sequence[str], *, answer: str, composite: str
) -> str:
    """Writes the chain of thought: each move and its drawing, then the last stack.

    Args:
        puzzle: The task.
        pictures: The image tag or mark that follows the words of each step.
        answer: The stack to end with; a wrong one for a sample that is wrong.
        composite: The image tag of the question.

    Returns:
        The chain of thought.
    """
    parts = [f"{ask(puzzle.steps)}{composite}"]
    for number, (step, picture) in enumerate(zip(puzzle.steps, pictures, strict=True), start=1):
        parts += [show_step(number, step), picture]
    parts.append(f"The answer is {answer}.")
    return "\n\n".join(part for part in parts if part)
