"""Draws puzzles: an initial stack, moves, and four options of which exactly one is right."""

from dataclasses import dataclass
from itertools import pairwise
from string import ascii_uppercase

import numpy as np

from mathcanvas_lightning.blockmoving.rules import (
    DIRECTIONS,
    IllegalMoveError,
    Move,
    Stack,
    Step,
    apply_move,
    simulate,
)

NUM_OPTIONS = 4
MAX_EDITS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Puzzle:
    """One task."""

    initial: Stack
    steps: tuple[Step, ...]
    """The solution."""
    options: dict[str, tuple[Move, ...]]
    """Letter -> moves."""
    answer: str
    """Letter of the only option that leads to the final stack."""

    @property
    def final(self) -> Stack:
        """The stack after all steps."""
        return self.steps[-1].after


def draw_puzzle(
    rng: np.random.Generator, *, size: int, num_blocks: int, num_moves: int
) -> Puzzle | None:
    """Draws a puzzle.

    Args:
        rng: Decides everything.
        size: Columns a side, and the greatest height.
        num_blocks: Blocks, at most size * size * (size - 1).
        num_moves: Moves of each option.

    Returns:
        A puzzle in which each move changes something, no stack comes twice, and exactly one
        option is right, shown by simulating all of them. None if this draw led nowhere.
    """
    initial = _draw_stack(rng, size, num_blocks)
    steps = _draw_walk(rng, initial, num_moves)
    wrong = _draw_wrong(rng, initial, steps) if steps else []
    return _assemble(rng, initial, steps, wrong) if len(wrong) == NUM_OPTIONS - 1 else None


def leads_to(initial: Stack, moves: tuple[Move, ...], final: Stack) -> bool:
    """Whether moves can all be made and turn one stack into the other."""
    try:
        return simulate(initial, moves)[-1].after == final
    except IllegalMoveError:
        return False


def _draw_stack(rng: np.random.Generator, size: int, num_blocks: int) -> Stack:
    stack = Stack.empty(size)
    for block in range(num_blocks):
        # Room is left below the ceiling, so that blocks can be moved onto others.
        free = [i for i, column in enumerate(stack.columns) if len(column) < size - 1]
        x, y = divmod(int(rng.choice(free)), size)
        stack = stack.with_column(x, y, (*stack.column(x, y), block))
    return stack


def _draw_walk(rng: np.random.Generator, stack: Stack, num_moves: int) -> tuple[Step, ...]:
    """Moves that each lead to a new stack; empty if the walk got stuck."""
    seen = {stack}
    steps: list[Step] = []
    for _ in range(num_moves):
        moves = [Move(cell, direction) for cell, _ in stack for direction in DIRECTIONS]
        for index in rng.permutation(len(moves)):
            step = _try(stack, moves[index])
            if step is not None and step.after not in seen:
                break
        else:
            return ()
        seen.add(step.after)
        steps.append(step)
        stack = step.after
    return tuple(steps)


def _draw_wrong(
    rng: np.random.Generator, initial: Stack, steps: tuple[Step, ...]
) -> list[tuple[Move, ...]]:
    """Edits of the solution that can be made, but lead elsewhere; each a different sequence."""
    right = tuple(step.move for step in steps)
    wrong: list[tuple[Move, ...]] = []
    for _ in range(MAX_EDITS):
        moves = _edit(rng, initial, right)
        new = moves != right and moves not in wrong
        if new and _possible(initial, moves) and not leads_to(initial, moves, steps[-1].after):
            wrong.append(moves)
            if len(wrong) == NUM_OPTIONS - 1:
                break
    return wrong


def _edit(rng: np.random.Generator, initial: Stack, moves: tuple[Move, ...]) -> tuple[Move, ...]:
    """Another direction, another block, or two moves in the other order."""
    edited = list(moves)
    place = int(rng.integers(len(moves)))
    kind = int(rng.integers(3))
    if kind == 0:
        edited[place] = Move(moves[place].cell, str(rng.choice(list(DIRECTIONS))))
    elif kind == 1:
        cells = [cell for cell, _ in initial]
        edited[place] = Move(cells[int(rng.integers(len(cells)))], moves[place].direction)
    else:
        other = int(rng.integers(len(moves)))
        edited[place], edited[other] = edited[other], edited[place]
    return tuple(edited)


def _assemble(
    rng: np.random.Generator,
    initial: Stack,
    steps: tuple[Step, ...],
    wrong: list[tuple[Move, ...]],
) -> Puzzle:
    sequences = [tuple(step.move for step in steps), *wrong]
    order = [int(index) for index in rng.permutation(NUM_OPTIONS)]
    options = {ascii_uppercase[i]: sequences[index] for i, index in enumerate(order)}
    right = [k for k, moves in options.items() if leads_to(initial, moves, steps[-1].after)]
    answer = ascii_uppercase[order.index(0)]
    assert right == [answer], f"options {right} are right, not {answer} alone"
    return Puzzle(initial=initial, steps=steps, options=options, answer=answer)


def _possible(stack: Stack, moves: tuple[Move, ...]) -> bool:
    """Whether moves can all be made and each changes something."""
    try:
        stacks = [stack, *(step.after for step in simulate(stack, moves))]
    except IllegalMoveError:
        return False
    return all(before != after for before, after in pairwise(stacks))


def _try(stack: Stack, move: Move) -> Step | None:
    try:
        return apply_move(stack, move)
    except IllegalMoveError:
        return None
