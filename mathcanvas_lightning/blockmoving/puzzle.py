"""Puzzles: an initial stack and four options, of which exactly one leads to the final stack."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from string import ascii_uppercase

import numpy as np

from mathcanvas_lightning.blockmoving.levels import Level
from mathcanvas_lightning.blockmoving.rules import (
    DIRECTIONS,
    IllegalMoveError,
    Move,
    Stack,
    Step,
    apply_move,
)

NUM_OPTIONS = 4
MAX_WALKS = 30
"""Random move sequences that are tried for the four options of a puzzle."""

Accept = Callable[[Stack], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """One task."""

    initial: Stack
    """The stack before the moves."""
    steps: tuple[Step, ...]
    """The solution."""
    options: dict[str, tuple[Move, ...]]
    """Letter -> moves; empty if the question is which stack results."""
    answer: str
    """Letter of the only option that leads to the final stack; without options, that stack."""

    @property
    def final(self) -> Stack:
        """The stack after all steps."""
        return self.steps[-1].after


def draw_puzzle(
    rng: np.random.Generator,
    level: Level,
    *,
    is_clear: Accept = lambda _: True,
) -> Puzzle | None:
    """Draws a puzzle at random.

    The four options are legal move sequences with four different outcomes, and the right one is
    chosen uniformly, so nothing in the text of the options says which one it is.

    Args:
        rng: Random generator.
        level: Board, cubes and moves.
        is_clear: Condition on every stack of every option, such as that all cubes can be seen.

    Returns:
        A puzzle in which each move changes the stack and no stack comes twice. None if the stack
        that was drawn has no four such options.
    """
    initial = draw_stack(rng, level)
    if not is_clear(initial):
        return None
    walks = []
    finals = {initial}
    for walk in _draw_walks(rng, initial, level):
        if walk[-1].after not in finals and all(is_clear(step.after) for step in walk):
            finals.add(walk[-1].after)
            walks.append(walk)
        if len(walks) == NUM_OPTIONS:
            break
    else:
        return None
    walks = [walks[int(index)] for index in rng.permutation(NUM_OPTIONS)]
    right = int(rng.integers(NUM_OPTIONS))
    return Puzzle(
        initial=initial,
        steps=walks[right],
        options={
            letter: tuple(step.move for step in walk)
            for letter, walk in zip(ascii_uppercase, walks, strict=False)
        },
        answer=ascii_uppercase[right],
    )


def legal_steps(stack: Stack, level: Level) -> list[Step]:
    """Returns all moves that a level allows and that change the stack, in a fixed order."""
    steps = []
    for cell, _ in stack:
        for direction, (_, _, up) in DIRECTIONS.items():
            step = None if up and not level.vertical else _try(stack, Move(cell, direction))
            if step is not None and step.after != stack and (level.swaps or step.swapped is None):
                steps.append(step)
    return steps


def draw_stack(rng: np.random.Generator, level: Level) -> Stack:
    """Draws a stack at random."""
    stack = Stack.empty(level.size)
    num_blocks = int(rng.integers(level.min_blocks, level.max_blocks + 1))
    for block in rng.permutation(level.num_colours)[:num_blocks]:
        # Room is left below the ceiling, so that blocks can be moved onto others.
        free = [i for i, column in enumerate(stack.columns) if len(column) < level.size - 1]
        x, y = divmod(int(rng.choice(free)), level.size)
        stack = stack.with_column(x, y, (*stack.column(x, y), int(block)))
    return stack


def _draw_walks(
    rng: np.random.Generator, initial: Stack, level: Level
) -> Iterator[tuple[Step, ...]]:
    """Yields random move sequences in which no stack comes twice."""
    if level.num_moves == 1:
        steps = legal_steps(initial, level)
        for index in rng.permutation(len(steps)):
            yield (steps[index],)
        return
    for _ in range(MAX_WALKS):
        walk = draw_walk(rng, initial, level)
        if walk:
            yield walk


def draw_walk(rng: np.random.Generator, stack: Stack, level: Level) -> tuple[Step, ...]:
    """Draws one move sequence; empty if it got stuck."""
    visited = {stack}
    walk: list[Step] = []
    for _ in range(level.num_moves):
        steps = [step for step in legal_steps(stack, level) if step.after not in visited]
        if not steps:
            return ()
        walk.append(steps[int(rng.integers(len(steps)))])
        stack = walk[-1].after
        visited.add(stack)
    return tuple(walk)


def _try(stack: Stack, move: Move) -> Step | None:
    try:
        return apply_move(stack, move)
    except IllegalMoveError:
        return None
